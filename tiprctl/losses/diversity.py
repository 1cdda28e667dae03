"""Diversity of the parts of a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def diversity_loss(parts: Tensor) -> Tensor:
    """How much the parts of a sample point the same way.

    The Frobenius norm of the parts' cosines with each other, without those with themselves, divided by the square of
    their number; the mean over the batch (Yan et al., CFine, TIP 2023).

    Args:
        parts: (B, P, D) features of any length.

    Returns:
        A scalar from 0, where all parts are orthogonal or there is only one, below 1; float32 (float64 for float64
        parts), also under autocast.
    """
    unit = F.normalize(at_least_float32(parts), dim=2)
    with torch.autocast(parts.device.type, enabled=False):
        cosines = unit @ unit.transpose(1, 2)
    itself = torch.eye(parts.shape[1], dtype=torch.bool, device=parts.device)
    return torch.linalg.matrix_norm(cosines.masked_fill(itself, 0)).mean() / parts.shape[1] ** 2

"""Image-text contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def itc_loss(similarity: Tensor, *, logit_scale: float | Tensor) -> Tensor:
    """Symmetric InfoNCE over the pairs of a batch: each image is to find its own text, each text its own image.

    The mean of the two cross-entropies (Radford et al., CLIP, ICML 2021, figure 3). Another caption of the same person
    counts as a negative, as it does there.

    Args:
        similarity: (B, B) cosines, rows images, columns texts.
        logit_scale: the inverse temperature; a tensor receives its gradient.

    Returns:
        A scalar, float32 (float64 for float64 similarities).
    """
    logits = logit_scale * at_least_float32(similarity)
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2

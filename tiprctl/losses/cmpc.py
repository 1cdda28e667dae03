"""Cross-modal projection classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tiprctl.losses.similarity import at_least_float32, unit_rows


def cmpc_loss(image: Tensor, text: Tensor, pids: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropies with which identities are told from each feature's projection onto its partner, summed.

    The image x is projected onto the direction of its own text, (x . y) y with y of unit length, and the text likewise;
    a classifier with columns of unit length and without bias tells the identity (Zhang and Lu, ECCV 2018).

    Args:
        image: (B, D) image features, not normalised.
        text: (B, D) text features, paired with the images row by row.
        pids: (B,) int64 identities in [0, identities), re-indexed by the caller.
        weight: (D, identities); its columns need not be normalised.

    Returns:
        A scalar, float32 (float64 for float64 features), also under autocast.
    """
    image, text = at_least_float32(image), at_least_float32(text)
    with torch.autocast(image.device.type, enabled=False):
        classes = unit_rows(weight.T.to(image.dtype)).T
        image_logits, text_logits = _onto(image, text) @ classes, _onto(text, image) @ classes
    return F.cross_entropy(image_logits, pids) + F.cross_entropy(text_logits, pids)


def _onto(features: Tensor, partners: Tensor) -> Tensor:
    """Each row's projection onto the direction of its partner."""
    directions = unit_rows(partners)
    return (features * directions).sum(dim=1, keepdim=True) * directions

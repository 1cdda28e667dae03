"""Cosine similarities between the images and the texts of a batch, from which most losses start."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 where they already are: the precision inside every softmax and logarithm."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit_rows(features: Tensor) -> Tensor:
    """Rows of `(B, D)` scaled to unit length, in at least float32; a row of zeros stays."""
    return F.normalize(at_least_float32(features), dim=1)


def cosine_similarity(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of every image with every text, in full precision also under autocast.

    Args:
        image: (B, D) image features of any floating type; they need not be normalised.
        text: (B, D) text features, paired with the images row by row.

    Returns:
        (B, B) float32 (float64 for float64 features) in [-1, 1]: rows are images, columns texts, the diagonal holds
        the pairs. A feature of zeros has similarity 0 with everything.
    """
    with torch.autocast(image.device.type, enabled=False):
        return unit_rows(image) @ unit_rows(text).T

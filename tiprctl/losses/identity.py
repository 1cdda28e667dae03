"""Identity classification."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def identity_loss(image_logits: Tensor, text_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of the cross-entropies with which one shared classifier tells the identities from images and from texts.

    The instance loss of Zheng et al. (Dual-Path, TOMM 2020), as IRRA and SEN use it.

    Args:
        image_logits: (B, identities) scores of the images.
        text_logits: (B, identities) scores of the texts.
        labels: (B,) int64 identities in [0, identities), re-indexed by the caller. PyTorch refuses any other label
            (IndexError on the CPU, a device-side assertion on CUDA), except -100, which it leaves out of the mean.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    image_loss = F.cross_entropy(at_least_float32(image_logits), labels)
    text_loss = F.cross_entropy(at_least_float32(text_logits), labels)
    return (image_loss + text_loss) / 2

"""Masked language modelling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the words that were masked (Devlin et al., BERT, NAACL 2019; IRRA's `compute_mlm`).

    Args:
        logits: (M, vocabulary) scores.
        labels: (M,) int64 ids of the masked words; 0, the padding, is left out of the mean.

    Returns:
        A scalar, float32 (float64 for float64 logits); zero where nothing is masked (there the published code's mean
        is not a number).
    """
    total = F.cross_entropy(at_least_float32(logits), labels, ignore_index=0, reduction="sum")
    return total / (labels != 0).sum().clamp(min=1)

"""Restoration of hidden patches."""

from __future__ import annotations

from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def restoration_loss(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Squared error of the hidden patches: the mean within a patch, then over the batch's hidden patches.

    He et al. (MAE, CVPR 2022), as in SEN (`mae`).

    Args:
        prediction: (B, N, P) pixels of all patches.
        target: (B, N, P) the true ones.
        hidden: (B, N) bool, True = hidden; the visible patches take no part.

    Returns:
        A scalar, float32 (float64 for float64 predictions); zero where nothing is hidden.
    """
    error = (at_least_float32(prediction) - at_least_float32(target)).square().mean(dim=2)
    return (error * hidden).sum() / hidden.sum().clamp(min=1)

"""Similarity distribution matching."""

from __future__ import annotations

from torch import Tensor

from tiprctl.losses.divergence import divergence
from tiprctl.losses.similarity import at_least_float32


def sdm_loss(similarity: Tensor, pids: Tensor, *, logit_scale: float | Tensor, epsilon: float = 1e-8) -> Tensor:
    """Divergence of the batch's similarity distributions from its identity matches, in both directions.

    With p the softmax of a row of scaled similarities and q the row's matches divided by their number, the loss is the
    mean over the anchors of sum p (log p - log(q + epsilon)), image to text plus text to image (Jiang and Ye, IRRA,
    CVPR 2023).

    Args:
        similarity: (B, B) cosines, rows images, columns texts.
        pids: (B,) identities of the pairs; captions of one identity match all its images.
        logit_scale: the inverse temperature, 50 in IRRA and SEN.
        epsilon: keeps the logarithm of a non-match finite.

    Returns:
        A scalar, float32 (float64 for float64 similarities).
    """
    logits = logit_scale * at_least_float32(similarity)
    matches = (pids[:, None] == pids[None, :]).to(logits.dtype)
    log_target = (matches / matches.sum(dim=1, keepdim=True) + epsilon).log()
    # The matches are symmetric, so one target serves both directions.
    return divergence(logits, log_target) + divergence(logits.T, log_target)

"""The divergence of predicted distributions from wanted ones, which the matching losses share."""

from __future__ import annotations

from torch import Tensor


def divergence(logits: Tensor, log_target: Tensor, weights: Tensor | None = None) -> Tensor:
    """KL(p || q), p the softmax of each row of `logits`: the mean over the rows, or their sum by `weights`.

    Args:
        logits: (B, N), float32 or wider.
        log_target: (B, N) logarithms of q, whose rows need not sum to 1.
        weights: (B,).
    """
    log_p = logits.log_softmax(dim=1)
    rows = (log_p.exp() * (log_p - log_target)).sum(dim=1)
    return rows.mean() if weights is None else (weights * rows).sum()

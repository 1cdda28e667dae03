"""Ranking of pairs above the negatives that beat them."""

from __future__ import annotations

from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def ranking_loss(similarity: Tensor, pids: Tensor, *, margin: float = 0.2) -> Tensor:
    """Hinges between each pair and the most similar item of another identity, where that beats the pair, summed.

    An anchor whose hardest negative scores above its positive contributes s_neg - s_pos + margin; every other anchor
    contributes nothing, also one whose negative lies within the margin, so the loss jumps by the margin where the two
    meet. Anchors of both modalities are summed over the batch (Yan et al., CFine, TIP 2023, as its code mines).

    Deviation from the published code: where no anchor of a direction has such a negative, there the last pair is ranked
    against the batch's first item of another identity, even if the margin alone parts them, and a batch of one identity
    fails; here both give zero.

    Args:
        similarity: (B, B), rows images, columns texts, on the scale of `margin`.
        pids: (B,) identities of the pairs.
        margin: by how much a positive is to be more similar than a negative that beats it.

    Returns:
        A scalar, float32 (float64 for float64 similarities). Negatives that tie for the hardest share its gradient.
    """
    similarity = at_least_float32(similarity)
    positive = similarity.diagonal()
    # -inf where nothing is a negative: it never beats a positive.
    negative = similarity.masked_fill(pids[:, None] == pids[None, :], float("-inf"))
    return sum(_hinges(positive, negative.amax(dim=direction), margin) for direction in (0, 1))


def _hinges(positive: Tensor, hardest: Tensor, margin: float) -> Tensor:
    return (hardest - positive + margin).where(hardest > positive, 0).sum()

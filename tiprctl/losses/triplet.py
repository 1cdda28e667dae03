"""Cross-modal triplet with the hardest negative of the batch."""

from __future__ import annotations

from torch import Tensor

from tiprctl.losses.similarity import at_least_float32


def triplet_loss(similarity: Tensor, pids: Tensor, *, margin: float = 0.05) -> Tensor:
    """Hinge between each pair and the most similar item of another identity, in both directions.

    For a text the positive is its own image and the negative the most similar image of another identity, for an image
    likewise among the texts: relu(d_pos - d_neg + margin) with d = 1 - cosine, averaged over the batch, the two
    directions summed (Liu et al., SEN, Neural Networks 184, 2025: cross-modal triplet).

    An anchor without a negative contributes zero, so a batch of one identity has loss zero. The published code takes
    item 0 of such a batch, a positive, as the negative: its loss there is above zero, and its gradient pushes a
    person's own crops and captions apart.

    Args:
        similarity: (B, B) cosines, rows images, columns texts.
        pids: (B,) identities of the pairs.
        margin: by how much a positive is to be more similar than the hardest negative.

    Returns:
        A scalar, float32 (float64 for float64 similarities). Negatives that tie for the hardest share its gradient.
    """
    similarity = at_least_float32(similarity)
    positive = similarity.diagonal()
    # -inf where nothing is a negative: the hinge below turns it into an exact zero.
    negative = similarity.masked_fill(pids[:, None] == pids[None, :], float("-inf"))
    text_anchored = (negative.amax(dim=0) - positive + margin).relu()
    image_anchored = (negative.amax(dim=1) - positive + margin).relu()
    return text_anchored.mean() + image_anchored.mean()

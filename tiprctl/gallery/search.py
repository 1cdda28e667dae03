"""Ranking a gallery by its similarity to queries, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SCORES_AT_ONCE = 1 << 24
"""How many similarities are held at a time (64 MB of float32)."""


@dataclass(frozen=True)
class Hits:
    """The best of the gallery for each query, best first.

    Attributes:
        indices: gallery rows, int64 `(Q, k)`.
        scores: their cosine similarities, float32 `(Q, k)`.
    """

    indices: np.ndarray
    scores: np.ndarray


def search(queries: np.ndarray, gallery: np.ndarray, top: int) -> Hits:
    """Rank `gallery` `(N, D)` for each of `queries` `(Q, D)`, all rows of unit norm; `top` is cut to N.

    Equal scores keep the gallery's order. The gallery is not sorted as a whole: the k-th best score is found by
    partition, and only the k rows that reach it are sorted.
    """
    k = min(top, len(gallery))
    indices = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    step = max(1, _SCORES_AT_ONCE // max(1, len(gallery)))
    for start in range(0, len(queries), step):
        for row, similarity in enumerate(queries[start : start + step] @ gallery.T, start):
            indices[row] = _best(similarity, k)
            scores[row] = similarity[indices[row]]
    return Hits(indices, scores)


def _best(similarity: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest of `similarity` `(N,)`, the largest first, ties by index."""
    if k == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(similarity, -k)[-k]
    above = np.flatnonzero(similarity > threshold)
    level = np.flatnonzero(similarity == threshold)[: k - len(above)]
    chosen = np.concatenate([above, level])
    return chosen[np.argsort(-similarity[chosen], kind="stable")]

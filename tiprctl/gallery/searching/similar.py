"""Near-duplicates among the crops that were found: the best of each is kept, the others are folded into it."""

from __future__ import annotations

import numpy as np

SIMILAR = 0.98
"""The cosine of two crops' vectors from which they count as the same picture: two frames of one moment, a copy that was
saved again. Another view of the same person is usually further away."""


def fold(vectors: np.ndarray, threshold: float = SIMILAR) -> list[list[int]]:
    """Ranked crops in groups: the rows of `vectors` `(n, D)`, best first and of unit length, by group.

    From the best on, a crop joins the first group whose best one is as near as `threshold` (a cosine), or else begins a
    group. No crop is judged by those below it, so that a longer ranking begins with the groups of a shorter one.
    """
    groups: list[list[int]] = []
    best = np.empty_like(vectors)
    for row, vector in enumerate(vectors):
        near = np.flatnonzero(best[: len(groups)] @ vector >= threshold)
        if len(near):
            groups[near[0]].append(row)
        else:
            best[len(groups)] = vector
            groups.append([row])
    return groups

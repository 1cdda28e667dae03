"""Near-duplicates folded into the best of them."""

from __future__ import annotations

import numpy as np
import pytest

from tiprctl.gallery.searching.similar import fold


def naive(vectors, threshold):
    """Crop by crop, group by group, in plain Python."""
    groups = []
    for row, vector in enumerate(vectors):
        for group in groups:
            if sum(float(a) * float(b) for a, b in zip(vectors[group[0]], vector)) >= threshold:
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 0.9, 1.1])
def test_groups_are_those_of_a_naive_loop(threshold):
    vectors = np.random.default_rng(0).standard_normal((60, 3))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    groups = fold(vectors, threshold)
    assert groups == naive(vectors, threshold)
    assert sorted(row for group in groups for row in group) == list(range(60))


def test_a_longer_ranking_begins_with_the_groups_of_a_shorter_one():
    vectors = np.random.default_rng(1).standard_normal((40, 2))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    short, long = fold(vectors[:15], 0.9), fold(vectors, 0.9)
    assert [[row for row in group if row < 15] for group in long[: len(short)]] == short


def test_by_hand():
    a, b, between = [1, 0], [0, 1], [0.8, 0.6]
    vectors = np.array([a, between, b, a, b], np.float32)
    assert fold(vectors, 0.99) == [[0, 3], [1], [2, 4]]
    assert fold(vectors, 0.79) == [[0, 1, 3], [2, 4]]
    assert fold(np.empty((0, 2), np.float32), 0.9) == []

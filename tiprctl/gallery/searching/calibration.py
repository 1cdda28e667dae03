"""How thoroughly a gallery's vector index has to be searched: chosen by comparing it with an exact search."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import numpy as np

from tiprctl.gallery.keeping.engine import UNREADABLE, faults
from tiprctl.gallery.keeping.schema import VECTOR
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import exact
from tiprctl.gallery.searching.exact import ROUNDING, vectors_of
from tiprctl.gallery.searching.vector_index import CALIBRATED_TOP, Tuning, nearest

_AIM = 0.995
"""What is asked of the queries at hand, so that others reach `LEAST_RECALL`."""
_QUERIES = 64
"""Of each kind."""
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_REFINES = (2, 4, 8, 16)


def calibrate(store: GalleryStore, tuning: Tuning, probes: np.ndarray | None = None) -> Tuning:
    """The least share of partitions and the fewest rows compared exactly that reach the recall.

    Args:
        probes: queries `(P, D)` of unit length such as the gallery will be asked, texts among them: these lie elsewhere
            than crops. Beside them, crops that were moved a little and a lot stand for queries.
    """
    kinds = [*_moved_rows(store), *([] if probes is None else [_some(probes)])]
    queries = np.concatenate(kinds)
    least = _least_scores(store, queries)
    ends = np.cumsum([len(kind) for kind in kinds])[:-1]

    def recall(share: float, refine: int) -> float:
        """Of the kind of queries that fares worst."""
        tried = replace(tuning, share=share, refine=refine)
        found = [_recall(store, query, tried, score) for query, score in zip(queries, least)]
        return min(float(np.mean(kind)) for kind in np.split(np.array(found), ends))

    refine = next((refine for refine in _REFINES if recall(1.0, refine) >= _AIM), _REFINES[-1])
    place = bisect_left(_SHARES[:-1], _AIM, key=lambda share: recall(share, refine))
    share = _SHARES[place]
    return replace(tuning, share=share, refine=refine, recall=recall(share, refine))


def _least_scores(store: GalleryStore, queries: np.ndarray) -> np.ndarray:
    """For each query the cosine of the last of its best rows. Whatever reaches it is as good: crops may have copies."""
    last = np.array([ids[-1] for ids in exact.search(store, queries, CALIBRATED_TOP)])
    rows = store.take(np.unique(last), [VECTOR]).sort_by("_rowid")
    vectors = vectors_of(rows)[np.searchsorted(rows["_rowid"].to_numpy(), last)]
    return np.einsum("qd,qd->q", queries, vectors)


def _recall(store: GalleryStore, query: np.ndarray, tuning: Tuning, least: float) -> float:
    distances = nearest(store, query, CALIBRATED_TOP, tuning)["_distance"].to_numpy()
    return np.count_nonzero(1 - distances >= least - ROUNDING) / min(CALIBRATED_TOP, len(store))


def _moved_rows(store: GalleryStore) -> list[np.ndarray]:
    """Rows moved a little, as another crop of the person; and so far that the cosine is 0.3, as a text's would be."""
    generator = np.random.default_rng(0)
    places = np.sort(generator.choice(len(store), min(_QUERIES, len(store)), replace=False))
    with faults(store.uri, UNREADABLE):
        rows = vectors_of(store.dataset.take(places, columns=[VECTOR]))
    noise = _unit(generator.standard_normal(rows.shape, np.float32))
    return [_unit(rows + 0.5 * noise), _unit(0.3 * rows + 0.95 * noise)]


def _some(probes: np.ndarray) -> np.ndarray:
    chosen = np.random.default_rng(0).permutation(len(probes))[: 2 * _QUERIES]
    return probes[np.sort(chosen)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

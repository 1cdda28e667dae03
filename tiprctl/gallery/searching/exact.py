"""Exact search of a gallery: every vector read once, in batches, whatever the gallery's size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tiprctl.gallery.keeping.schema import KEY, VECTOR
from tiprctl.gallery.keeping.store import GalleryStore

_BATCH_ROWS = 2048
"""Vectors of 512 values fill 4 MB, which a processor's cache holds."""
ROUNDING = 1e-5
"""By how much two ways to sum the same cosine may differ in float32."""


def search(
    store: GalleryStore,
    queries: np.ndarray,
    count: int,
    *,
    where: str | None = None,
    min_score: float = -np.inf,
    excluded: Callable[[str], bool] | None = None,
    scalar_indexes: bool = True,
) -> list[np.ndarray]:
    """The `_rowid`s of the `count` best rows for each of `queries` `(Q, D)`, best first, equal ones by path.

    One pass serves all queries; beside them, memory holds a batch and the best so far.

    Args:
        where: an expression as `expression.compiled` returns it.
        min_score: rows of a smaller cosine are left out.
        excluded: whether the row of a path is left out.
        scalar_indexes: read the filter's indexes.
    """
    best = _Best(len(queries), count, min_score - ROUNDING)
    columns = [KEY, VECTOR]
    for batch in store.scan(columns, where, batch_rows=_BATCH_ROWS, scalar_indexes=scalar_indexes):
        best.offer(queries @ vectors_of(batch).T, batch[KEY], batch["_rowid"].to_numpy(), excluded)
    return best.row_ids()


def vectors_of(rows: pa.RecordBatch | pa.Table) -> np.ndarray:
    """Their vectors, float32 `(n, D)`."""
    column = rows[VECTOR]
    chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return chunk.flatten().to_numpy().reshape(len(rows), chunk.type.list_size)


class _Best:
    """The best rows so far for each of several queries."""

    def __init__(self, queries: int, count: int, floor: float):
        self._count = count
        self._ranked: list[list[tuple[float, str, int]]] = [[] for _ in range(queries)]
        """(-score, path, row id), sorted."""
        self._floors = np.full((queries, 1), floor, np.float32)
        """The score that a row has to reach."""

    def offer(
        self, scores: np.ndarray, paths: pa.Array, row_ids: np.ndarray, excluded: Callable[[str], bool] | None
    ) -> None:
        """Take those rows of a batch that are better: `scores` `(Q, n)` of rows with these paths and ids."""
        places = np.flatnonzero((scores >= self._floors).any(axis=0))
        if not len(places):
            return
        names = paths.take(pa.array(places)).to_pylist()
        if excluded is not None:
            kept = [position for position, name in enumerate(names) if not excluded(name)]
            places, names = places[kept], [names[position] for position in kept]
        scores, row_ids = scores[:, places], row_ids[places]
        for query, reached in enumerate(scores >= self._floors):
            if reached.any():
                self._merge(query, np.flatnonzero(reached), scores[query], names, row_ids)

    def _merge(self, query: int, places: np.ndarray, scores: np.ndarray, names: list[str], row_ids: np.ndarray) -> None:
        if len(places) > self._count:
            least = np.partition(scores[places], -self._count)[-self._count]
            places = places[scores[places] >= least]
        new = [(-float(scores[place]), names[place], int(row_ids[place])) for place in places]
        ranked = sorted(self._ranked[query] + new)[: self._count]
        self._ranked[query] = ranked
        if len(ranked) == self._count:
            self._floors[query] = -ranked[-1][0]

    def row_ids(self) -> list[np.ndarray]:
        return [np.array([row_id for *_, row_id in ranked], np.uint64) for ranked in self._ranked]

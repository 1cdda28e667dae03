"""Finding the crops of a gallery that are most similar to queries: exactly, or through its vector index."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import translate

import numpy as np
import pyarrow as pa

from tiprctl.gallery.keeping.engine import EngineError, brief
from tiprctl.gallery.keeping.expression import answering, compiled
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.gallery.keeping.schema import KEY, VECTOR
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import exact
from tiprctl.gallery.searching.exact import vectors_of
from tiprctl.gallery.searching.vector_index import CALIBRATED_TOP, Tuning, nearest, read_tuning, warm

EXACT_ROWS = 50_000
"""Up to how many rows all are compared: as far as a process' first search takes no longer than through the index.
benchmarks/gallery.py times both ways."""
_SELECTED_ROWS = 10_000
"""Up to how many rows that a filter leaves are compared, whatever the gallery's size: they lie apart, and each takes
longer to read than in a scan of all. benchmarks/gallery.py tells how long."""
_WARMED_ROWS = 2_000_000
"""Up to how many rows the index is read before it is asked for: a larger one takes longer than the few partitions that
one query looks at. A round number, for want of a measurement that holds for other disks."""
_DEEPEST = 0.01
"""The share of the rows up to which the index ranks; beyond, they are compared."""
_ROWS_AT_ONCE = 8192
"""How many found rows are fetched together."""

_UNREADABLE = "Searched without the index, which cannot be read ({}). Build it anew: tiprctl index optimise."


@dataclass(frozen=True)
class Found:
    """What was found for one query, best first; equal scores in the order of paths.

    Attributes:
        rows: the columns of the gallery but the vector.
        scores: their cosines with the query, float32 `(k,)`; the same by every way.
        vectors: of the rows, float32 `(k, D)`.
        exact: whether all rows were compared.
        note: what the user should know, if anything: an index that cannot be read.
    """

    rows: pa.Table
    scores: np.ndarray
    vectors: np.ndarray
    exact: bool
    note: str | None = None

    def __len__(self) -> int:
        return len(self.scores)


def find(
    store: GalleryStore,
    queries: np.ndarray,
    top: int,
    *,
    where: str | None = None,
    min_score: float | None = None,
    exclude: Sequence[str] = (),
) -> list[Found]:
    """The `top` rows most similar to each of `queries` `(Q, D)`, float32 of unit length; fewer where there are not.

    Small galleries, and the few rows that a filter leaves, are compared one by one; larger ones are searched through
    their vector index as thoroughly as it was calibrated to need, more so for a filter. An index that was not yet
    calibrated, that finds too little or that cannot be read is done without.

    Args:
        where: an expression over the columns; see `expression.compiled`.
        min_score: the least cosine.
        exclude: paths, or patterns of them (`*`, `?`, `[...]`) that match a whole path or what follows one of its
            slashes; `*` stands for slashes too.

    Raises:
        UsageError: the engine cannot read the expression.
        EngineError: the rows cannot be read.
    """
    search = _Search(
        store,
        np.ascontiguousarray(queries, np.float32),
        max(0, top),
        None if where is None else compiled(store, where),
        -np.inf if min_score is None else min_score,
        Exclusion(exclude),
    )
    with answering(store, where):
        return search.run()


def warm_up(store: GalleryStore) -> None:
    """Begin to read the index that a search without a filter will use, where the whole of it is soon read.

    Of an object store every byte is fetched, and of a large index more than one query needs.
    """
    if not EXACT_ROWS < len(store) <= _WARMED_ROWS or is_remote(store.uri):
        return
    # Nothing is told of an index that cannot be read: the search tells.
    with suppress(EngineError):
        tuning = read_tuning(store)
        if _is_trusted(tuning):
            warm(store, tuning)


def _is_trusted(tuning: Tuning | None) -> bool:
    """Whether the index may answer: it was measured, and found enough."""
    return tuning is not None and tuning.suffices


class Exclusion:
    """The rows that are left out, by their paths."""

    def __init__(self, patterns: Sequence[str]):
        self.patterns = frozenset(patterns)
        self._globs = [re.compile(f"(?:.*/)?{translate(pattern)}", re.DOTALL) for pattern in self.patterns]

    def __call__(self, path: str) -> bool:
        return path in self.patterns or any(glob.match(path) for glob in self._globs)

    def __len__(self) -> int:
        return len(self.patterns)


@dataclass(frozen=True)
class _Search:
    store: GalleryStore
    queries: np.ndarray
    top: int
    where: str | None
    least: float
    excluded: Exclusion

    def run(self) -> list[Found]:
        if not self.top or not len(self.queries):
            return self._found([np.array([], np.uint64)] * len(self.queries), [True] * len(self.queries))
        try:
            chosen = self._through_index()
        except EngineError as error:
            chosen, note = [None] * len(self.queries), _UNREADABLE.format(brief(error.__cause__ or error))
        else:
            note = None
        exactly = [ids is None for ids in chosen]
        left = [query for query, whole in enumerate(exactly) if whole]
        for query, ids in zip(left, self._exactly(left, scalar_indexes=note is None)):
            chosen[query] = ids
        return self._found(chosen, exactly, note)

    def _through_index(self) -> list[np.ndarray | None]:
        """The row ids for each query, best first; None where it is better searched exactly."""
        matching = self.store.count(self.where)
        total = len(self.store) if self.where is not None else matching
        few = total <= EXACT_ROWS or (matching < total and matching <= _SELECTED_ROWS)
        tuning = None if few else read_tuning(self.store)
        if not _is_trusted(tuning):
            return [None] * len(self.queries)
        return [self._nearest(query, tuning, matching / total, _DEEPEST * matching) for query in self.queries]

    def _nearest(self, query: np.ndarray, tuning: Tuning, selectivity: float, deepest: float) -> np.ndarray | None:
        """More rows than wanted are asked for, in case that some are excluded, and as many as it was calibrated for."""
        wanted = max(self.top + len(self.excluded), CALIBRATED_TOP)
        while wanted <= deepest:
            rows = nearest(self.store, query, wanted, tuning.deepened(wanted, selectivity), self.where)
            kept = [place for place, path in enumerate(rows[KEY].to_pylist()) if not self.excluded(path)]
            if len(kept) >= self.top:
                return rows["_rowid"].to_numpy()[kept[: self.top]]
            wanted *= 4
        return None

    def _exactly(self, queries: list[int], *, scalar_indexes: bool) -> list[np.ndarray]:
        if not queries:
            return []
        return exact.search(
            self.store,
            self.queries[queries],
            self.top,
            where=self.where,
            min_score=self.least,
            excluded=self.excluded if len(self.excluded) else None,
            scalar_indexes=scalar_indexes,
        )

    def _found(self, chosen: list[np.ndarray], exactly: list[bool], note: str | None = None) -> list[Found]:
        found: list[Found] = []
        for part in _parts(chosen):
            rows = self.store.take(np.unique(np.concatenate(part)), [*self.store.columns, VECTOR]).sort_by("_rowid")
            row_ids, vectors = rows["_rowid"].to_numpy(), vectors_of(rows)
            rows = rows.drop_columns([VECTOR, "_rowid"])
            for ids in part:
                places, query = np.searchsorted(row_ids, ids), len(found)
                found.append(self._ranked(rows, vectors, places, query, exactly[query], note))
        return found

    def _ranked(
        self, rows: pa.Table, vectors: np.ndarray, places: np.ndarray, query: int, exactly: bool, note: str | None
    ) -> Found:
        # Summed in one way for all, so that equal vectors have equal scores and every way to find them gives the same.
        scores = (vectors[places].astype(np.float64) @ self.queries[query].astype(np.float64)).astype(np.float32)
        mine = rows.take(pa.array(places))
        paths = mine[KEY].to_pylist()
        order = sorted(range(len(places)), key=lambda place: (-scores[place], paths[place]))
        order = [place for place in order if scores[place] >= self.least]
        return Found(mine.take(pa.array(order, pa.int64())), scores[order], vectors[places[order]], exactly, note)


def _parts(chosen: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Queries whose rows are fetched together: about `_ROWS_AT_ONCE` at most."""
    part: list[np.ndarray] = []
    for ids in chosen:
        if part and sum(map(len, part)) + len(ids) > _ROWS_AT_ONCE:
            yield part
            part = []
        part.append(ids)
    if part:
        yield part

"""When a gallery's indexes are to be built or brought up to date, and doing so, while others read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tiprctl.gallery.keeping import upkeep
from tiprctl.gallery.keeping.engine import EngineError, ObstacleError
from tiprctl.gallery.keeping.settling import settled
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.keeping.upkeep import untidy
from tiprctl.gallery.searching.calibration import calibrate
from tiprctl.gallery.searching.finding import EXACT_ROWS
from tiprctl.gallery.searching.vector_index import (
    LEAST_RECALL,
    Tuning,
    build,
    extend,
    indexed_rows,
    is_present,
    keep_newest,
    read_tuning,
    write_tuning,
)

UNINDEXED_SHARE = 0.1
"""The share of rows outside the index from which it is brought up to date: each search compares them all."""
_GROWTH = 2
"""From how many times the rows that it was laid out for an index is laid out anew."""


@dataclass(frozen=True)
class Optimised:
    """What was done.

    Attributes:
        rows: of the gallery.
        files_joined: by how many data files it has fewer.
        index: what became of the vector index: "built", "extended", or None where the gallery needs none.
        tuning: how the vector index is searched, and the recall@10 that was measured.
        bytes_freed: by removing old versions.
    """

    rows: int
    files_joined: int
    index: str | None
    tuning: Tuning | None
    bytes_freed: int


def needed(store: GalleryStore) -> str | None:
    """Why the gallery should be put in order, a clause for people; None where it need not be."""
    return unindexed(store) or untidy(store)


def unindexed(store: GalleryStore) -> str | None:
    """Why its indexes should be built or brought up to date; else it may be untidy, which `tidy` mends in less time."""
    rows = len(store)
    if rows <= EXACT_ROWS:
        return None
    covered = indexed_rows(store)
    if covered is None:
        return f"its {rows:,} rows have no index"
    bearable = min(EXACT_ROWS, UNINDEXED_SHARE * rows)
    if rows - covered > bearable:
        return f"{rows - covered:,} of its {rows:,} rows are not in the index"
    if read_tuning(store) is None:
        return "its index was not calibrated"
    for column, lacking in upkeep.unindexed_columns(store).items():
        if lacking > bearable:
            return f"{lacking:,} of its {rows:,} rows are not in the index of {column}"
    return None


def tidy(store: GalleryStore, notes: Callable[[str], None] = lambda note: None) -> tuple[int, int]:
    """Join small files and remove old versions: by how many files there are fewer, and the bytes freed.

    A gallery that is searched exactly needs no index, and is rid of those that it had when it was larger: rows inside
    an index and outside of it cannot be joined.

    Raises:
        EngineError: the gallery cannot be written, or other writers leave no time; what was done until then stays.
    """
    notes("Joining small files")
    if len(store) <= EXACT_ROWS:
        settled(store, lambda: upkeep.drop_indexes(store))
    joined = _without_damage(store, lambda: upkeep.compact(store))
    notes("Removing old versions")
    freed = settled(store, lambda: upkeep.forget_old_versions(store))
    store.refresh()
    return joined, freed


def optimise(
    store: GalleryStore, *, probes: np.ndarray | None = None, notes: Callable[[str], None] = lambda note: None
) -> Optimised:
    """Join small files, remove old versions, build the indexes of a large gallery or bring them up to date.

    Every step is a transaction of its own: killed at any time, the gallery is whole, and the next run goes on. Readers
    keep the version that they have; writers are waited for.

    Args:
        probes: queries `(P, D)` such as the gallery will be asked, of unit length; see `calibration.calibrate`.
        notes: is told each step as it begins.

    Raises:
        EngineError: the gallery cannot be written, or other writers leave no time; what was done until then stays.
    """
    joined, freed = tidy(store, notes)
    if len(store) <= EXACT_ROWS:
        return Optimised(len(store), joined, None, None, freed)
    notes("Indexing columns")
    settled(store, lambda: upkeep.index_scalars(store))
    index, tuning = _optimise_vectors(store, probes, notes)
    store.refresh()
    return Optimised(len(store), joined, index, tuning, freed)


def _without_damage(store: GalleryStore, change: Callable[[], int]) -> int:
    """Do `change`; where it fails and nothing stands in the way, an index cannot be read: do without the indexes."""
    try:
        return settled(store, change)
    except ObstacleError:
        raise
    except EngineError:
        settled(store, lambda: upkeep.drop_indexes(store))
        return settled(store, change)


def _optimise_vectors(
    store: GalleryStore, probes: np.ndarray | None, notes: Callable[[str], None]
) -> tuple[str, Tuning]:
    tuning = read_tuning(store)
    if tuning is not None and len(store) <= _GROWTH * tuning.trained_rows:
        notes("Extending the vector index")
        try:
            settled(store, lambda: extend(store, tuning))
            tuned = _tune(store, tuning, probes, notes)
        except ObstacleError:
            raise
        except EngineError:
            notes("The vector index cannot be read")
        else:
            if tuned.suffices:
                return "extended", tuned
    notes("Building the vector index")
    built = settled(store, lambda: build(store))
    settled(store, lambda: keep_newest(store))
    return "built", _tune(store, built, probes, notes)


def _tune(store: GalleryStore, tuning: Tuning, probes: np.ndarray | None, notes: Callable[[str], None]) -> Tuning:
    store.refresh()
    if not is_present(store, tuning):
        notes("Another process has put an index in its place")
        return tuning
    notes("Measuring its recall")
    tuned = calibrate(store, tuning, probes)
    store.refresh()
    write_tuning(store, tuned)
    if not tuned.suffices:
        notes(f"Recall@10 {tuned.recall:.3f} is less than {LEAST_RECALL}: it is searched exactly")
    return tuned

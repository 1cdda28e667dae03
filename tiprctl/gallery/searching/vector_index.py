"""Approximate search of a gallery through its vector index: partitions around centroids, vectors of a few bits a value.

Lance's IVF_RQ: k-means divides the rows into partitions, and RaBitQ keeps each row's offset from its centroid in few
bits a value (Gao et al., "Practical and asymptotically optimal quantization of high-dimensional vectors", SIGMOD 2025).
A search looks at the codes of the partitions nearest to the query, then at the vectors of the best rows.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import ceil, isqrt, log10
from threading import Thread
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from tiprctl.gallery.keeping.engine import WRITABLE, EngineError, faults
from tiprctl.gallery.keeping.schema import KEY, VECTOR
from tiprctl.gallery.keeping.store import GalleryStore

CALIBRATED_TOP = 10
"""For how many results a query `Tuning.share` is chosen."""
LEAST_RECALL = 0.98
"""What every search by default settings is to reach."""
_SETTING = "vector_index"
_BITS = 4
"""A value. Texts are about as far from many crops, which fewer bits do not tell apart."""
_REPAIR = "Build the index anew: tiprctl index optimise."


@dataclass(frozen=True)
class Tuning:
    """How thoroughly an index is searched, so that it finds what an exact search would.

    Attributes:
        index: the name of the index, which no other ever has.
        trained_rows: how many rows there were when its partitions were laid out.
        partitions: how many there are.
        share: of the partitions that is probed at least, above 0 to 1.
        refine: how many times the wanted number of rows is compared exactly.
        recall: recall@10 that was measured with these.
    """

    index: str
    trained_rows: int
    partitions: int
    share: float = 1.0
    refine: int = 4
    recall: float | None = None

    @property
    def suffices(self) -> bool:
        """Whether the recall was measured and is enough; else all rows are compared."""
        return self.recall is not None and self.recall >= LEAST_RECALL

    def deepened(self, wanted: int, selectivity: float) -> Tuning:
        """The same recall for more results, or where a filter leaves the share `selectivity` of the rows.

        The best rows that a filter leaves lie as far from the query as many more would without it.
        """
        depth = 1 + max(0.0, log10(wanted / CALIBRATED_TOP))
        return replace(self, share=min(1.0, self.share * depth / selectivity))


def indexed_rows(store: GalleryStore) -> int | None:
    """How many rows the vector index covers; None where there is none."""
    present = _present(store)
    return present[0].num_rows_indexed if len(present) == 1 else None


def read_tuning(store: GalleryStore) -> Tuning | None:
    """As the gallery remembers it; None where the index that there is was not calibrated."""
    try:
        tuning = Tuning(**json.loads(store.settings()[_SETTING]))
    except (KeyError, ValueError, TypeError):
        return None
    return tuning if [one.name for one in _present(store)] == [tuning.index] else None


def write_tuning(store: GalleryStore, tuning: Tuning) -> None:
    """Have the gallery remember it, unless its index is there no more."""
    if is_present(store, tuning):
        store.set_settings({_SETTING: json.dumps(asdict(tuning))})


def is_present(store: GalleryStore, tuning: Tuning) -> bool:
    """Whether the index is still there: another process may have put one in its place."""
    return tuning.index in (one.name for one in _present(store))


def build(store: GalleryStore) -> Tuning:
    """Lay out the partitions of all rows, in an index beside the one that there is, which serves until then."""
    name = f"vectors_{store.dataset.version:012}_{uuid4().hex}"
    tuning = Tuning(name, trained_rows=len(store), partitions=max(1, isqrt(len(store))))
    with faults(store.uri, WRITABLE):
        store.dataset.create_index(
            VECTOR,
            "IVF_RQ",
            name=tuning.index,
            metric="cosine",
            num_partitions=tuning.partitions,
            num_bits=_BITS,
        )
    return tuning


def keep_newest(store: GalleryStore) -> None:
    """Do without all vector indexes but the one that was begun last: processes that build at once keep the same."""
    with faults(store.uri, WRITABLE):
        for name in sorted(one.name for one in _present(store))[:-1]:
            store.dataset.drop_index(name)


def extend(store: GalleryStore, tuning: Tuning) -> None:
    """Give the rows that the index lacks to its partitions, which stay as they are, if it is still there."""
    if is_present(store, tuning):
        with faults(store.uri, _REPAIR):
            store.dataset.optimize.optimize_indices(index_names=[tuning.index])


def warm(store: GalleryStore, tuning: Tuning) -> None:
    """Begin to read the index into memory, beside what else is to be done before the first search.

    A search needs most of it. Nothing is told of an index that is not there or cannot be read: the search tells.
    """

    def read() -> None:
        # The engine's faults alone: others are worth a traceback.
        with suppress(EngineError), faults(store.uri, _REPAIR):
            store.dataset.prewarm_index(tuning.index)

    # Not a daemon: the interpreter must not end while Lance's code runs.
    Thread(target=read).start()


def nearest(store: GalleryStore, query: np.ndarray, count: int, tuning: Tuning, where: str | None = None) -> pa.Table:
    """The `path` and `_rowid` of about the `count` best rows for a query `(D,)`, best first.

    Lance compares the rows that are not in the index one by one. It applies the filter `where` before it ranks.
    """
    with faults(store.uri, _REPAIR):
        return store.dataset.scanner(
            columns=[KEY, "_distance"],
            nearest={
                "column": VECTOR,
                "q": query,
                "k": count,
                "refine_factor": tuning.refine,
                "minimum_nprobes": ceil(tuning.share * tuning.partitions),
            },
            filter=where,
            prefilter=True,
            with_row_id=True,
        ).to_table()


def _present(store: GalleryStore) -> list[Any]:
    """The vector indexes as Lance tells of them: one, but while another takes its place."""
    with faults(store.uri, _REPAIR):
        return [one for one in store.dataset.describe_indices() if one.field_names == [VECTOR]]

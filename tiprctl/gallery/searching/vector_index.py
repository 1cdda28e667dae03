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

import numpy as np
import pyarrow as pa

from tiprctl.gallery.keeping.engine import WRITABLE, EngineError, faults
from tiprctl.gallery.keeping.schema import KEY, VECTOR
from tiprctl.gallery.keeping.store import GalleryStore

CALIBRATED_TOP = 10
"""For how many results a query `Tuning.share` is chosen."""
LEAST_RECALL = 0.98
"""What every search by default settings is to reach."""
_NAME = "vector_idx"
_SETTING = "vector_index"
_BITS = 4
"""A value. Texts are about as far from many crops, which fewer bits do not tell apart."""
_REPAIR = "Build the index anew: tiprctl index optimise."


@dataclass(frozen=True)
class Tuning:
    """How thoroughly an index is searched, so that it finds what an exact search would.

    Attributes:
        trained_rows: how many rows there were when its partitions were laid out.
        partitions: how many there are.
        share: of the partitions that is probed at least, above 0 to 1.
        refine: how many times the wanted number of rows is compared exactly.
        recall: recall@10 that was measured with these.
        index: the identifier of the index that it is for, while another is built; None: of that which there is.
    """

    trained_rows: int
    partitions: int
    share: float = 1.0
    refine: int = 4
    recall: float | None = None
    index: str | None = None

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
    described = _described(store)
    return described and described.num_rows_indexed


def read_tuning(store: GalleryStore) -> Tuning | None:
    """As the gallery remembers it; None where the index that there is was not calibrated, or by another version."""
    try:
        tuning = Tuning(**json.loads(store.settings()[_SETTING]))
    except (KeyError, ValueError, TypeError):
        return None
    described = _described(store)
    return tuning if described and tuning.index in (None, _identifier(described)) else None


def write_tuning(store: GalleryStore, tuning: Tuning) -> None:
    """Have the gallery remember it."""
    store.set_settings({_SETTING: json.dumps(asdict(tuning))})


def build(store: GalleryStore) -> Tuning:
    """Lay out the partitions of all rows, in place of those that there are, which serve until it is done."""
    tuning = Tuning(trained_rows=len(store), partitions=max(1, isqrt(len(store))))
    if (present := read_tuning(store)) is not None:
        write_tuning(store, replace(present, index=_identifier(_described(store))))
    with faults(store.uri, WRITABLE):
        store.dataset.create_index(
            VECTOR,
            "IVF_RQ",
            name=_NAME,
            metric="cosine",
            replace=True,
            num_partitions=tuning.partitions,
            num_bits=_BITS,
        )
    return tuning


def extend(store: GalleryStore) -> None:
    """Give the rows that the index lacks to its partitions, which stay as they are."""
    with faults(store.uri, _REPAIR):
        store.dataset.optimize.optimize_indices(index_names=[_NAME])


def warm(store: GalleryStore) -> None:
    """Begin to read the index into memory, beside what else is to be done before the first search.

    A search needs most of it. Nothing is told of an index that is not there or cannot be read: the search tells.
    """

    def read() -> None:
        # The engine's faults alone: others are worth a traceback.
        with suppress(EngineError), faults(store.uri, _REPAIR):
            store.dataset.prewarm_index(_NAME)

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


def _identifier(described: Any) -> str:
    """Another after every change of the index: it was built or extended, or its rows were moved to other files."""
    return " ".join(sorted(segment.uuid for segment in described.segments))


def _described(store: GalleryStore) -> Any:
    """As Lance tells of it; None where there is none."""
    with faults(store.uri, _REPAIR):
        return next((index for index in store.dataset.describe_indices() if index.name == _NAME), None)

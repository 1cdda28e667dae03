"""What a gallery holds, at a glance."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tiprctl.gallery.filling.origins import Remembered, recall
from tiprctl.gallery.keeping.engine import faults
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.gallery.keeping.schema import ModelIdentity, user_columns
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching.optimising import needed
from tiprctl.gallery.searching.vector_index import Tuning, indexed_rows, read_tuning


@dataclass(frozen=True)
class Status:
    """What a gallery holds.

    Attributes:
        cameras: how many rows each has, the most first; rows without a camera are not in it.
        first, last: the earliest and the latest time of a row; None where there are no rows.
        columns: the user's, by name, with their types.
        indexed: rows in the vector index; None where there is none. tuning: how it is searched.
        needs: why it should be optimised, None where it need not be.
        versions: how many there are to go back to.
        bytes: on disk; None in an object store.
        origins: the folders and lists that it was filled from.
    """

    rows: int
    cameras: dict[str, int]
    first: datetime | None
    last: datetime | None
    columns: dict[str, str]
    model: ModelIdentity
    indexed: int | None
    tuning: Tuning | None
    needs: str | None
    versions: int
    bytes: int | None
    origins: list[Remembered]

    @property
    def unindexed_share(self) -> float | None:
        """The share of rows that the vector index does not have; None where there is no index."""
        return None if self.indexed is None or not self.rows else 1 - self.indexed / self.rows

    @property
    def unfinished(self) -> list[str]:
        """What was begun and has not come to its end, a line each; it may still be under way."""
        begun = [f"{one.unfinished} of {one.origin.name}" for one in self.origins if one.unfinished]
        return begun + [f"describing {one.origin.name} anew" for one in self.origins if one.outdated]

    def as_document(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        times = {name: time and time.isoformat(" ", "seconds") for name, time in self.times.items()}
        return {**asdict(self), **times, "unindexed_share": self.unindexed_share, "unfinished": self.unfinished}

    @property
    def times(self) -> dict[str, datetime | None]:
        return {"first": self.first, "last": self.last}


def read_status(store: GalleryStore) -> Status:
    """The state of a gallery; raises EngineError where it cannot be read."""
    cameras: Counter[str] = Counter()
    times: list[datetime] = []
    for batch in store.scan(["camera", "time"]):
        cameras.update({one["values"]: one["counts"] for one in pc.value_counts(batch["camera"]).to_pylist()})
        times += [time for time in pc.min_max(batch["time"]).as_py().values() if time is not None]
        times = [min(times), max(times)] if times else []
    cameras.pop(None, None)
    with faults(store.uri, "Look whether it is damaged: tiprctl index optimise."):
        versions = len(store.dataset.versions())
    return Status(
        rows=len(store),
        cameras=dict(cameras.most_common()),
        first=times[0] if times else None,
        last=times[-1] if times else None,
        columns={name: str(kind) for name, kind in user_columns(store.schema).items()},
        model=store.identity,
        indexed=indexed_rows(store),
        tuning=read_tuning(store),
        needs=needed(store),
        versions=versions,
        bytes=_bytes(store.uri),
        origins=list(recall(store.settings()).values()),
    )


def _bytes(uri: str) -> int | None:
    if is_remote(uri):
        return None
    return sum(_size(Path(folder, name)) for folder, _, names in os.walk(uri) for name in names)


def _size(file: Path) -> int:
    """Its bytes; none where a writer has removed it since it was listed."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0

"""The rows that a gallery has before a job on a cluster, and which images are embedded beside or instead of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.listing import ImageFile
from tiprctl.gallery.keeping.places import key_of
from tiprctl.gallery.keeping.schema import KEY, STAMP
from tiprctl.gallery.keeping.store import GalleryStore

STAMP_BYTES = 16
"""Of a row's size and time."""
_UNKNOWN = -1
"""The size where a row tells none, which no file has."""


class Wanted(NamedTuple):
    """An image to embed, with the size and the time of the file that its row is of; None where it has no row."""

    image: ImageFile
    row: tuple[int, int] | None


class KnownRows:
    """The paths of a gallery's rows with the sizes and times of their files: 36 bytes a row.

    Args:
        store: at the version that images are compared with; it is read once.
    """

    def __init__(self, store: GalleryStore):
        self._schema = pa.schema([store.schema.field(name) for name in STAMP])
        stamps = [np.empty((0, 2), np.int64)]
        self._paths = DigestSet(_paths(store, stamps))
        self._stamps = np.concatenate(stamps)

    def wanted(self, root: str, images: Sequence[ImageFile]) -> list[Wanted]:
        """Those of the images below `root` that have no row, or one of a file of another size or time."""
        places = self._paths.find(key_of(root, image.path) for image in images)
        rows: list[tuple[int, int] | None] = [None] * len(images)
        known = np.flatnonzero(places >= 0)
        for which, stamp in zip(known, self._stamps[places[known]].tolist()):
            rows[which] = tuple(stamp)
        return [Wanted(image, row) for image, row in zip(images, rows) if row != (image.size, image.mtime_ns)]

    def stale(self, root: str, changed: Sequence[Wanted], paths: Collection[str]) -> pa.Table:
        """What the rows of these images say of their files, in the columns `STAMP`, where they are of these paths."""
        rows = [(key_of(root, one.image.path), *one.row) for one in changed]
        return pa.Table.from_pylist([dict(zip(STAMP, row)) for row in rows if row[0] in paths], self._schema)


def _paths(store: GalleryStore, stamps: list[np.ndarray]) -> Iterator[str]:
    """The paths of the rows; their sizes and times `(n, 2)` are put beside `stamps` as they are read."""
    for batch in store.scan(STAMP):
        columns = [pc.fill_null(batch[name], _UNKNOWN).to_numpy(zero_copy_only=False) for name in STAMP[1:]]
        stamps.append(np.stack(columns, axis=1))
        yield from batch[KEY].to_pylist()

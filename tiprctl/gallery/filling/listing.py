"""Images that were listed, in a few bytes each, and what could not be looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.keeping.places import key_of, root_key

SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])

ROWS_AT_ONCE = 8192
_LATEST_NS = 2**63 - 1
"""In the year 2262."""


class ImageFile(NamedTuple):
    """An image of a gallery: its path below the folder (posix), its size in bytes, its time of change."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> ImageFile:
        """A file as it is now; a time that a wrong clock gave is brought to what 64 bits hold."""
        return cls(path, status.st_size, max(-_LATEST_NS, min(status.st_mtime_ns, _LATEST_NS)))


@dataclass(frozen=True)
class Unreadable:
    """A file or folder below the gallery that was skipped, and why.

    Attributes:
        damaged: whether what it holds is at fault. Else it is gone, or the system or the object store did not give it,
            which may pass.
    """

    path: str
    reason: str
    damaged: bool = False


class Images(Sequence[ImageFile]):
    """Images as a table of `SCHEMA`: 20 bytes and the path for each, where a list of objects takes 250."""

    def __init__(self, table: pa.Table):
        self.table = table

    @classmethod
    def of(cls, images: Iterator[ImageFile] | Sequence[ImageFile]) -> Images:
        """The images of a list or a stream, in path order."""
        table = pa.Table.from_batches([_record_batch(some) for some in _chunks(images)], SCHEMA)
        # A folder without links is listed in order; sorting would hold it twice.
        if not _in_order(table["path"]):
            table = table.sort_by("path")
        for place, name in enumerate(("size", "mtime_ns"), start=1):
            table = table.set_column(place, name, table[name].combine_chunks())
        return cls(table)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sizes(self) -> np.ndarray:
        """In bytes, `(n,)` int64."""
        return self.table["size"].to_numpy()

    @property
    def times(self) -> np.ndarray:
        """Of change, in nanoseconds, `(n,)` int64."""
        return self.table["mtime_ns"].to_numpy()

    @overload
    def __getitem__(self, which: int) -> ImageFile: ...
    @overload
    def __getitem__(self, which: slice) -> Images: ...
    def __getitem__(self, which: int | slice) -> ImageFile | Images:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            return self.take(np.arange(start, stop, step))
        if not -len(self) <= which < len(self):
            raise IndexError(which)
        (row,) = self.table.slice(which % len(self), 1).to_pylist()
        return ImageFile(**row)

    def __iter__(self) -> Iterator[ImageFile]:
        for batch in self.table.to_batches(ROWS_AT_ONCE):
            yield from map(ImageFile, *(column.to_pylist() for column in batch.columns))

    @property
    def paths(self) -> Iterator[str]:
        for batch in self.table.to_batches(ROWS_AT_ONCE):
            yield from batch["path"].to_pylist()

    def take(self, places: np.ndarray) -> Images:
        """The images at these places, in their order."""
        # Arrow copies all the chunks that it takes from.
        first, last = (int(places.min()), int(places.max())) if len(places) else (0, -1)
        return Images(self.table.slice(first, last - first + 1).take(pa.array(places - first, pa.int64())))


@dataclass(frozen=True)
class Listing:
    """The images below `root` in path order, and what could not be looked at.

    A path that is absolute is where it says, not below `root`: a list of images may have such.

    Attributes:
        whole: whether these are all the images of the folder, so that others are there no more.
    """

    root: Path
    images: Images
    unreadable: list[Unreadable]
    whole: bool = True

    @cached_property
    def root_key(self) -> str:
        """The folder as a gallery knows it."""
        return root_key(self.root)

    @property
    def known_as(self) -> Iterator[str]:
        """The paths by which a gallery knows the images."""
        return (key_of(self.root_key, path) for path in self.images.paths)

    @cached_property
    def keys(self) -> DigestSet:
        """The same as a set, at the images' places."""
        return DigestSet(self.known_as)


def unreadable_for(path: str, error: OSError | UnicodeEncodeError) -> Unreadable:
    """Why a file could not be looked at."""
    if isinstance(error, UnicodeEncodeError):
        return Unreadable(path.encode(errors="backslashreplace").decode(), "its name is not valid UTF-8: rename it")
    if isinstance(error, FileNotFoundError):
        return Unreadable(path, "a link that leads nowhere")
    return Unreadable(path, error.strerror or str(error))


def _in_order(paths: pa.ChunkedArray) -> bool:
    return len(paths) < 2 or pc.all(pc.less_equal(paths[:-1], paths[1:])).as_py()


def _chunks(images: Iterator[ImageFile] | Sequence[ImageFile]) -> Iterator[list[ImageFile]]:
    chunk = []
    for image in images:
        chunk.append(image)
        if len(chunk) == ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _record_batch(images: Sequence[ImageFile]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(zip(*images), SCHEMA)], schema=SCHEMA)

"""The file that holds the decoded images of a data set: what is where in it, how it is read and written, its names.

`pixels-<height>x<width>.cache` holds two NumPy arrays (format .npy) one after the other: `stamps` (N,) uint64 and
`pixels` (N, 3, H, W) uint8. A stamp tells the image file whose pixels are in that row, by its path below the data set's
folder, its size and the time of its last change, so that a row is found again, and trusted, by its stamp alone: the
folder may move and the manifest may change. Until the file is whole it is called `.partial`, and rows that are not
written yet have the stamp 0. A whole file is never written to, since others may be reading it: where images changed, a
new one takes the rows of the others from it. So does one with other places for them, as where an image was left out:
the unfinished file is then put aside as `.older1`, `.older2` and so on, until the new one is whole.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from typing import BinaryIO

import numpy as np

DAMAGE = (IsADirectoryError, ValueError)
"""What reading a damaged file raises."""

_METHOD = 1
"""Changes when images are decoded or resized otherwise than before."""

_MISSING = 1
"""The stamp where there is no image file."""


@dataclass(frozen=True)
class Layout:
    """Where things are in a file: `head` is all before the pixels, with empty stamps; places count bytes from 0."""

    head: bytes
    stamps_at: int
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, count: int, size: tuple[int, int]) -> Layout:
        """That of a file of so many images of `size` (height, width)."""
        head, shape = io.BytesIO(), (count, 3, *size)
        _write_header(head, "<u8", (count,))
        stamps_at = head.tell()
        head.write(bytes(8 * count))
        _write_header(head, "|u1", shape)
        return cls(head.getvalue(), stamps_at, shape)

    def with_stamps(self, stamps: np.ndarray) -> bytes:
        """`head` with these stamps in it."""
        return self.head[: self.stamps_at] + stamps.tobytes() + self.head[self.stamps_at + stamps.nbytes :]

    @property
    def pixels_at(self) -> int:
        """Where the pixels begin."""
        return len(self.head)

    @property
    def row_bytes(self) -> int:
        """How large the pixels of an image are."""
        return int(np.prod(self.shape[1:]))

    @property
    def bytes(self) -> int:
        """How large the file is."""
        return self.pixels_at + self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class StampedImages:
    """What is in a file: `stamps` (N,) uint64, 0 where a row is not written yet, and `pixels` (N, 3, H, W) uint8."""

    stamps: np.ndarray
    pixels: np.ndarray

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each wanted stamp (W,) among the rows, and whether it is that of a file and in any row at all.

        A place means nothing where there is no such row.
        """
        if not len(self.stamps):
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
        order = self.stamps.argsort()
        places = order[np.searchsorted(self.stamps, wanted, sorter=order).clip(max=len(order) - 1)]
        return places, (self.stamps[places] == wanted) & (wanted != _MISSING)


@dataclass(frozen=True)
class ImageFile:
    """The file of the images of `size` (height, width) in a data set's folder, under each of its names."""

    root: Path
    size: tuple[int, int]

    @property
    def whole(self) -> Path:
        """What it is called once all images are in it."""
        return self.root / _name(spell_size(self.size))

    @property
    def unfinished(self) -> Path:
        """What it is called until then."""
        return _unfinished(self.whole)

    def put_aside(self) -> list[Path]:
        """The unfinished files whose rows a new one has yet to take."""
        return sorted(self.root.glob(_aside(self.whole, "*").name))

    def read(self, path: Path) -> StampedImages:
        """The images in `path`, mapped: of one file, though another takes its name meanwhile.

        Raises:
            OSError: it cannot be read. What is in `DAMAGE`: it is no file of images of this size.
        """
        with path.open("rb") as handle:
            np.lib.format.read_magic(handle)
            (count,), _, _ = np.lib.format.read_array_header_1_0(handle)
            held = os.fstat(handle.fileno()).st_size
            # A damaged number of images would ask for more memory than there is.
            if not 0 < count * 3 * self.size[0] * self.size[1] < held:
                raise ValueError(f"{path} holds no {count} images")
            layout = Layout.of(count, self.size)
            handle.seek(0)
            head = handle.read(layout.pixels_at)
            stamps = np.frombuffer(head, "<u8", count, layout.stamps_at)
            if head != layout.with_stamps(stamps) or held != layout.bytes:
                raise ValueError(f"{path} is no whole file of {count} images")
            return StampedImages(stamps, np.memmap(handle, np.uint8, "r", layout.pixels_at, layout.shape))

    def saved(self, path: Path) -> StampedImages:
        """As `read`; no images where the file is missing or damaged."""
        try:
            return self.read(path)
        except (FileNotFoundError, *DAMAGE):
            return StampedImages(np.zeros(0, np.uint64), np.zeros((0, 3, *self.size), np.uint8))

    def rows_saved(self, wanted: np.ndarray) -> np.ndarray:
        """Which rows of the unfinished file are saved, of the images with the `wanted` stamps (N,), bool (N,).

        None where any are in another place than they would be written to.
        """
        saved = self.saved(self.unfinished)
        places, found = saved.find(wanted)
        fits = len(saved.stamps) == len(wanted) and np.array_equal(places[found], np.flatnonzero(found))
        return found if fits else np.zeros(len(wanted), bool)

    def begin(self, wanted: np.ndarray) -> None:
        """Make an unfinished file in which nothing is saved yet; what is not written takes no room on most disks.

        One that holds wanted rows in other places is put aside.
        """
        layout = Layout.of(len(wanted), self.size)
        if self.saved(self.unfinished).find(wanted)[1].any():
            names = (_aside(self.whole, number) for number in numbers(1))
            self.unfinished.rename(next(name for name in names if not name.exists()))
        with self.unfinished.open("wb") as handle:
            handle.write(layout.head)
            handle.truncate(layout.bytes)

    @contextmanager
    def writer(self, wanted: np.ndarray, saved: np.ndarray) -> Iterator[RowWriter]:
        """What writes the rows of the unfinished file that are not `saved` (N,), with their `wanted` stamps (N,).

        One process at a time may do so: a second one would empty what the first has written.
        """
        with self.unfinished.open("r+b") as handle:
            yield RowWriter(handle, Layout.of(len(wanted), self.size), wanted, saved)


class RowWriter:
    """Writes rows of an open file, so that no stamp ever stands over the pixels of another image."""

    def __init__(self, handle: BinaryIO, layout: Layout, stamps: np.ndarray, saved: np.ndarray):
        """Rows will get these `stamps` (N,); those of the rows that are not `saved` (N,) are emptied before."""
        self.handle = handle
        self.layout = layout
        self.stamps = stamps
        _write_at(handle, layout.stamps_at, stamps * saved)
        _flush(handle)

    def write(self, rows: np.ndarray, images: Iterable[np.ndarray], advance: Callable[[int], None]) -> None:
        """Write the images of these rows, each (3, H, W); a stamp is written once its pixels are on the disk.

        `advance` is told of each image. Where one cannot be had, those before it are saved.
        """
        written: list[int] = []
        try:
            for row, image in zip(rows.tolist(), images):
                _write_at(self.handle, self.layout.pixels_at + row * self.layout.row_bytes, image)
                written.append(row)
                advance(1)
        finally:
            _flush(self.handle)
            for row in written:
                _write_at(self.handle, self.layout.stamps_at + row * self.stamps.itemsize, self.stamps[row])
            _flush(self.handle)


def stamps_of(root: Path, paths: Sequence[Path]) -> np.ndarray:
    """The stamps of these image files below `root`, (I,) uint64: none is 0.

    Two files, or one before and after a change, have two stamps, but for a rare chance. Where there is no file, the
    stamp is one that is never found.
    """
    return np.array([_stamp(root, path) for path in paths], "<u8")


def all_files(root: Path) -> list[Path]:
    """Those of any size in a data set's folder: whole, unfinished and put aside."""
    whole = Path(_name("*x*"))
    patterns = (whole, _unfinished(whole), _aside(whole, "*"))
    return sorted(path for pattern in patterns for path in root.glob(pattern.name))


def whole_sizes(root: Path) -> list[str]:
    """The sizes, as they are spelt, of the whole files in a data set's folder."""
    before, after = _name("*").split("*")
    return sorted(path.name.removeprefix(before).removesuffix(after) for path in root.glob(_name("*x*")))


def spell_size(size: tuple[int, int]) -> str:
    """A size (height, width) as in a file's name: 384x128."""
    return f"{size[0]}x{size[1]}"


def _name(size: str) -> str:
    return f"pixels-{size}.cache"


def _unfinished(whole: Path) -> Path:
    return whole.with_suffix(".partial")


def _aside(whole: Path, number: int | str) -> Path:
    """What an unfinished file is called while another takes its rows."""
    return whole.with_suffix(f".older{number}")


def _stamp(root: Path, path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return _MISSING
    about = f"{_METHOD}\n{path.relative_to(root).as_posix()}\n{status.st_size}\n{status.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=8).digest()) | 2


def _write_header(handle: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(handle, {"descr": dtype, "fortran_order": False, "shape": shape})


def _write_at(handle: BinaryIO, place: int, values: np.ndarray | np.uint64) -> None:
    handle.seek(place)
    handle.write(values.tobytes())


def _flush(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())

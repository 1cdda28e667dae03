"""The images of a data set, decoded and resized once, in one file beside its manifest that is read by mapping it.

The file `pixels-<height>x<width>.cache` holds two NumPy arrays (format .npy) one after the other: `stamps` (N,) uint64
and `pixels` (N, 3, H, W) uint8. A stamp tells the image file whose pixels are in that row, by its path below the data
set's folder, its size and the time of its last change, so that a row is found again, and trusted, by its stamp alone:
the folder may move and the manifest may change. Until the file is whole it is called `.partial`, and rows that are not
written yet have the stamp 0. One process at a time writes it: a second one would empty the pixels of rows that the first
is about to stamp.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tiprctl.data.manifest import Manifest, Split
from tiprctl.data.pruning import Progress
from tiprctl.errors import InputError
from tiprctl.files import sole_writer
from tiprctl.images import load_pixels
from tiprctl.interrupt import stop_signal

_METHOD = 1
"""Changes when images are decoded or resized otherwise than before."""

_SAVE_EVERY = 256
"""Images between two saves: all that a killed run loses."""

_UNREADABLE = (OSError, ValueError)
"""What reading a damaged file raises."""


@dataclass(frozen=True)
class ImageCache:
    """Images in the mapped file: `pixels` (N, 3, H, W) uint8, and `rows` (I,), where each image of a split is in it."""

    pixels: np.ndarray
    rows: np.ndarray

    def read(self, images: np.ndarray) -> Tensor:
        """The images with these numbers, uint8 `(B, 3, H, W)`, in memory of their own."""
        return torch.from_numpy(self.pixels[self.rows[images]])


def find_image_cache(split: Split, size: tuple[int, int]) -> tuple[ImageCache | None, str | None]:
    """The images of a split at `size` (height, width), from the cache; or None, with a remark where one does not fit.

    There is no remark where nobody made a cache. All images of the split must be in it as they are now.
    """
    file = cache_file(split.root, size)
    others = sorted(path.stem.removeprefix("pixels-") for path in split.root.glob(cache_file(Path(), ("*", "*")).name))
    if not others:
        return None, None
    wanted = _stamps(split.root, split.image_paths)
    try:
        stamps, layout = _read_stamps(file, size)
    except FileNotFoundError:
        return None, _remark(f"The image cache in {split.root} is of {', '.join(others)} pixels", split, size)
    except _UNREADABLE:
        return None, _remark(f"The image cache {file} is damaged", split, size)
    rows, found = _look_up(wanted, stamps)
    if not found.all():
        changed = f"{(~found).sum():,} of {len(wanted):,} images changed since the image cache {file} was made"
        return None, _remark(changed, split, size)
    return ImageCache(np.memmap(file, np.uint8, "r", layout.pixels_at, layout.shape), rows), None


def cache_images(
    manifest: Manifest,
    size: tuple[int, int],
    *,
    workers: int = 1,
    progress: Progress = lambda total, done: nullcontext(lambda count: None),
) -> Path:
    """Write all images of a data set, resized to `size` (height, width), to one file, unless that is done.

    What a run that was stopped has saved is taken up.

    Args:
        workers: threads that decode; Pillow's decoders and torch leave the interpreter to the others meanwhile.
        progress: opened with the number of images, and of those done by former runs, where there is work left; told
            how many more are done.

    Raises:
        ImageError: an image cannot be read; those before it are saved.
        InputError: the disk is full, the folder cannot be written, or another process is writing the same cache.
        KeyboardInterrupt: Ctrl-C; what was decoded is saved.
    """
    target = cache_file(manifest.root, size)
    unfinished = target.with_suffix(".partial")
    paths = [manifest.root.absolute() / path for path in manifest.captions["path"].unique()]
    wanted = _stamps(manifest.root.absolute(), paths)
    if np.array_equal(_saved(target, len(paths), size), wanted):
        return target
    layout = _Layout.of(len(paths), size)
    with _writing(unfinished), sole_writer(target):
        saved = _saved(unfinished, len(paths), size)
        left = np.flatnonzero(saved != wanted)
        _check_space(unfinished, len(left) * layout.row_bytes)
        if not saved.any():
            _begin(unfinished, layout)
        with progress(len(paths), len(paths) - len(left)) as advance, unfinished.open("r+b") as handle:
            _write_rows(handle, layout, left, paths, wanted, workers, advance)
        unfinished.replace(target)
    return target


def cache_file(root: Path, size: tuple[int | str, int | str]) -> Path:
    """Where the cache of images of `size` (height, width) is, in the data set's folder."""
    return root / f"pixels-{_spelt(size)}.cache"


@dataclass(frozen=True)
class _Layout:
    """Where things are in a file: `head` is all before the pixels, with empty stamps; places count bytes from 0."""

    head: bytes
    stamps_at: int
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, count: int, size: tuple[int, int]) -> _Layout:
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
        return len(self.head)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:]))

    @property
    def bytes(self) -> int:
        return self.pixels_at + self.shape[0] * self.row_bytes


def _write_header(handle: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(handle, {"descr": dtype, "fortran_order": False, "shape": shape})


def _read_stamps(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, _Layout]:
    """The stamps of a file, and its layout; raises what is in `_UNREADABLE` where these are not what they should be."""
    with file.open("rb") as handle:
        np.lib.format.read_magic(handle)
        (count,), _, _ = np.lib.format.read_array_header_1_0(handle)
        held = file.stat().st_size
        # A damaged number of images would ask for more memory than there is.
        layout = _Layout.of(count if 0 < count < held else 0, size)
        handle.seek(0)
        head = handle.read(layout.pixels_at)
    stamps = np.frombuffer(head, "<u8", layout.shape[0], layout.stamps_at)
    if head != layout.with_stamps(stamps) or held != layout.bytes:
        raise ValueError(f"{file} is no whole cache of {count} images")
    return stamps, layout


def _saved(file: Path, count: int, size: tuple[int, int]) -> np.ndarray:
    """The stamps of the rows that `file` holds so far, `(count,)`; all 0 where it is missing, damaged or of others."""
    try:
        stamps, _ = _read_stamps(file, size)
    except _UNREADABLE:
        stamps = np.zeros(0, np.uint64)
    return stamps if len(stamps) == count else np.zeros(count, np.uint64)


def _begin(file: Path, layout: _Layout) -> None:
    """A file of that layout in which nothing is saved yet; what is not written takes no room on most disks."""
    with file.open("wb") as handle:
        handle.write(layout.head)
        handle.truncate(layout.bytes)


def _write_rows(
    handle: BinaryIO,
    layout: _Layout,
    rows: np.ndarray,
    paths: Sequence[Path],
    stamps: np.ndarray,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Decode the images of these rows into the file; a stamp is written once its pixels are on the disk."""
    with stop_signal() as stopped, ThreadPool(max(1, workers)) as pool:
        for start in range(0, len(rows), _SAVE_EVERY):
            some = rows[start : start + _SAVE_EVERY]
            images = pool.imap(partial(load_pixels, size=layout.shape[2:]), [paths[row] for row in some])
            written: list[int] = []
            try:
                for row, image in zip(some.tolist(), images):
                    _write_at(handle, layout.pixels_at + row * layout.row_bytes, image.transpose(2, 0, 1))
                    written.append(row)
                    advance(1)
            finally:
                _flush(handle)
                for row in written:
                    _write_at(handle, layout.stamps_at + row * stamps.itemsize, stamps[row])
                _flush(handle)
            if stopped:
                raise KeyboardInterrupt


def _write_at(handle: BinaryIO, place: int, values: np.ndarray | np.uint64) -> None:
    handle.seek(place)
    handle.write(values.tobytes())


def _flush(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _stamps(root: Path, paths: Sequence[Path]) -> np.ndarray:
    """A number for each image file, uint64: another for every file and for a changed one, but for a rare chance.

    It is 1 where there is no such file, and never 0.
    """
    return np.array([_stamp(root, path) for path in paths], "<u8")


def _stamp(root: Path, path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 1
    about = f"{_METHOD}\n{path.relative_to(root).as_posix()}\n{status.st_size}\n{status.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=8).digest()) | 2


def _look_up(wanted: np.ndarray, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each wanted stamp among the stamps, and whether it is one of them at all."""
    order = stamps.argsort()
    places = order[np.searchsorted(stamps, wanted, sorter=order).clip(max=len(stamps) - 1)]
    return places, stamps[places] == wanted


def _check_space(file: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise InputError(
            f"The image cache needs {needed / 1e9:,.1f} GB, and the disk has {free / 1e9:,.1f} GB left",
            where=file,
            remedy="Free some space, cache smaller images (--cache-size), or train without a cache.",
        )


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write the image cache: {error.strerror or error}",
            where=file,
            remedy="Free some space or give write access, then run it again: it goes on where it stopped.",
        ) from error


def _remark(what: str, split: Split, size: tuple[int, int]) -> str:
    command = f"tiprctl prepare {split.dataset} --root {split.root} --cache-size {_spelt(size)}"
    return f"{what}: images are decoded from their files, which takes longer. Make it anew with `{command}`"


def _spelt(size: tuple[int | str, int | str]) -> str:
    return f"{size[0]}x{size[1]}"

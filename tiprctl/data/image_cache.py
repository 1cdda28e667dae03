"""The images of a data set, decoded and resized once, in one file beside its manifest that is read by mapping it.

The file `pixels-<height>x<width>.cache` holds two NumPy arrays (format .npy) one after the other: `stamps` (N,) uint64
and `pixels` (N, 3, H, W) uint8. A stamp tells the image file whose pixels are in that row, by its path below the data
set's folder, its size and the time of its last change, so that a row is found again, and trusted, by its stamp alone:
the folder may move and the manifest may change. Until the file is whole it is called `.partial`, and rows that are not
written yet have the stamp 0. A whole file is never written to, since others may be reading it: where images changed, a
new one takes the rows of the others from it. So does one with other places for them, as where an image was left out:
the unfinished file is then put aside as `.older1`, `.older2` and so on, until the new one is whole. One process at a time writes: a second one would empty the pixels of rows
that the first is about to stamp.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count as numbers
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tiprctl.data.manifest import Manifest, Split
from tiprctl.errors import InputError
from tiprctl.files import being_written, sole_writer, spell_bytes
from tiprctl.images import load_pixels
from tiprctl.interrupt import StopFlag, stop_signal
from tiprctl.meter import ResumedMeter

_METHOD = 1
"""Changes when images are decoded or resized otherwise than before."""

_SAVE_EVERY = 256
"""Images between two saves: all that a killed run loses."""

_MISSING = 1
"""The stamp where there is no image file."""

_DAMAGE = (IsADirectoryError, ValueError)
"""What reading a damaged file raises."""


class CachingInterrupted(KeyboardInterrupt):
    """Ctrl-C while images were cached: `kept` of all `total` images are saved."""

    def __init__(self, kept: int, total: int):
        super().__init__(f"{kept:,} of {total:,} images are decoded and kept")
        self.kept = kept
        self.total = total


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

    There is no remark where nobody began a cache. All images of the split must be in it as they are now.
    """
    file = cache_file(split.root, size)
    anew = f"Make it anew with {_command(split, size)}"
    try:
        stamps, pixels = _read(file, size)
    except FileNotFoundError:
        return None, _absence(split, size)
    except _DAMAGE:
        return None, _remark(f"The image cache {file} is damaged", anew)
    except OSError as error:
        return None, _remark(f"The image cache {file} cannot be read: {error.strerror}", "Give read access to it")
    wanted = _stamps(split.root, split.image_paths)
    rows, found = _look_up(wanted, stamps)
    if not found.all():
        changed = f"{(~found).sum():,} of {len(wanted):,} images changed since the image cache {file} was made"
        return None, _remark(changed, anew)
    return ImageCache(pixels, rows), None


def cache_images(
    manifest: Manifest,
    size: tuple[int, int],
    *,
    workers: int = 1,
    progress: ResumedMeter = lambda total, done: nullcontext(lambda count: None),
) -> Path:
    """Write all images of a data set, resized to `size` (height, width), to one file, unless that is done.

    What a run that was stopped has saved is taken up, though the manifest changed since, and so are the rows of an
    older cache of that size whose images are the same as then.

    Args:
        workers: threads that decode; Pillow's decoders and torch leave the interpreter to the others meanwhile.
        progress: opened with the number of images, and of those done by former runs, where there is work left; told
            how many more are done.

    Raises:
        ImageError: an image cannot be read; those before it are saved.
        InputError: the disk is full, the folder cannot be written, a file in it cannot be read, or another process is
            writing the same cache.
        CachingInterrupted: Ctrl-C; what was decoded is saved.
    """
    target = cache_file(manifest.root, size)
    unfinished = _unfinished(target)
    paths = [manifest.root.absolute() / path for path in manifest.captions["path"].unique()]
    wanted = _stamps(manifest.root.absolute(), paths)
    with _writing(unfinished):
        if _is_whole(target, size, wanted):
            return target
        with sole_writer(target):
            # Another process may have finished it meanwhile.
            if _is_whole(target, size, wanted):
                return target
            try:
                _complete(target, size, paths, wanted, workers, progress)
            except KeyboardInterrupt as interrupt:
                raise CachingInterrupted(_count_kept(target, size, wanted), len(paths)) from interrupt
            unfinished.replace(target)
            for file in _put_aside(target):
                file.unlink()
    return target


def cache_bytes(count: int, size: tuple[int, int]) -> int:
    """How large a cache of so many images of `size` (height, width) is."""
    return _Layout.of(count, size).bytes


def other_caches(root: Path, size: tuple[int, int]) -> list[tuple[Path, int]]:
    """The other caches and unfinished ones in a data set's folder, which training at `size` does not read.

    Each comes with the bytes that it takes. Those that a process is writing are left out.
    """
    own, any_size = cache_file(root, size), cache_file(Path(), ("*", "*"))
    names = (any_size.name, _unfinished(any_size).name, _aside(any_size, "*").name)
    found = sorted(path for name in names for path in root.glob(name) if path != own)
    return [(path, _room(path)) for path in found if not being_written(path)]


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


def _read(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The stamps of a file, and its pixels, mapped: of one file, though another takes its name meanwhile.

    Raises:
        OSError: it cannot be read. What is in `_DAMAGE`: it is no cache of that size.
    """
    with file.open("rb") as handle:
        np.lib.format.read_magic(handle)
        (count,), _, _ = np.lib.format.read_array_header_1_0(handle)
        held = os.fstat(handle.fileno()).st_size
        # A damaged number of images would ask for more memory than there is.
        if not 0 < count * 3 * size[0] * size[1] < held:
            raise ValueError(f"{file} holds no {count} images")
        layout = _Layout.of(count, size)
        handle.seek(0)
        head = handle.read(layout.pixels_at)
        stamps = np.frombuffer(head, "<u8", layout.shape[0], layout.stamps_at)
        if head != layout.with_stamps(stamps) or held != layout.bytes:
            raise ValueError(f"{file} is no whole cache of {count} images")
        return stamps, np.memmap(handle, np.uint8, "r", layout.pixels_at, layout.shape)


def _saved(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """As `_read`; no stamps and no pixels where the file is missing or damaged."""
    try:
        return _read(file, size)
    except (FileNotFoundError, *_DAMAGE):
        return np.zeros(0, np.uint64), np.zeros((0, 3, *size), np.uint8)


def _is_whole(target: Path, size: tuple[int, int], wanted: np.ndarray) -> bool:
    return np.array_equal(_saved(target, size)[0], wanted)


def _done(unfinished: Path, size: tuple[int, int], wanted: np.ndarray) -> np.ndarray:
    """Which rows of an unfinished file are saved, of the images as they are now, bool like `wanted`.

    None where any are in another place than they would be written to.
    """
    stamps, _ = _saved(unfinished, size)
    places, found = _look_up(wanted, stamps)
    fits = len(stamps) == len(wanted) and np.array_equal(places[found], np.flatnonzero(found))
    return found if fits else np.zeros(len(wanted), bool)


def _count_kept(target: Path, size: tuple[int, int], wanted: np.ndarray) -> int:
    """How many wanted images the next run need not decode, since some file has them."""
    files = (_unfinished(target), target, *_put_aside(target))
    return np.count_nonzero(sum(_look_up(wanted, _saved(file, size)[0])[1] for file in files))


def _begin(target: Path, size: tuple[int, int], wanted: np.ndarray) -> None:
    """An unfinished file in which nothing is saved yet; what is not written takes no room on most disks.

    One that holds wanted rows in other places is put aside.
    """
    unfinished, layout = _unfinished(target), _Layout.of(len(wanted), size)
    if _look_up(wanted, _saved(unfinished, size)[0])[1].any():
        unfinished.rename(next(file for number in numbers(1) if not (file := _aside(target, number)).exists()))
    with unfinished.open("wb") as handle:
        handle.write(layout.head)
        handle.truncate(layout.bytes)


def _go_on(handle: BinaryIO, layout: _Layout, stamps: np.ndarray, done: np.ndarray) -> None:
    """Empty the stamps of the rows that will be written: none may stand over the pixels of another image."""
    _write_at(handle, layout.stamps_at, stamps * done)
    _flush(handle)


def _complete(
    target: Path,
    size: tuple[int, int],
    paths: Sequence[Path],
    wanted: np.ndarray,
    workers: int,
    progress: ResumedMeter,
) -> None:
    """Make the unfinished file whole: with rows of the older files where they have them, else decoded ones."""
    unfinished, layout = _unfinished(target), _Layout.of(len(paths), size)
    done = _done(unfinished, size, wanted)
    _check_space(unfinished, np.count_nonzero(~done) * layout.row_bytes)
    if not done.any():
        _begin(target, size, wanted)

    def decoded(rows: np.ndarray) -> Iterator[np.ndarray]:
        images = pool.imap(partial(load_pixels, size=size), [paths[row] for row in rows])
        return (image.transpose(2, 0, 1) for image in images)

    with (
        progress(len(paths), np.count_nonzero(done)) as advance,
        unfinished.open("r+b") as handle,
        ThreadPool(max(1, workers)) as pool,
        stop_signal() as stopped,
    ):
        _go_on(handle, layout, wanted, done)
        for file in (target, *_put_aside(target)):
            stamps, pixels = _saved(file, size)
            places, found = _look_up(wanted, stamps)
            taken = partial(_rows_at, pixels, places)
            _write_rows(handle, layout, np.flatnonzero(~done & found), taken, wanted, advance, stopped)
            done |= found
        _write_rows(handle, layout, np.flatnonzero(~done), decoded, wanted, advance, stopped)


def _rows_at(pixels: np.ndarray, places: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[place] for place in places[rows])


def _write_rows(
    handle: BinaryIO,
    layout: _Layout,
    rows: np.ndarray,
    images: Callable[[np.ndarray], Iterable[np.ndarray]],
    stamps: np.ndarray,
    advance: Callable[[int], None],
    stopped: StopFlag,
) -> None:
    """Write the `images` of these rows, each (3, H, W); a stamp is written once its pixels are on the disk."""
    for start in range(0, len(rows), _SAVE_EVERY):
        some = rows[start : start + _SAVE_EVERY]
        written: list[int] = []
        try:
            for row, image in zip(some.tolist(), images(some)):
                _write_at(handle, layout.pixels_at + row * layout.row_bytes, image)
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

    It is `_MISSING` where there is no such file, and never 0.
    """
    return np.array([_stamp(root, path) for path in paths], "<u8")


def _stamp(root: Path, path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return _MISSING
    about = f"{_METHOD}\n{path.relative_to(root).as_posix()}\n{status.st_size}\n{status.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=8).digest()) | 2


def _look_up(wanted: np.ndarray, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each wanted stamp among the stamps, and whether it is that of a file and one of them at all."""
    if not len(stamps):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = stamps.argsort()
    places = order[np.searchsorted(stamps, wanted, sorter=order).clip(max=len(stamps) - 1)]
    return places, (stamps[places] == wanted) & (wanted != _MISSING)


def _check_space(file: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise InputError(
            f"The image cache needs {spell_bytes(needed)}, and the disk has {spell_bytes(free)} left",
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
            where=error.filename or file,
            remedy="Free some space or give access to it, then run it again: it goes on where it stopped.",
        ) from error


def _absence(split: Split, size: tuple[int, int]) -> str | None:
    """What to say where there is no cache of `size`: nothing, unless there are others, or it was begun."""
    if _unfinished(cache_file(split.root, size)).exists():
        what = f"The image cache of {_spelt(size)} pixels in {split.root} is not finished"
        return _remark(what, f"Finish it with {_command(split, size)}")
    others = sorted(path.stem.removeprefix("pixels-") for path in split.root.glob(cache_file(Path(), ("*", "*")).name))
    if not others:
        return None
    what = f"The image cache in {split.root} is of {', '.join(others)} pixels"
    return _remark(what, f"Make one that fits with {_command(split, size)}")


def _remark(what: str, remedy: str) -> str:
    return f"{what}: images are decoded from their files, which takes longer. {remedy}"


def _command(split: Split, size: tuple[int, int]) -> str:
    """What caches the images of the data set as it was prepared, whichever options that took."""
    return f"`tiprctl prepare {split.dataset} --root {shlex.quote(str(split.root))} --cache-size {_spelt(size)}`"


def _unfinished(target: Path) -> Path:
    return target.with_suffix(".partial")


def _aside(target: Path, number: int | str) -> Path:
    """What an unfinished file is called while another takes its rows."""
    return target.with_suffix(f".older{number}")


def _put_aside(target: Path) -> list[Path]:
    return sorted(target.parent.glob(_aside(target, "*").name))


def _room(file: Path) -> int:
    """The bytes that a file takes on the disk: what an unfinished one has not written takes none on most."""
    status = file.stat()
    return min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))


def _spelt(size: tuple[int | str, int | str]) -> str:
    return f"{size[0]}x{size[1]}"

"""The images of a data set, decoded and resized once, in one file beside its manifest that is read by mapping it.

All images of the data set are in it, whichever their split, as `image_file` lays them out. One process at a time writes
it; what a run that was stopped has saved, and what older files hold, is not decoded again.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiprctl.data.image_file import DAMAGE, ImageFile, Layout, RowWriter, all_files, spell_size, stamps_of, whole_sizes
from tiprctl.data.manifest import Manifest, Split
from tiprctl.errors import InputError
from tiprctl.files import being_written, sole_writer, spell_bytes
from tiprctl.interrupt import StopFlag, stop_signal
from tiprctl.meter import ResumedMeter
from tiprctl.pixels import load_pixels

_SAVE_EVERY = 256
"""Images between two saves: all that a killed run loses."""


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
    file = ImageFile(split.root, size)
    anew = f"Make it anew with {_command(split, size)}"
    try:
        images = file.read(file.whole)
    except FileNotFoundError:
        return None, _absence(split, size)
    except DAMAGE:
        return None, _remark(f"The image cache {file.whole} is damaged", anew)
    except OSError as error:
        return None, _remark(f"The image cache {file.whole} cannot be read: {error.strerror}", "Give read access to it")
    rows, found = images.find(stamps_of(split.root, split.image_paths))
    if not found.all():
        changed = f"{(~found).sum():,} of {len(found):,} images changed since the image cache {file.whole} was made"
        return None, _remark(changed, anew)
    return ImageCache(images.pixels, rows), None


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
    file = ImageFile(manifest.root, size)
    paths = [manifest.root.absolute() / path for path in manifest.captions["path"].unique()]
    wanted = stamps_of(manifest.root.absolute(), paths)
    with _writing(file.unfinished):
        if _is_whole(file, wanted):
            return file.whole
        with sole_writer(file.whole):
            # Another process may have finished it meanwhile.
            if _is_whole(file, wanted):
                return file.whole
            try:
                _complete(file, paths, wanted, workers, progress)
            except KeyboardInterrupt as interrupt:
                raise CachingInterrupted(_count_kept(file, wanted), len(paths)) from interrupt
            file.unfinished.replace(file.whole)
            for path in file.put_aside():
                path.unlink()
    return file.whole


def cache_bytes(count: int, size: tuple[int, int]) -> int:
    """How large a cache of so many images of `size` (height, width) is."""
    return Layout.of(count, size).bytes


def other_caches(root: Path, size: tuple[int, int]) -> list[tuple[Path, int]]:
    """The other caches and unfinished ones in a data set's folder, which training at `size` does not read.

    Each comes with the bytes that it takes. Those that a process is writing are left out.
    """
    others = (path for path in all_files(root) if path != ImageFile(root, size).whole)
    return [(path, _room(path)) for path in others if not being_written(path)]


def _is_whole(file: ImageFile, wanted: np.ndarray) -> bool:
    return np.array_equal(file.saved(file.whole).stamps, wanted)


def _count_kept(file: ImageFile, wanted: np.ndarray) -> int:
    """How many wanted images the next run need not decode, since some file has them."""
    paths = (file.unfinished, file.whole, *file.put_aside())
    return np.count_nonzero(sum(file.saved(path).find(wanted)[1] for path in paths))


def _complete(
    file: ImageFile, images: Sequence[Path], wanted: np.ndarray, workers: int, progress: ResumedMeter
) -> None:
    """Make the unfinished file whole: with rows of the older files where they have them, else decoded ones."""
    done = file.rows_saved(wanted)
    _check_space(file.unfinished, np.count_nonzero(~done) * Layout.of(len(images), file.size).row_bytes)
    if not done.any():
        file.begin(wanted)

    def decoded(rows: np.ndarray) -> Iterator[np.ndarray]:
        loaded = pool.imap(partial(load_pixels, size=file.size), [images[row] for row in rows])
        return (pixels.transpose(2, 0, 1) for pixels in loaded)

    with (
        progress(len(images), np.count_nonzero(done)) as advance,
        ThreadPool(max(1, workers)) as pool,
        stop_signal() as stopped,
        file.writer(wanted, done) as writer,
    ):
        for path in (file.whole, *file.put_aside()):
            older = file.saved(path)
            places, found = older.find(wanted)
            taken = partial(_rows_at, older.pixels, places)
            _write_rows(writer, np.flatnonzero(~done & found), taken, advance, stopped)
            done |= found
        _write_rows(writer, np.flatnonzero(~done), decoded, advance, stopped)


def _rows_at(pixels: np.ndarray, places: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[place] for place in places[rows])


def _write_rows(
    writer: RowWriter,
    rows: np.ndarray,
    images: Callable[[np.ndarray], Iterable[np.ndarray]],
    advance: Callable[[int], None],
    stopped: StopFlag,
) -> None:
    """Write the `images` of these rows, each (3, H, W), and save them every now and then."""
    for start in range(0, len(rows), _SAVE_EVERY):
        some = rows[start : start + _SAVE_EVERY]
        writer.write(some, images(some), advance)
        if stopped:
            raise KeyboardInterrupt


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
    if ImageFile(split.root, size).unfinished.exists():
        what = f"The image cache of {spell_size(size)} pixels in {split.root} is not finished"
        return _remark(what, f"Finish it with {_command(split, size)}")
    others = whole_sizes(split.root)
    if not others:
        return None
    what = f"The image cache in {split.root} is of {', '.join(others)} pixels"
    return _remark(what, f"Make one that fits with {_command(split, size)}")


def _remark(what: str, remedy: str) -> str:
    return f"{what}: images are decoded from their files, which takes longer. {remedy}"


def _command(split: Split, size: tuple[int, int]) -> str:
    """What caches the images of the data set as it was prepared, whichever options that took."""
    return f"`tiprctl prepare {split.dataset} --root {shlex.quote(str(split.root))} --cache-size {spell_size(size)}`"


def _room(file: Path) -> int:
    """The bytes that a file takes on the disk: what an unfinished one has not written takes none on most."""
    status = file.stat()
    return min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))

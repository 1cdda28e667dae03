"""Images decoded for the towers: resized, uint8, from a data set's image cache or in memory where they fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tiprctl.cores import cores
from tiprctl.data.image_cache import ImageCache, find_image_cache
from tiprctl.data.manifest import Split
from tiprctl.errors import ImageError
from tiprctl.interrupt import ignore_interrupt
from tiprctl.pixels import load_pixels
from tiprctl.transfer import staged

MEMORY_BYTES = 1 << 30
"""Images are kept decoded when all of them take less than this."""

MOST_WORKERS = 8

HOST = torch.device("cpu")

REMEDY = "Copy it again from its source, or prepare the data set again without it: --allow-missing."
"""What to do about an image of a data set that cannot be read, though it was there when the set was prepared."""

AHEAD = 2
"""Batches that are read from memory or the cache while others are at work."""


class DecodedImages:
    """Images resized to `size` (height, width), uint8 `(3, H, W)`: from `cache`, from memory once kept, else decoded.

    Args:
        workers: processes that decode ahead where the images are neither cached nor kept; None takes the cores, up
            to 8.
        cache: where the images are decoded already.
        remark: why an image cache is not used though there is one; to be told to the user.
        remedy: what the user is to do about an image that cannot be read; None leaves that to what is wrong with it.
    """

    def __init__(
        self,
        paths: list[Path],
        size: tuple[int, int],
        *,
        workers: int | None = None,
        cache: ImageCache | None = None,
        remark: str | None = None,
        remedy: str | None = None,
    ):
        self.paths = paths
        self.size = size
        self.workers = min(cores(), MOST_WORKERS) if workers is None else workers
        self.cache = cache
        self.remark = remark
        self.remedy = remedy
        self.kept: Tensor | None = None
        self._decode = partial(_decoded, size=size, remedy=remedy)
        self._asked: list[np.ndarray] = []
        self._loader: DataLoader | None = None

    @classmethod
    def of(cls, split: Split, size: tuple[int, int], *, workers: int | None = None) -> DecodedImages:
        """The images of a split, from its data set's image cache where there is one that fits."""
        cache, remark = find_image_cache(split, size)
        return cls(split.image_paths, size, workers=workers, cache=cache, remark=remark, remedy=REMEDY)

    def part(self, some: slice) -> DecodedImages:
        """Some of the images, from the same cache; what they keep in memory is theirs."""
        cache = None if self.cache is None else replace(self.cache, rows=self.cache.rows[some])
        return DecodedImages(self.paths[some], self.size, workers=self.workers, cache=cache, remedy=self.remedy)

    def __len__(self) -> int:
        return len(self.paths)

    def keep_if_small(self) -> None:
        """Decode all images into memory, once, where they are not cached and fit in `MEMORY_BYTES`.

        Raises:
            ImageError: one of them cannot be read.
        """
        large = len(self) * 3 * self.size[0] * self.size[1] > MEMORY_BYTES
        if self.cache is not None or self.kept is not None or large:
            return
        # Pillow decodes outside Python's lock, so threads are enough and cost no start-up.
        kept = torch.empty((len(self), 3, *self.size), dtype=torch.uint8)
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            for index, image in enumerate(pool.map(self._decode, self.paths)):
                kept[index] = image
        self.kept = kept

    def in_order(self, batch_size: int, device: torch.device = HOST) -> Iterable[Tensor]:
        """All images as `(B, 3, H, W)`, `batch_size` at a time; raises as `batches`."""
        return self.batches(np.array_split(np.arange(len(self)), range(batch_size, len(self), batch_size)), device)

    def batches(self, indices: Sequence[np.ndarray], device: torch.device = HOST) -> Iterable[Tensor]:
        """The images of each index array as `(B, 3, H, W)`, read ahead; one iteration at a time.

        They stay on the host, where `device` copies them while it computes.

        Raises:
            ImageError: one of them cannot be read; while iterating.
        """
        if self.cache is not None:
            return _read_ahead(self.cache.read, indices, device)
        if self.kept is not None:
            return _read_ahead(self.kept.__getitem__, indices, device)
        self._asked[:] = indices
        if self._loader is None or self._loader.pin_memory != (device.type == "cuda"):
            self._loader = self._make_loader(pinned=device.type == "cuda")
        return map(_raise_error, self._loader)

    def _make_loader(self, *, pinned: bool) -> DataLoader:
        """What decodes the batches in `_asked`; its processes stay for the next time."""
        return DataLoader(
            self.paths,
            batch_sampler=self._asked,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=partial(_batch_or_error, decode=self._decode, size=self.size),
            pin_memory=pinned,
            worker_init_fn=ignore_interrupt,
        )


def _read_ahead(
    read: Callable[[np.ndarray], Tensor], indices: Sequence[np.ndarray], device: torch.device
) -> Iterator[Tensor]:
    """What `read` gives of each index array; the next ones are read in a thread while the last one is at work."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Tensor]] = deque()
        for batch in indices:
            waiting.append(thread.submit(lambda some: staged(read(some), device), batch))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decoded(path: Path, size: tuple[int, int], remedy: str | None) -> Tensor:
    try:
        return torch.from_numpy(load_pixels(path, size)).permute(2, 0, 1)
    except ImageError as error:
        error.remedy = remedy or error.remedy
        raise


def _batch_or_error(paths: list[Path], decode: Callable[[Path], Tensor], size: tuple[int, int]) -> Tensor | ImageError:
    """An error travels as a value: what a worker raises reaches the user as a traceback inside a message."""
    batch = torch.empty((len(paths), 3, *size), dtype=torch.uint8)
    try:
        # Each image is copied while it is in the core's cache, and leaves its memory to the next one.
        for image, path in zip(batch, paths):
            image.copy_(decode(path))
    except ImageError as error:
        return error
    return batch


def _raise_error(batch: Tensor | ImageError) -> Tensor:
    if isinstance(batch, ImageError):
        try:
            raise batch
        finally:
            # An error that holds itself, by this frame, keeps the processes until they are killed as garbage: 5 s.
            del batch
    return batch

"""Images decoded for the towers: resized, uint8, in memory where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tiprctl.cores import cores
from tiprctl.errors import ImageError
from tiprctl.images import load_pixels
from tiprctl.interrupt import ignore_interrupt

MEMORY_BYTES = 1 << 30
"""Images are kept decoded when all of them take less than this."""

MOST_WORKERS = 8


class DecodedImages:
    """Images resized to `size` (height, width), uint8 `(3, H, W)`: from memory once kept, else decoded on access.

    Args:
        workers: processes that decode ahead where the images are not kept; None takes the cores, up to 8.
    """

    def __init__(self, paths: list[Path], size: tuple[int, int], *, workers: int | None = None):
        self.paths = paths
        self.size = size
        self.workers = min(cores(), MOST_WORKERS) if workers is None else workers
        self.kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def keep_if_small(self) -> None:
        """Decode all images into memory, once, where they fit in `MEMORY_BYTES`.

        Raises:
            ImageError: one of them cannot be read.
        """
        if self.kept is not None or len(self) * 3 * self.size[0] * self.size[1] > MEMORY_BYTES:
            return
        # Pillow decodes outside Python's lock, so threads are enough and cost no start-up.
        kept = torch.empty((len(self), 3, *self.size), dtype=torch.uint8)
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            for index, image in enumerate(pool.map(partial(_decoded, size=self.size), self.paths)):
                kept[index] = image
        self.kept = kept

    def in_order(self, batch_size: int) -> Iterable[Tensor]:
        """All images as `(B, 3, H, W)`, `batch_size` at a time; raises as `batches`."""
        return self.batches(np.array_split(np.arange(len(self)), range(batch_size, len(self), batch_size)))

    def batches(self, indices: Sequence[np.ndarray]) -> Iterable[Tensor]:
        """The images of each index array as `(B, 3, H, W)`.

        Raises:
            ImageError: one of them cannot be read; while iterating.
        """
        if self.kept is not None:
            return (self.kept[batch] for batch in indices)
        loader = DataLoader(
            self.paths,
            batch_sampler=indices,
            num_workers=self.workers,
            collate_fn=partial(_batch_or_error, size=self.size),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_interrupt,
        )
        return map(_raise_error, loader)


def _decoded(path: Path, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(load_pixels(path, size)).permute(2, 0, 1)


def _batch_or_error(paths: list[Path], size: tuple[int, int]) -> Tensor | ImageError:
    """An error travels as a value: what a worker raises reaches the user as a traceback inside a message."""
    try:
        return torch.stack([_decoded(path, size) for path in paths])
    except ImageError as error:
        return error


def _raise_error(batch: Tensor | ImageError) -> Tensor:
    if isinstance(batch, ImageError):
        raise batch
    return batch

"""Images decoded for the towers: resized, uint8, in memory where they fit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tiprctl.images import load_pixels

MEMORY_BYTES = 1 << 30
"""Images are kept decoded when all of them take less than this."""

MOST_WORKERS = 8


class DecodedImages(Dataset):
    """Images resized to `size` (height, width), uint8 `(3, H, W)`: from memory once kept, else decoded on access.

    Args:
        workers: processes that decode ahead where the images are not kept; None takes the cores, up to 8.
    """

    def __init__(self, paths: list[Path], size: tuple[int, int], *, workers: int | None = None):
        self.paths = paths
        self.size = size
        self.workers = min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else workers
        self.kept: Tensor | None = None

    def keep_if_small(self) -> None:
        """Decode all images into memory, once, where they fit in `MEMORY_BYTES`."""
        if self.kept is not None or len(self) * 3 * self.size[0] * self.size[1] > MEMORY_BYTES:
            return
        # Pillow decodes outside Python's lock, so threads are enough and cost no start-up.
        kept = torch.empty((len(self), 3, *self.size), dtype=torch.uint8)
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            for index, image in enumerate(pool.map(self.__getitem__, range(len(self)))):
                kept[index] = image
        self.kept = kept

    def in_order(self, batch_size: int) -> Iterable[Tensor]:
        """All images as `(B, 3, H, W)`, `batch_size` at a time."""
        return self.batches(np.array_split(np.arange(len(self)), range(batch_size, len(self), batch_size)))

    def batches(self, indices: Sequence[np.ndarray]) -> Iterable[Tensor]:
        """The images of each index array as `(B, 3, H, W)`."""
        if self.kept is not None:
            return (self.kept[batch] for batch in indices)
        return DataLoader(
            self,
            batch_sampler=indices,
            num_workers=self.workers,
            collate_fn=torch.stack,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_interrupt,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(load_pixels(self.paths[index], self.size)).permute(2, 0, 1)


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

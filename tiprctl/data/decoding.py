"""Images decoded for the towers: resized, uint8, in memory where they fit."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tiprctl.images import load_pixels

MEMORY_BYTES = 1 << 30
"""Images are kept decoded when all of them take less than this."""


class DecodedImages(Dataset):
    """Images resized to `size` (height, width), uint8 `(3, H, W)`, decoded on access or, once `keep` ran, in memory."""

    def __init__(self, paths: list[Path], size: tuple[int, int]):
        self.paths = paths
        self.size = size
        self.kept: Tensor | None = None

    @property
    def fits_memory(self) -> bool:
        return len(self.paths) * 3 * self.size[0] * self.size[1] <= MEMORY_BYTES

    def keep(self, *, workers: int = 0) -> None:
        """Decode all images into memory."""
        kept = torch.empty((len(self), 3, *self.size), dtype=torch.uint8)
        done = 0
        for images in self.in_batches(64, workers=workers):
            kept[done : done + len(images)] = images
            done += len(images)
        self.kept = kept

    def in_batches(self, batch_size: int, *, workers: int = 0) -> Iterable[Tensor]:
        """All images in order, `batch_size` at a time."""
        if self.kept is not None:
            return self.kept.split(batch_size)
        return DataLoader(self, batch_size=batch_size, **loader_options(workers))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self.kept is not None:
            return self.kept[index]
        return torch.from_numpy(load_pixels(self.paths[index], self.size)).permute(2, 0, 1)


def loader_options(workers: int) -> dict[str, Any]:
    """Options for a `DataLoader` over `DecodedImages`; workers leave Ctrl-C to the main process."""
    return {
        "num_workers": workers,
        "collate_fn": torch.stack,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _ignore_interrupt,
    }


def _ignore_interrupt(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

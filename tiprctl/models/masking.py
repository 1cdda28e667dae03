"""Which patches of an image stay visible: pure functions of a generator, indices travel instead of masks."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)


def random_keep(batch: int, patches: int, ratio: float, *, generator: Generator, device: torch.device) -> Tensor:
    """Indices `(batch, kept)` of the patches that stay, in grid order, drawn per image without return.

    `ratio` is the share that is dropped; at least one patch stays.
    """
    kept = max(1, patches - round(patches * ratio))
    noise = torch.rand(batch, patches, generator=generator, device=generator.device)
    return noise.argsort(dim=1)[:, :kept].sort(dim=1).values.to(device)


def grey(pixels: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` to their luma (ITU-R 601 weights), repeated to three channels."""
    weights = pixels.new_tensor(GREY_WEIGHTS).view(3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True).expand_as(pixels)

"""Images as patches, and which of them stay visible: pure functions, indices travel instead of masks."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from tiprctl.pixels import channels
from tiprctl.shares import Share, uniform

GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)


def kept_patches(patches: int, ratio: float) -> int:
    """How many of `patches` stay when the share `ratio` is dropped, rounded to whole patches; at least one stays."""
    return max(1, patches - round(patches * ratio))


def random_keep(images: Share, patches: int, ratio: float, *, generator: Generator) -> Tensor:
    """Indices `(B, kept)` of the patches that stay of a share's images, in grid order, drawn per image without return.

    `ratio` is the part that is dropped, see `kept_patches`.
    """
    noise = uniform(len(images), patches, generator=generator, share=images)
    return noise.argsort(dim=1)[:, : kept_patches(patches, ratio)].sort(dim=1).values


def hidden_patches(kept: Tensor, patches: int) -> Tensor:
    """Which of `patches` are dropped, (B, patches), True = hidden, from the indices `(B, K)` of those that stay."""
    return torch.ones(len(kept), patches, dtype=torch.bool, device=kept.device).scatter(1, kept, False)


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """Images `(B, 3, H, W)` to their patches `(B, N, P)`, row by row; P holds rows, then columns, then channels.

    The sides of the image are multiples of `patch_size`.
    """
    patches = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: square patches `(B, N, P)` on a grid of (rows, columns) to images `(B, 3, H, W)`."""
    side = math.isqrt(patches.shape[2] // 3)
    pixels = patches.unflatten(2, (side, side, 3)).unflatten(1, grid)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def standardise(patches: Tensor) -> Tensor:
    """Patches `(B, N, P)`, each at mean 0 and variance 1 (MAE's `norm_pix_loss`: unbiased variance, plus 1e-6)."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def grey(pixels: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` to their luma (ITU-R 601 weights), repeated to three channels."""
    return (pixels * channels(GREY_WEIGHTS, pixels)).sum(dim=1, keepdim=True).expand_as(pixels)

"""Between image files and the numbers that the vision tower sees: resizing by torch, CLIP's pixel statistics."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from tiprctl import images
from tiprctl.transfer import to_device

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_TOGETHER = 1 << 17
"""Numbers that are normalised together on the CPU: half a megabyte of them stays in a core's own cache."""


def normalise(pixels: Tensor) -> Tensor:
    """Images `(B, 3, H, W)`, uint8 or float in 0 to 1, to CLIP's normalised float32."""
    if pixels.dtype == torch.uint8:
        return _normalised(pixels)
    mean, std = _statistics(pixels)
    return (pixels - mean) / std


def _normalised(pixels: Tensor) -> Tensor:
    """`normalise` of uint8 images: on the CPU a few at a time, so that memory is written once, and read once."""
    images = _room(pixels)
    mean, std = _statistics(images)
    together = len(pixels) if images.is_cuda else max(1, _TOGETHER // math.prod(pixels.shape[1:]))
    for some, source in zip(images.split(together), pixels.split(together)):
        some.copy_(source).div_(255).sub_(mean).div_(std)
    return images


def _room(like: Tensor) -> Tensor:
    """A float32 tensor of the shape and on the device of `like`, not filled.

    On the CPU the memory is NumPy's, which asks Linux for huge pages where an array is large and torch does not: to get
    a batch page by page takes longer than all the arithmetic.
    """
    if like.device.type == "cpu":
        return torch.from_numpy(np.empty(like.shape, np.float32))
    return torch.empty_like(like, dtype=torch.float32)


def load_pixels(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """`images.load_pixels`, resized by torch: within one grey level of what Pillow gives, and in less time."""
    return images.load_pixels(path, size, resize=_interpolated)


def _interpolated(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """As `images.resized`."""
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def denormalise(pixels: Tensor) -> Tensor:
    """The inverse of `normalise`: normalised images `(B, 3, H, W)` to 0 to 1, and beyond where they went beyond."""
    mean, std = _statistics(pixels)
    return pixels * std + mean


def channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """One number a channel, `(C, 1, 1)`, of the type and on the device of `like`; not to be changed."""
    return _kept_channels(values, like.dtype, like.device)


@lru_cache(maxsize=32)
def _kept_channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied to a device once, not step by step; not as a tensor of inference mode, which gradients cannot pass."""
    with torch.inference_mode(False):
        return to_device(torch.tensor(values, dtype=dtype).view(-1, 1, 1), device)


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (3, 1, 1), on the device of `pixels`."""
    return channels(MEAN, pixels), channels(STD, pixels)

"""CLIP's pixel statistics: between uint8 images and the numbers that the vision tower sees."""

from __future__ import annotations

import torch
from torch import Tensor

from tiprctl.transfer import channels

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(pixels: Tensor) -> Tensor:
    """Images `(B, 3, H, W)`, uint8 or float in 0 to 1, to CLIP's normalised float32."""
    if pixels.dtype == torch.uint8:
        # Once in floats, in place: to make room for each of several copies takes longer than all the arithmetic.
        images = pixels.float().div_(255)
        mean, std = _statistics(images)
        return images.sub_(mean).div_(std)
    mean, std = _statistics(pixels)
    return (pixels - mean) / std


def denormalise(pixels: Tensor) -> Tensor:
    """The inverse of `normalise`: normalised images `(B, 3, H, W)` to 0 to 1, and beyond where they went beyond."""
    mean, std = _statistics(pixels)
    return pixels * std + mean


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (3, 1, 1), on the device of `pixels`."""
    return channels(MEAN, pixels), channels(STD, pixels)

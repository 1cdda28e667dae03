"""Random changes to a batch of training images, drawn from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from tiprctl.config import AugmentConfig
from tiprctl.pixels import MEAN, normalise
from tiprctl.shares import Share, uniform


def augment(pixels: Tensor, config: AugmentConfig, generator: Generator, share: Share | None = None) -> Tensor:
    """Training images `(B, 3, H, W)` uint8 to augmented, normalised float32 of the same shape.

    In order: flip, shift (padding with black and cropping back), colour jitter, normalisation, erasing. `share` tells
    which rows of a batch these are; None: all of it.
    """
    pixels = shift(flip(pixels, config.flip, generator, share), config.pad, generator, share)
    images = normalise(jitter(pixels.float() / 255, config.jitter, generator, share))
    fill = MEAN if config.erase_fill == "published" else (0.0, 0.0, 0.0)
    return erase(images, config.erase, config.erase_area, fill, generator, share)


def flip(pixels: Tensor, probability: float, generator: Generator, share: Share | None = None) -> Tensor:
    """Mirror each image left to right with the given probability."""
    mirrored = _uniform((len(pixels),), generator, share, pixels) < probability
    return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def shift(pixels: Tensor, reach: int, generator: Generator, share: Share | None = None) -> Tensor:
    """Pad by `reach` black pixels and crop the original size at a random place, per image."""
    if reach == 0:
        return pixels
    batch, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (reach, reach, reach, reach))
    tops, lefts = ((_uniform((batch,), generator, share, pixels) * (2 * reach + 1)).long() for _ in range(2))
    rows = (tops[:, None] + torch.arange(height, device=pixels.device))[:, None, :, None]
    columns = (lefts[:, None] + torch.arange(width, device=pixels.device))[:, None, None, :]
    images = torch.arange(batch, device=pixels.device)[:, None, None, None]
    planes = torch.arange(channels, device=pixels.device)[None, :, None, None]
    return padded[images, planes, rows, columns]


def jitter(images: Tensor, strength: float, generator: Generator, share: Share | None = None) -> Tensor:
    """Scale each channel of each image (0 to 1) by a factor from 1 - strength to 1 + strength."""
    if strength == 0:
        return images
    factors = 1 + strength * (2 * _uniform((len(images), 3, 1, 1), generator, share, images) - 1)
    return (images * factors).clamp(0, 1)


def erase(
    images: Tensor,
    probability: float,
    area: tuple[float, float],
    fill: tuple[float, float, float],
    generator: Generator,
    share: Share | None = None,
) -> Tensor:
    """Fill one random rectangle of each image, with the given probability (Zhong et al., AAAI 2020).

    `area` bounds the share of the image; the aspect ratio is log-uniform from 0.3 to 3.3. A rectangle that would leave
    the image is cut to its size.
    """
    if probability == 0:
        return images
    batch, _, height, width = images.shape
    chosen, part, aspect, y, x = (_uniform((batch, 1, 1), generator, share, images) for _ in range(5))
    surface = (area[0] + part * (area[1] - area[0])) * height * width
    ratio = torch.exp(math.log(0.3) + aspect * (math.log(3.3) - math.log(0.3)))
    tall = (surface * ratio).sqrt().round().clamp(1, height)
    wide = (surface / ratio).sqrt().round().clamp(1, width)
    top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide) & (chosen < probability)
    return torch.where(inside[:, None], images.new_tensor(fill).view(1, 3, 1, 1), images)


def _uniform(shape: tuple[int, ...], generator: Generator, share: Share | None, like: Tensor) -> Tensor:
    return uniform(*shape, generator=generator, share=share).to(like.device, non_blocking=True)

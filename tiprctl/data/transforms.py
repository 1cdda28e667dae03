"""Random changes to a batch of training images, drawn from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from tiprctl.config import AugmentConfig
from tiprctl.pixels import MEAN, channels, normalise
from tiprctl.shares import Share, uniform
from tiprctl.transfer import to_device


def augment(pixels: Tensor, config: AugmentConfig, generator: Generator, share: Share | None = None) -> Tensor:
    """Training images `(B, 3, H, W)` uint8 to augmented, normalised float32 of the same shape.

    In order: flip, shift (padding with black and cropping back), colour jitter, normalisation, erasing. `share` tells
    which rows of a batch these are; None: all of it.
    """
    pixels = shift(flip(pixels, config.flip, generator, share), config.pad, generator, share)
    if config.jitter:
        pixels = jitter(pixels.float().div_(255), config.jitter, generator, share)
    fill = MEAN if config.erase_fill == "published" else (0.0, 0.0, 0.0)
    return erase_(normalise(pixels), config.erase, config.erase_area, fill, generator, share)


def flip(pixels: Tensor, probability: float, generator: Generator, share: Share | None = None) -> Tensor:
    """Mirror each image left to right with the given probability."""
    mirrored = uniform(len(pixels), generator=generator, share=share) < probability
    return torch.stack([image.flip(-1) if chosen else image for chosen, image in zip(mirrored.tolist(), pixels)])


def shift(pixels: Tensor, reach: int, generator: Generator, share: Share | None = None) -> Tensor:
    """Pad by `reach` black pixels and crop the original size at a random place, per image."""
    if reach == 0:
        return pixels
    height, width = pixels.shape[-2:]
    draws = (uniform(len(pixels), generator=generator, share=share) for _ in range(2))
    tops, lefts = ((draw * (2 * reach + 1)).long().sub_(reach).tolist() for draw in draws)
    shifted = torch.zeros_like(pixels)
    # Copies of whole rows, with no padded batch in between: to gather pixel by pixel takes ten times as long.
    for image, place, top, left in zip(pixels, shifted, tops, lefts):
        (rows, from_rows), (columns, from_columns) = _common(top, height), _common(left, width)
        place[:, rows, columns] = image[:, from_rows, from_columns]
    return shifted


def _common(offset: int, length: int) -> tuple[slice, slice]:
    """What a window of `length` pixels, moved by `offset`, shares with the image: in the window, in the image."""
    shared = max(0, length - abs(offset))
    start = max(0, offset)
    return slice(start - offset, start - offset + shared), slice(start, start + shared)


def jitter(images: Tensor, strength: float, generator: Generator, share: Share | None = None) -> Tensor:
    """Scale each channel of each image (0 to 1) by a factor from 1 - strength to 1 + strength."""
    if strength == 0:
        return images
    factors = 1 + strength * (2 * uniform(len(images), 3, 1, 1, generator=generator, share=share) - 1)
    return (images * to_device(factors, images.device)).clamp(0, 1)


def erase_(
    images: Tensor,
    probability: float,
    area: tuple[float, float],
    fill: tuple[float, float, float],
    generator: Generator,
    share: Share | None = None,
) -> Tensor:
    """Fill one random rectangle of each image in place, with the given probability (Zhong et al., AAAI 2020).

    `area` bounds the share of the image; the aspect ratio is log-uniform from 0.3 to 3.3. A rectangle that would leave
    the image is cut to its size.
    """
    if probability == 0:
        return images
    batch, _, height, width = images.shape
    chosen, part, aspect, y, x = (uniform(batch, generator=generator, share=share) for _ in range(5))
    surface = (area[0] + part * (area[1] - area[0])) * height * width
    ratio = torch.exp(math.log(0.3) + aspect * (math.log(3.3) - math.log(0.3)))
    tall = (surface * ratio).sqrt().round().clamp(1, height)
    wide = (surface / ratio).sqrt().round().clamp(1, width)
    y, x = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
    boxes = torch.stack([y, y + tall, x, x + wide], dim=1).long().tolist()
    colour = channels(fill, images)
    for image, (top, bottom, left, right), hit in zip(images, boxes, (chosen < probability).tolist()):
        if hit:
            image[:, top:bottom, left:right] = colour
    return images

"""Takes the picture: who stands where before which scenery, in what light, through what lens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tiprctl.data.synth_pedes.brush import Brush
from tiprctl.data.synth_pedes.facing import FacingFigure
from tiprctl.data.synth_pedes.figure import Pose
from tiprctl.data.synth_pedes.people import VIEWS, Person, hidden_attributes, sample_person
from tiprctl.data.synth_pedes.scenery import Size, draw_background, draw_occluder, hide_feet
from tiprctl.data.synth_pedes.side import SideFigure

_FINE = 3
"""Drawn so many times larger than the image and then averaged: smooth edges."""


@dataclass(frozen=True)
class Shot:
    """One image of a person, up to what its generator still decides.

    Args:
        view: the side that the camera sees, one of `people.VIEWS`.
        feet: whether the feet are in the image and free of things before them.
        size: width and height in pixels.
    """

    view: str
    feet: bool
    size: Size

    def hidden(self, person: Person) -> frozenset[str]:
        """The attributes of `person` that this image does not show."""
        unseen = hidden_attributes(person, self.view)
        return unseen if self.feet else unseen | {"shoes", "shoes_colour"}


def sample_shots(rng: Random, count: int) -> list[Shot]:
    """So many shots of one person, no view twice before each was there once."""
    views: list[str] = []
    while len(views) < count:
        views += rng.sample(VIEWS, len(VIEWS))
    return [Shot(view, rng.random() < 0.88, _sample_size(rng)) for view in views[:count]]


def photograph(person: Person, shot: Shot, rng: Random) -> bytes:
    """The JPEG of a shot."""
    width, height = (_FINE * side for side in shot.size)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    lit_from = rng.choice((-1, 1))
    ground = rng.uniform(0.62, 0.85)
    draw_background(draw, image.size, ground, rng)
    if rng.random() < 0.35:
        _passer_by(image, rng, lit_from)
    tall = height * rng.uniform(0.83, 0.93)
    top = (height - tall) * rng.uniform(0.35, 0.75)
    middle = width * rng.uniform(0.44, 0.56)
    _shadow(draw, middle, top + tall, tall, lit_from)
    _place(image, person, _sample_pose(shot.view, rng), middle, top, tall, rng, lit_from)
    if rng.random() < 0.15:
        draw_occluder(draw, image.size, rng)
    if not shot.feet:
        hide_feet(draw, image.size, int(top + tall * rng.uniform(0.89, 0.91)), rng)
    return _develop(image.reduce(_FINE), rng)


def _sample_size(rng: Random) -> Size:
    height = rng.randint(128, 160)
    return round(height * rng.uniform(0.39, 0.45)), height


def _sample_pose(view: str, rng: Random) -> Pose:
    return Pose(view, stride=rng.uniform(0.1, 1.0), swing=rng.uniform(-1.0, 1.0))


def _place(
    image: Image.Image, person: Person, pose: Pose, middle: float, top: float, tall: float, rng: Random, lit_from: int
) -> None:
    brush = Brush(
        image,
        middle=middle,
        top=top,
        height=tall,
        lean=rng.uniform(-0.035, 0.035),
        mirrored=pose.view == "left",
        lit_from=lit_from,
    )
    figure = FacingFigure if pose.view in ("front", "back") else SideFigure
    figure(brush, person, pose).draw()


def _passer_by(image: Image.Image, rng: Random, lit_from: int) -> None:
    """Someone else farther off, cut by the image's border, so that the one in the middle stays the main person."""
    width, height = image.size
    tall = height * rng.uniform(0.45, 0.75)
    middle = width * rng.choice((rng.uniform(-0.08, 0.06), rng.uniform(0.94, 1.08)))
    top = height * rng.uniform(0.88, 0.95) - tall
    _place(image, sample_person(rng), _sample_pose(rng.choice(VIEWS), rng), middle, top, tall, rng, lit_from)


def _shadow(draw: ImageDraw.ImageDraw, middle: float, bottom: float, tall: float, lit_from: int) -> None:
    reach, aside = tall * 0.15, -lit_from * tall * 0.05
    box = (middle + aside - reach, bottom - tall * 0.035, middle + aside + reach, bottom + tall * 0.02)
    draw.ellipse(box, fill=(84, 82, 82))


def _develop(image: Image.Image, rng: Random) -> bytes:
    """Light, colour cast, blur, noise and JPEG losses."""
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    light = rng.uniform(0.78, 1.14)
    gain = np.array([light * rng.uniform(0.92, 1.08) for _ in range(3)], np.float32)
    pixels = np.asarray(image, np.float32)
    slope = np.linspace(-1, 1, image.width, dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-0.12, 0.12))
    pixels = (pixels + np.float32(rng.uniform(-4, 14))) * (gain * (1 + slope))
    pixels += _grain(image.size, rng) * np.float32(rng.uniform(0.5, 4.5))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    stream = BytesIO()
    image.save(stream, "JPEG", quality=rng.randint(55, 92))
    return stream.getvalue()


def _grain(size: Size, rng: Random) -> np.ndarray:
    """A patch of unit noise (height, width, 1) cut from a fixed sheet at a random place."""
    sheet = _grain_sheet()
    width, height = size
    top, left = rng.randrange(sheet.shape[0] - height), rng.randrange(sheet.shape[1] - width)
    return sheet[top : top + height, left : left + width, None]


@cache
def _grain_sheet() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)

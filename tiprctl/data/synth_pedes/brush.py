"""A brush that paints rounded shapes in a figure's own units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import cos, hypot, pi, sin

from PIL import Image, ImageDraw

from tiprctl.data.synth_pedes.people import RGB

Point = tuple[float, float]
Profile = Sequence[tuple[float, float, float]]
"""The outline of a garment from top to bottom: rows of (y, left x, right x)."""

_ARC = tuple((cos(pi * step / 9), sin(pi * step / 9)) for step in range(10))


def tone(colour: RGB, factor: float) -> RGB:
    """`colour` darker (factor under 1) or lighter (over 1)."""
    red, green, blue = colour
    return min(255, int(red * factor)), min(255, int(green * factor)), min(255, int(blue * factor))


def across(profile: Profile, y: float) -> tuple[float, float]:
    """The left and right x of `profile` at height `y`, interpolated."""
    for (y0, left0, right0), (y1, left1, right1) in pairwise(profile):
        if y <= y1:
            part = max(0.0, (y - y0) / (y1 - y0))
            return left0 + part * (left1 - left0), right0 + part * (right1 - right0)
    return profile[-1][1], profile[-1][2]


def strip(profile: Profile, start: float, end: float) -> Profile:
    """The part of `profile` between two fractions of its width, 0 at the left and 1 at the right."""
    return [(y, left + start * (right - left), left + end * (right - left)) for y, left, right in profile]


def band(profile: Profile, top: float, bottom: float) -> Profile:
    """The part of `profile` between two heights that lie within one of its rows or nearly so."""
    return [(top, *across(profile, top)), (bottom, *across(profile, bottom))]


class Brush:
    """Paints on `image` in units of a figure's height.

    Args:
        image: the RGB image to paint on.
        middle: pixel column of the figure's feet.
        top: pixel row of the top of the figure's head.
        height: the figure's height in pixels; x and y are fractions of it, y counted down from the top of the head.
        lean: how far the head stands to the right of the feet.
        mirrored: x runs to the left.
        lit_from: -1 when the light comes from the image's left, 1 from its right.
    """

    def __init__(
        self,
        image: Image.Image,
        *,
        middle: float,
        top: float,
        height: float,
        lean: float = 0.0,
        mirrored: bool = False,
        lit_from: int = -1,
    ):
        self._draw = ImageDraw.Draw(image)
        self._middle, self._top, self._height = middle, top, height
        self._lean = lean * height
        self._run = -height if mirrored else height
        self._lit_left = (lit_from < 0) != mirrored

    def at(self, x: float, y: float) -> Point:
        """The pixel position of a point of the figure."""
        return self._middle + self._run * x + self._lean * (1 - y), self._top + self._height * y

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """An ellipse around (x, y)."""
        px, py = self.at(x, y)
        rx, ry = rx * self._height, ry * self._height
        self._draw.ellipse((px - rx, py - ry, px + rx, py + ry), fill=colour)

    def ring(self, x: float, y: float, radius: float, width: float, colour: RGB) -> None:
        """A circle's line around (x, y)."""
        px, py = self.at(x, y)
        radius *= self._height
        box = (px - radius, py - radius, px + radius, py + radius)
        self._draw.ellipse(box, outline=colour, width=max(1, round(width * self._height)))

    def dome(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """The upper half of an ellipse that stands on (x, y)."""
        self.shape([(x + rx * across_, y - ry * up) for across_, up in _ARC], colour)

    def shape(self, points: Sequence[Point], colour: RGB) -> None:
        """A filled polygon."""
        self._draw.polygon([self.at(x, y) for x, y in points], fill=colour)

    def stroke(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        """A line of even width."""
        pixels = [self.at(x, y) for x, y in points]
        self._draw.line(pixels, fill=colour, width=max(1, round(width * self._height)), joint="curve")

    def profile(self, profile: Profile, colour: RGB) -> None:
        """A flat area with the given outline."""
        self.shape([(left, y) for y, left, _ in profile] + [(right, y) for y, _, right in reversed(profile)], colour)

    def cloth(self, profile: Profile, colour: RGB) -> None:
        """A garment: a dark seam around it, a shadow on the side away from the light, a soft gleam on the other."""
        first, last = profile[0], profile[-1]
        seam = [(first[0] - 0.003, first[1], first[2]), *profile, (last[0] + 0.004, last[1], last[2])]
        self.profile([(y, left - 0.004, right + 0.004) for y, left, right in seam], tone(colour, 0.7))
        self.profile(profile, colour)
        shadow, gleam = ((0.8, 1.0), (0.1, 0.28)) if self._lit_left else ((0.0, 0.2), (0.72, 0.9))
        self.profile(strip(profile, *shadow), tone(colour, 0.82))
        self.profile(strip(profile, *gleam), tone(colour, 1.08))

    def limb(self, joints: Sequence[Point], widths: Sequence[float], colour: RGB) -> None:
        """A rounded, tapering limb through `joints`, with a seam around it and a gleam along it."""
        pixels = [self.at(x, y) for x, y in joints]
        radii = [width * self._height / 2 for width in widths]
        edge = 0.004 * self._height
        self._taper(pixels, [radius + edge for radius in radii], tone(colour, 0.68))
        self._taper(pixels, radii, colour)
        aside = -1 if self._lit_left == (self._run > 0) else 1
        lit = [(x + aside * radius * 0.35, y) for (x, y), radius in zip(pixels, radii)]
        self._taper(lit, [radius * 0.4 for radius in radii], tone(colour, 1.1))

    def _taper(self, pixels: Sequence[Point], radii: Sequence[float], colour: RGB) -> None:
        for (x, y), radius in zip(pixels, radii):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        for (x0, y0), (x1, y1), r0, r1 in zip(pixels, pixels[1:], radii, radii[1:]):
            length = hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = (y0 - y1) / length, (x1 - x0) / length
            corners = [
                (x0 + nx * r0, y0 + ny * r0),
                (x1 + nx * r1, y1 + ny * r1),
                (x1 - nx * r1, y1 - ny * r1),
                (x0 - nx * r0, y0 - ny * r0),
            ]
            self._draw.polygon(corners, fill=colour)

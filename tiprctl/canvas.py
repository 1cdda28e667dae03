"""What pictures on white paper share: colours and distances, the font, wrapped text, and saving."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tiprctl.files import atomic_path

MARGIN, GAP = 32, 14
"""Pixels between the content and the border of the paper, and between two pictures."""
PAPER, PLACE, INK, PALE = "#ffffff", "#eef0f3", "#1b1f24", "#6a737d"

Size = tuple[int, int]
"""Width and height in pixels."""


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same on every machine."""
    return ImageFont.load_default(size)


def line_height(size: int) -> int:
    """From one line of text to the next."""
    return size * 4 // 3


def wrapped(sentence: str, width: int, size: int) -> list[str]:
    """The sentence in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in sentence.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def write_lines(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], size: int, *, fill: str = INK
) -> int:
    """Write `lines` from `corner` (left, top) down; the top of what may follow."""
    left, top = corner
    for line in lines:
        draw.text((left, top), line, fill=fill, font=font(size))
        top += line_height(size)
    return top


def fitting(size: Size, place: Size) -> Size:
    """The largest size of the proportions of `size` that `place` holds; the thinnest strip keeps a pixel."""
    scale = min(place[0] / size[0], place[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def save_png(picture: Image.Image, target: str | Path) -> None:
    """Write a picture to a PNG file, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_path(target) as temporary:
        picture.save(temporary, format="PNG")

"""The contact sheet: a PNG with each sentence's best crops in a grid, rank and score beneath them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from tiprctl.canvas import (
    GAP,
    INK,
    MARGIN,
    PALE,
    PAPER,
    PLACE,
    fitting,
    font,
    line_height,
    save_png,
    wrapped,
    write_lines,
)
from tiprctl.errors import ImageError, UsageError
from tiprctl.files import check_writable
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.images import open_image

CELL = (128, 256)
"""Width and height in pixels of the place of a crop: the proportions of a person."""
COLUMNS = 10
MAX_CROPS = 1000
"""About 50 megapixels: few viewers show larger sheets well."""

_LEAST_COLUMNS = 4
_TITLE, _CAPTION = 24, 40


@dataclass(frozen=True)
class Crop:
    """A hit on the sheet: where its image lies, a path or a URI, its rank from 1, its score."""

    place: str | Path
    rank: int
    score: float


@dataclass(frozen=True)
class Block:
    """A sentence and its hits, best first."""

    sentence: str
    crops: Sequence[Crop]


def check_sheet(target: str | Path, crops: int) -> None:
    """Refuse a sheet that cannot be, before the crops are sought.

    Raises:
        UsageError: there are more than `MAX_CROPS` crops.
        InputError: the file cannot be written.
    """
    if crops > MAX_CROPS:
        raise UsageError(
            f"A contact sheet of {crops:,} crops is too large; it holds {MAX_CROPS:,}",
            where=target,
            remedy="Lower --top or ask fewer sentences at once.",
        )
    check_writable(target)


def write_sheet(
    target: str | Path, blocks: Sequence[Block], tell: Callable[[ImageError], object] = lambda error: None
) -> None:
    """Write the blocks, one below the other, to a PNG file, atomically.

    Crops keep their proportions; one that has meanwhile become unreadable leaves its place empty, and `tell` is told.

    Raises:
        As `check_sheet`. InputError: an object store cannot be reached.
    """
    check_sheet(target, sum(len(block.crops) for block in blocks))
    save_png(draw_sheet(blocks, tell), target)


def open_crop(place: str | Path) -> Image.Image:
    """The picture of a crop at a path or a URI, as `open_image` gives it.

    Raises:
        ImageError: it cannot be read. InputError: the object store cannot be reached.
    """
    if not is_remote(place):
        return open_image(place)
    # Here alone, since few galleries are of crops in an object store.
    from tiprctl.gallery.cluster.sources import read_image

    return open_image(place, content=read_image(str(place)))


def draw_sheet(blocks: Sequence[Block], tell: Callable[[ImageError], object] = lambda error: None) -> Image.Image:
    """The sheet as a picture, RGB; `tell` is told of crops that cannot be read."""
    columns = max(_LEAST_COLUMNS, min(COLUMNS, max(len(block.crops) for block in blocks)))
    width = 2 * MARGIN + columns * CELL[0] + (columns - 1) * GAP
    titles = [wrapped(block.sentence, width - 2 * MARGIN, _TITLE) for block in blocks]
    heights = [_height(len(title), len(block.crops), columns) for title, block in zip(titles, blocks)]
    sheet = Image.new("RGB", (width, MARGIN + sum(heights)), PAPER)
    top = MARGIN
    for title, block, height in zip(titles, blocks, heights):
        _draw_block(sheet, title, block, top, columns, tell)
        top += height
    return sheet


def _height(lines: int, crops: int, columns: int) -> int:
    """A block's height: its title, its rows, and the space to the next block."""
    return lines * line_height(_TITLE) + GAP + -(-crops // columns) * (CELL[1] + _CAPTION) + MARGIN


def _draw_block(
    sheet: Image.Image, title: Sequence[str], block: Block, top: int, columns: int, tell: Callable[[ImageError], object]
) -> None:
    draw = ImageDraw.Draw(sheet)
    top = write_lines(draw, (MARGIN, top), title, _TITLE) + GAP
    for place, crop in enumerate(block.crops):
        row, column = divmod(place, columns)
        left = MARGIN + column * (CELL[0] + GAP)
        _draw_crop(sheet, draw, crop, (left, top + row * (CELL[1] + _CAPTION)), tell)


def _draw_crop(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    crop: Crop,
    corner: tuple[int, int],
    tell: Callable[[ImageError], object],
) -> None:
    left, top = corner
    right, bottom = left + CELL[0], top + CELL[1]
    draw.rectangle((left, top, right - 1, bottom - 1), fill=PLACE)
    try:
        picture = open_crop(crop.place)
    except ImageError as error:
        tell(error)
        draw.text(((left + right) / 2, (top + bottom) / 2), "unreadable", fill=PALE, font=font(16), anchor="mm")
    else:
        picture = picture.resize(fitting(picture.size, CELL), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + (CELL[0] - picture.width) // 2, top + (CELL[1] - picture.height) // 2))
    draw.text((left, bottom + 6), str(crop.rank), fill=INK, font=font(18))
    draw.text((right, bottom + 6), f"{crop.score:.3f}", fill=PALE, font=font(18), anchor="ra")

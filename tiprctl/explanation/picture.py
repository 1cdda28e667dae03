"""The explanation as one picture: the restorations side by side, and below them a heat map for each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
from PIL import Image, ImageDraw

from tiprctl.canvas import GAP, INK, MARGIN, PALE, PAPER, PLACE, Size, fitting, font, line_height, wrapped, write_lines
from tiprctl.explanation.restoration import Explanation, WordMap

PANEL, MAP = (176, 352), (104, 208)
"""Width and height in pixels of the places of a restoration and of a heat map."""
COLUMNS = 8
"""Heat maps in a row."""
WIDTH = 2 * MARGIN + 5 * PANEL[0] + 4 * GAP
"""Of the picture: room for the original, what the model sees, and three restorations."""

_HEADING, _LABEL, _REMARK = 24, 18, 15
_HEAT = (208, 30, 30)
_HEAT_AT_MOST = 0.8
"""How much of the image the heat covers where it is greatest."""


@dataclass(frozen=True)
class _Panel:
    """A picture with a label and a remark below it."""

    picture: Image.Image
    label: str
    remark: str = ""


def draw_explanation(explanation: Explanation) -> Image.Image:
    """The picture, RGB: the texts, the restorations, and the words of the first text."""
    visible = f"{1 - explanation.hidden.mean():.0%}"
    texts = [restored.text for restored in explanation.restored if restored.text]
    maps = [_heat_map(explanation.grey, word) for word in explanation.words]
    return _stacked(
        [
            *(_text(f"{name}: {text}", _HEADING) for name, text in zip(ascii_uppercase, texts)),
            _row(_restorations(explanation), PANEL),
            _text(
                f"The model sees {visible} of the patches, without colour, and restores the others; those that it sees "
                "are left grey here. No text is a caption of no words, such as it never met in training. Error: mean "
                "square over the hidden patches, in normalised pixels.",
                _REMARK,
                PALE,
            ),
            _text("Which patches look at each word of A", _HEADING),
            *(_row(maps[start : start + COLUMNS], MAP) for start in range(0, len(maps), COLUMNS)),
            _text(
                "Redder patches look more at the word; each map has its own scale. In percent: how much of all that "
                "the patches look at falls to the word. A word also stands for those before it: a coat knows its "
                "colour.",
                _REMARK,
                PALE,
            ),
        ]
    )


def _restorations(explanation: Explanation) -> list[_Panel]:
    """The original, what the model sees of it, and what it makes of that with each text."""
    hidden = Image.fromarray(explanation.hidden)
    original, grey = Image.fromarray(explanation.original), Image.fromarray(explanation.grey)
    blank = Image.new("RGB", original.size, PLACE)
    panels = [_Panel(_enlarged(original, PANEL), "original"), _Panel(_joined(blank, grey, hidden), "seen")]
    names = iter(ascii_uppercase)
    for restored in explanation.restored:
        label = f"restored with {next(names)}" if restored.text else "with no text"
        picture = _joined(Image.fromarray(restored.pixels), grey, hidden)
        panels.append(_Panel(picture, label, f"error {restored.error:.3f}"))
    return panels


def _joined(hidden: Image.Image, seen: Image.Image, mask: Image.Image) -> Image.Image:
    """`hidden` where the mask of patches is True, `seen` elsewhere, as large as a panel."""
    hidden, seen = _enlarged(hidden, PANEL), _enlarged(seen, PANEL)
    return Image.composite(hidden, seen, mask.convert("L").resize(seen.size, Image.Resampling.NEAREST))


def _heat_map(grey: np.ndarray, word: WordMap) -> _Panel:
    """The image in pale grey under the word's weights, from none for the least to full heat for the greatest."""
    image = _enlarged(Image.fromarray(grey), MAP)
    pale = Image.blend(image, Image.new("RGB", image.size, PAPER), 0.4)
    spread = float(np.ptp(word.weights)) or 1.0
    heat = (word.weights - word.weights.min()) / spread * _HEAT_AT_MOST * 255
    heat = Image.fromarray(heat.round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    hot = Image.new("RGB", image.size, _HEAT)
    return _Panel(Image.composite(hot, pale, heat), word.word, f"{word.share:.1%}")


def _enlarged(picture: Image.Image, place: Size) -> Image.Image:
    return picture.resize(fitting(picture.size, place), Image.Resampling.BICUBIC)


def _text(sentence: str, size: int, fill: str = INK) -> Image.Image:
    """A strip of the picture's width that holds a sentence."""
    lines = wrapped(sentence, WIDTH - 2 * MARGIN, size)
    strip = Image.new("RGB", (WIDTH, len(lines) * line_height(size)), PAPER)
    write_lines(ImageDraw.Draw(strip), (MARGIN, 0), lines, size, fill=fill)
    return strip


def _row(panels: Sequence[_Panel], place: Size) -> Image.Image:
    """A strip of the picture's width that holds panels side by side, each with its label below it."""
    below = line_height(_LABEL) + line_height(_REMARK)
    strip = Image.new("RGB", (WIDTH, max(panel.picture.height for panel in panels) + below), PAPER)
    draw = ImageDraw.Draw(strip)
    for column, panel in enumerate(panels):
        left, top = MARGIN + column * (place[0] + GAP), panel.picture.height + 4
        strip.paste(panel.picture, (left, 0))
        top = write_lines(draw, (left, top), [_cut(panel.label, place[0])], _LABEL)
        write_lines(draw, (left, top), [panel.remark], _REMARK, fill=PALE)
    return strip


def _cut(label: str, width: int) -> str:
    """The label, or as much of it as fits into `width` pixels."""
    if font(_LABEL).getlength(label) <= width:
        return label
    while label and font(_LABEL).getlength(f"{label}…") > width:
        label = label[:-1]
    return f"{label}…"


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """The strips one below the other on one sheet."""
    sheet = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(strip.height + GAP for strip in strips) - GAP), PAPER)
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + GAP
    return sheet

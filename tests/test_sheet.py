"""The contact sheet: each crop in its place, and the old file whole whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery import sheet
from tiprctl.gallery.sheet import Block, Crop, draw_sheet, write_sheet


def _paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), colour).save(path)


def _crops(root, count):
    for number in range(count):
        _paint(root / f"{number}.png", (200, 0, 0))
    return [Crop(root / f"{number}.png", number + 1, 0.5) for number in range(count)]


def test_sheet_is_a_png_that_shows_each_crop_in_its_place(tmp_path):
    target = tmp_path / "out" / "sheet.png"
    write_sheet(target, [Block("woman in red coat", _crops(tmp_path, 12))])
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    width, height = sheet.CELL
    assert pixels.shape[1] > 10 * width
    assert 2 * height < pixels.shape[0] < 3 * height + 100
    red = (pixels == (200, 0, 0)).all(2)
    assert red.sum() == 12 * width * height
    assert (pixels.min(2) < 100).sum() > red.sum()


def test_sheet_has_a_block_a_sentence_and_grows_with_long_ones(tmp_path):
    crops = _crops(tmp_path, 3)
    one = draw_sheet([Block("red", crops)])
    two = draw_sheet([Block("red", crops), Block("blue", crops)])
    long = draw_sheet([Block("a very long sentence " * 20, crops)])
    assert one.width == two.width == long.width
    assert two.height > one.height + sheet.CELL[1]
    assert long.height > one.height + 3 * 32


def test_sheet_keeps_proportions_and_survives_strips_and_lost_files(tmp_path):
    Image.new("RGB", (900, 1), "red").save(tmp_path / "strip.png")
    Image.new("RGB", (100, 100), (0, 200, 0)).save(tmp_path / "square.png")
    crops = [Crop(tmp_path / name, 1, 0.1) for name in ("strip.png", "gone.png", "square.png")]
    pixels = np.asarray(draw_sheet([Block("x", crops)]))
    assert (pixels == (0, 200, 0)).all(2).sum() == sheet.CELL[0] ** 2


def test_too_large_a_sheet_is_refused_and_the_old_one_stays(tmp_path):
    target = tmp_path / "sheet.png"
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match="1,001 crops") as caught:
        write_sheet(target, [Block("x", [Crop(tmp_path / "a.png", 1, 0.0)] * 1001)])
    assert "--top" in caught.value.remedy
    assert target.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_sheet_whole(tmp_path, monkeypatch):
    target = tmp_path / "sheet.png"
    target.write_bytes(b"old")

    def full(self, file, **kwargs):
        raise OSError(28, "No space left on device")

    crops = _crops(tmp_path, 1)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_sheet(target, [Block("x", crops)])
    assert target.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "sheet.png"]

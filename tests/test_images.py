"""Opening images of every kind, and the messages about those that cannot be opened."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiprctl import pixels as by_torch
from tiprctl.errors import ImageError
from tiprctl.images import MAX_BYTES, MAX_PIXELS, load_pixels, open_image, read_content


@pytest.fixture
def pixels() -> np.ndarray:
    """A smooth picture of 60 x 40 pixels whose four corners differ, so that a turned one is noticed."""
    rows, columns = np.mgrid[0:60, 0:40]
    return np.stack([rows * 4, columns * 6, 255 - rows * 2 - columns * 3], axis=-1).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def message(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    with pytest.raises(ImageError, match=caught.value.what[:20]):
        load_pixels(path, (64, 32))
    with pytest.raises(ImageError, match=caught.value.what[:20]):
        load_pixels(path, (64, 32), content=read_content(path))
    assert caught.value.where == str(path)
    assert caught.value.remedy
    return caught.value.what


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_lossless_pixels_come_through_unchanged(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read(path), pixels)


def test_16_bit_greyscale_keeps_its_high_byte(tmp_path):
    samples = np.linspace(0, 65535, 60 * 40).reshape(60, 40).astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.repeat((samples >> 8)[..., None], 3, axis=-1))


def test_palette_with_a_transparent_colour_is_laid_on_white(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert read(tmp_path / "opaque.png")[0, 0].tolist() == [10, 20, 30]
    assert read(tmp_path / "clear.png")[0, 0].tolist() == [255, 255, 255]
    assert read(tmp_path / "clear.png")[1, 3].tolist() == [200, 100, 50]


def test_alpha_is_blended_with_white(tmp_path):
    Image.new("RGBA", (2, 2), (100, 0, 0, 51)).save(tmp_path / "a.png")
    Image.new("LA", (2, 2), (100, 0)).save(tmp_path / "b.png")
    # 51 / 255 = 0.2: 0.2 * 100 + 0.8 * 255 = 224, 0.8 * 255 = 204
    assert read(tmp_path / "a.png")[0, 0].tolist() == [224, 204, 204]
    assert read(tmp_path / "b.png")[0, 0].tolist() == [255, 255, 255]


def test_cmyk_jpeg_shows_its_colour(tmp_path):
    Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path / "a.jpg")[8, 8].astype(int) - [200, 40, 40]).max() <= 4


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path, pixels, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    upright = np.rot90(pixels, -1)
    assert read(path).shape == (40, 60, 3)
    assert np.abs(read(path).astype(int) - upright).mean() < 3
    assert load_pixels(path, (20, 30)).shape == (20, 30, 3)


def test_animated_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path / "a.gif"), np.full((5, 6, 3), (255, 0, 0)))


@pytest.mark.parametrize("load_pixels", [load_pixels, by_torch.load_pixels])
def test_load_pixels_is_antialiased_and_writable(tmp_path, load_pixels):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    loaded = load_pixels(tmp_path / "a.png", (8, 16))
    assert loaded.shape == (8, 16, 3)
    assert loaded.dtype == np.uint8
    # Without antialiasing the stripes would come out black or white.
    assert np.abs(loaded[:, 1:-1].astype(int) - 127).max() <= 8
    loaded[0, 0] = 1


@pytest.mark.parametrize("source", [(48, 24), (150, 60), (700, 250), (16, 200)])
def test_resizing_by_torch_is_within_a_grey_level_of_pillow(tmp_path, source):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*source, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.resize((32, 96), Image.Resampling.BILINEAR), int)
    difference = np.abs(by_torch.load_pixels(tmp_path / "a.png", (96, 32)).astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.25
    np.testing.assert_array_equal(load_pixels(tmp_path / "a.png", (96, 32)), expected)


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 32)), (6, (32, 64)), (6, (64, 16))])
def test_large_jpeg_at_reduced_scale_is_close_to_the_full_decoding(tmp_path, orientation, size):
    """Detail as fine as the target: decoding at exactly the target's size would differ by several levels."""
    rng = np.random.default_rng(0)
    detailed = Image.fromarray(rng.integers(0, 256, (128, 64, 3), np.uint8)).resize((256, 512))
    exif = Image.Exif()
    exif[0x0112] = orientation
    detailed.save(tmp_path / "a.jpg", quality=90, exif=exif)
    full = open_image(tmp_path / "a.jpg").resize(size[::-1], Image.Resampling.BILINEAR)
    difference = np.abs(load_pixels(tmp_path / "a.jpg", size).astype(int) - np.asarray(full, int))
    assert 0 < difference.mean() < 2.5


def test_truncated_jpeg(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-400])
    assert "cannot be read" in message(path)
    assert "truncated" in message(path)


def test_damaged_png_chunk(tmp_path, pixels):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    assert "cannot be read" in message(path)


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert message(tmp_path / "a.jpg") == "The image file is empty (0 bytes)"


def test_file_that_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    assert message(tmp_path / "a.jpg") == "The file is not an image of a known format"


def test_missing_file_and_folder(tmp_path):
    assert message(tmp_path / "none.jpg") == "There is no such image file"
    assert "folder" in message(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert "not an image file" in message(tmp_path / "a.jpg")


@pytest.mark.parametrize("side", [20_000, 10_000, int(MAX_PIXELS**0.5) + 1])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_image_is_refused_before_it_is_decoded(tmp_path, side):
    # The header alone: decoding it would fail with another message.
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end
    (tmp_path / "a.png").write_bytes(png)
    assert message(tmp_path / "a.png") == "The image has more than 64 million pixels"


@pytest.mark.parametrize(("mode", "copies"), [("RGB", 1), ("L", 0)])
def test_only_the_opened_image_itself_is_copied(tmp_path, pixels, monkeypatch, mode, copies):
    picture, calls = Image.fromarray(pixels).convert(mode), []
    picture.save(tmp_path / "a.png")
    original = Image.Image.copy
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "copy", lambda image: calls.append(image) or original(image))
        image = open_image(tmp_path / "a.png")
    assert len(calls) == copies
    assert np.array_equal(np.asarray(image), np.asarray(picture.convert("RGB")))


def test_a_file_that_no_image_can_be_is_not_read(tmp_path):
    """It has no content on the disk, so the test costs nothing."""
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for open_it in (read_content, open_image):
        with pytest.raises(ImageError, match="more than 512 MB"):
            open_it(tmp_path / "huge.jpg")

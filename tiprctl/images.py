"""Opening image files of any kind as upright RGB pictures, and refusing damaged ones with a readable error."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tiprctl.errors import ImageError

MAX_PIXELS = 64_000_000
"""Images with more pixels are refused before they are decoded: their RGB copy alone would take 192 MB."""

MAX_BYTES = 8 * MAX_PIXELS
"""Larger files are refused before they are read: a pixel takes 8 bytes at most, uncompressed with 16 bits a channel."""

BACKGROUND = (255, 255, 255, 255)
"""What shows through transparent pixels, RGBA: white, as in an image viewer."""

_DRAFT_MARGIN = 2
"""How many times the wanted size a JPEG decoded at reduced scale still measures before it is resized."""

_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)
"""The EXIF orientations that exchange width and height."""

_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""


def open_image(path: str | Path, *, content: bytes | None = None) -> Image.Image:
    """The first frame of an image file, upright (EXIF orientation applied), in mode RGB.

    16-bit greyscale keeps its high byte; transparent pixels are laid on white.

    Args:
        content: the file's content, where it has been read already.

    Raises:
        ImageError: the file is missing, empty, damaged, of no known format, or has more than `MAX_PIXELS` pixels
            or `MAX_BYTES` bytes.
    """
    with _opened(Path(path), content) as image:
        upright = _upright_rgb(image)
        return upright.copy() if upright is image else upright


def resized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a picture, uint8 `(H, W, 3)`, resized to `size` = (H, W) by antialiased bilinear filtering."""
    height, width = size
    # A copy, since what Pillow lends cannot be written to.
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def load_pixels(
    path: str | Path,
    size: tuple[int, int],
    *,
    content: bytes | None = None,
    resize: Callable[[Image.Image, tuple[int, int]], np.ndarray] = resized,
) -> np.ndarray:
    """An image file's upright pixels, uint8 `(H, W, 3)`, resized to `size` = (H, W).

    A JPEG at least four times larger than `size` in both directions is decoded at half, quarter or eighth scale,
    never below twice `size`: much quicker, and the result is within two grey levels of a full decoding on average.

    Pillow decodes, because it is silent about harmless damage, which torchvision's decoder reports on stderr.

    Args:
        content: the file's content, where it has been read already.
        resize: does the resizing.

    Raises:
        ImageError: as `open_image`.
    """
    height, width = size
    with _opened(Path(path), content) as image:
        wanted = (width * _DRAFT_MARGIN, height * _DRAFT_MARGIN)
        if image.format == "JPEG":
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
            image.draft(None, wanted[::-1] if sideways else wanted)
        return resize(_upright_rgb(image), size)


def read_content(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it is missing, empty, no file, larger than `MAX_BYTES`, or cannot be read.
    """
    with _refusing_damage(Path(path)):
        _refuse_odd_files(Path(path))
        return Path(path).read_bytes()


def exif_time(content: bytes) -> datetime | None:
    """When the picture in a file's content was taken, by its EXIF: the clock of the camera that took it.

    An offset from UTC that may stand beside it is left aside, since it is the camera's own clock that is asked for.
    """
    try:
        with _opened(Path(), content) as image:
            exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
            return datetime.strptime(str(exif.get(ExifTags.Base.DateTimeOriginal)).rstrip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ImageError:
        # Without EXIF, or a camera whose clock was never set, there is no such time either.
        return None


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The opened, not yet decoded image; whatever goes wrong until the block ends becomes an `ImageError`."""
    with _refusing_damage(path):
        if content is None:
            _refuse_odd_files(path)
        with Image.open(path if content is None else BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path)
            yield image


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `ImageError`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Image.UnidentifiedImageError as error:
        remedy = "Convert it to JPEG or PNG, or take it out of the folder."
        raise ImageError("The file is not an image of a known format", where=path, remedy=remedy) from error
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        remedy = "Copy it again from its source, or take it out of the folder."
        raise ImageError(f"The image cannot be read: {reason}", where=path, remedy=remedy) from error


def _refuse_odd_files(path: Path) -> None:
    """Refuse what Pillow would name badly, or (a named pipe) wait for without end, and what would fill the memory."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ImageError("There is no such image file", where=path, remedy="Check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("This is not an image file but a folder or device", where=path, remedy="Check the path.")
    if status.st_size == 0:
        remedy = "Copy it again from its source, or take it out of the folder."
        raise ImageError("The image file is empty (0 bytes)", where=path, remedy=remedy)
    if status.st_size > MAX_BYTES:
        raise too_heavy(path)


def too_heavy(place: Path | str) -> ImageError:
    """What is told of a file of more than `MAX_BYTES`."""
    remedy = "Save it as JPEG, or take it out of the folder."
    return ImageError(f"The image file has more than {MAX_BYTES // 1_000_000} MB", where=place, remedy=remedy)


def _too_large(path: Path) -> ImageError:
    return ImageError(
        f"The image has more than {MAX_PIXELS // 1_000_000} million pixels",
        where=path,
        remedy="Scale it down, or cut the persons out: a person crop has a few hundred pixels a side.",
    )


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Decode, turn upright and convert to RGB; `image` itself where it needs no conversion, as most need none."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _high_byte(image).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit greyscale as 8-bit: Pillow's own conversion clips it to white instead of scaling it."""
    samples = np.asarray(image).astype(np.int64)
    return Image.fromarray((samples >> 8).clip(0, 255).astype(np.uint8))

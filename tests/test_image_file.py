"""The file of decoded images: what NumPy reads from it, which rows are trusted, what it is called and when."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiprctl.data import image_file
from tiprctl.data.image_file import DAMAGE, ImageFile, StampedImages, all_files, spell_size, stamps_of, whole_sizes

SIZE = (4, 2)
STAMPS = np.array([70, 20, 50, 90, 30], np.uint64)
NONE = np.zeros(len(STAMPS), bool)


def pixels_of(stamps: np.ndarray) -> np.ndarray:
    """Pixels that differ from image to image, by its stamp."""
    return (np.arange(3 * 4 * 2).reshape(3, *SIZE) + stamps[:, None, None, None].astype(np.int64)).astype(np.uint8)


def ignore(count: int) -> None:
    pass


def save(file: ImageFile, stamps: np.ndarray, rows: np.ndarray) -> None:
    """An unfinished file of images with these stamps, of which these rows are saved."""
    file.begin(stamps)
    with file.writer(stamps, np.zeros(len(stamps), bool)) as writer:
        writer.write(rows, pixels_of(stamps[rows]), ignore)


@pytest.fixture
def file(tmp_path) -> ImageFile:
    """A whole file."""
    made = ImageFile(tmp_path, SIZE)
    save(made, STAMPS, np.arange(len(STAMPS)))
    made.unfinished.rename(made.whole)
    return made


def test_numpy_reads_it_as_two_arrays(file):
    with file.whole.open("rb") as handle:
        stamps, pixels = np.load(handle), np.load(handle)
        assert handle.read() == b""
    assert (stamps.dtype, pixels.dtype) == (np.uint64, np.uint8)
    np.testing.assert_array_equal(stamps, STAMPS)
    np.testing.assert_array_equal(pixels, pixels_of(STAMPS))


def test_the_pixels_are_mapped_and_not_read(file):
    images = file.read(file.whole)
    assert isinstance(images.pixels, np.memmap)
    assert not images.pixels.flags.writeable
    np.testing.assert_array_equal(images.stamps, STAMPS)
    np.testing.assert_array_equal(images.pixels, pixels_of(STAMPS))


@pytest.mark.parametrize("spoil", ["cut", "longer", "empty", "noise", "magic", "count", "shape", "folder"])
def test_a_damaged_file_holds_nothing(file, spoil):
    content = file.whole.read_bytes()
    match spoil:
        case "cut":
            file.whole.write_bytes(content[:-1])
        case "longer":
            file.whole.write_bytes(content + b"\0")
        case "empty":
            file.whole.write_bytes(b"")
        case "noise":
            file.whole.write_bytes(bytes(range(256)) * 40)
        case "magic":
            file.whole.write_bytes(b"\x00" + content[1:])
        case "count":
            file.whole.write_bytes(content.replace(b"(5,)", b"(9999999999999,)", 1))
        case "shape":
            file.whole.write_bytes(content.replace(b"5, 3, 4, 2", b"5, 3, 2, 4"))
        case "folder":
            file.whole.unlink()
            file.whole.mkdir()
    with pytest.raises(DAMAGE):
        file.read(file.whole)
    assert_empty(file.saved(file.whole))


def assert_empty(images: StampedImages) -> None:
    assert images.stamps.shape == (0,)
    assert images.pixels.shape == (0, 3, *SIZE)
    assert not images.find(STAMPS)[1].any()


def test_a_damaged_number_of_images_asks_for_no_memory(file, monkeypatch):
    content = file.whole.read_bytes()
    count = len(content) // (3 * 4 * 2) + 1
    file.whole.write_bytes(content.replace(b"(5,), }  ", f"({count},), }}".encode().ljust(9), 1))
    assert len(file.whole.read_bytes()) == len(content)
    monkeypatch.setattr(image_file.Layout, "of", None)
    with pytest.raises(ValueError, match=f"{file.whole} holds no {count} images"):
        file.read(file.whole)


def test_only_what_is_missing_or_damaged_holds_nothing(file, monkeypatch):
    file.whole.unlink()
    with pytest.raises(FileNotFoundError):
        file.read(file.whole)
    assert_empty(file.saved(file.whole))

    def refused(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError):
        file.saved(file.whole)


def test_rows_are_found_as_by_a_loop():
    generator = np.random.default_rng(0)
    stamps = generator.permutation(np.arange(2, 60, dtype=np.uint64))[:40]
    stamps[[3, 17]] = 0
    wanted = generator.integers(2, 60, 200).astype(np.uint64)
    places, found = StampedImages(stamps, pixels_of(stamps)).find(wanted)
    assert 0 < found.sum() < len(found)
    held = stamps.tolist()
    assert found.tolist() == [stamp in held for stamp in wanted.tolist()]
    assert places[found].tolist() == [held.index(stamp) for stamp in wanted.tolist() if stamp in held]


def image(path: Path, content: bytes = b"pixels") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_a_stamp_tells_the_path_below_the_folder_the_size_and_the_time(tmp_path):
    root = tmp_path / "root"
    paths = [image(root / "a" / "0.png"), image(root / "b" / "0.png"), image(root / os.fsdecode(b"\xff.png"))]
    before = stamps_of(root, paths)
    assert before.dtype == np.uint64
    assert len({0, *before.tolist()}) == 4
    moved = Path(shutil.move(root, tmp_path / "moved"))
    paths = [moved / path.relative_to(root) for path in paths]
    np.testing.assert_array_equal(stamps_of(moved, paths), before)
    image(paths[0], b"longer than before")
    os.utime(paths[1], ns=(10**18, 10**18 + 1000))
    np.testing.assert_array_equal(stamps_of(moved, paths) == before, [False, False, True])


def test_an_image_that_is_missing_is_in_no_file(tmp_path):
    """Though a row says so: the image came between its stamp and its decoding, and went again."""
    wanted = stamps_of(tmp_path, [image(tmp_path / "0.png"), tmp_path / "1.png"])
    assert wanted.all()
    assert StampedImages(wanted, pixels_of(wanted)).find(wanted)[1].tolist() == [True, False]


def test_rows_are_saved_where_they_would_be_written(tmp_path):
    file = ImageFile(tmp_path, SIZE)
    assert not file.rows_saved(STAMPS).any()
    save(file, STAMPS, np.array([0, 2, 3]))
    assert file.rows_saved(STAMPS).tolist() == [True, False, True, True, False]
    changed = np.where(STAMPS == 50, np.uint64(51), STAMPS)
    assert file.rows_saved(changed).tolist() == [True, False, False, True, False]
    assert not file.rows_saved(STAMPS[::-1]).any()
    assert not file.rows_saved(STAMPS[:-1]).any()


def test_what_holds_wanted_rows_is_put_aside(tmp_path):
    file = ImageFile(tmp_path, SIZE)
    for number in (1, 2):
        save(file, STAMPS[:number], np.arange(number))
    older = tmp_path / "pixels-4x2.older1"
    assert file.put_aside() == [older]
    np.testing.assert_array_equal(file.read(older).pixels, pixels_of(STAMPS[:1]))
    file.begin(STAMPS)
    assert file.put_aside() == [older, tmp_path / "pixels-4x2.older2"]


def test_what_holds_no_wanted_rows_is_written_over(tmp_path):
    file = ImageFile(tmp_path, SIZE)
    save(file, STAMPS[:2], np.arange(2))
    file.begin(STAMPS[2:])
    assert file.put_aside() == []
    images = file.read(file.unfinished)
    assert images.stamps.tolist() == [0, 0, 0]
    assert not images.pixels.any()


def test_rows_that_are_not_saved_lose_their_stamps_first(tmp_path):
    file = ImageFile(tmp_path, SIZE)
    save(file, STAMPS, np.arange(5))
    with file.writer(STAMPS + np.uint64(1), np.array([True, False, True, False, True])):
        assert file.read(file.unfinished).stamps.tolist() == [71, 0, 51, 0, 31]


def test_no_stamp_is_written_before_its_pixels_are_on_the_disk(tmp_path, monkeypatch):
    file = ImageFile(tmp_path, SIZE)
    file.begin(STAMPS)
    with file.writer(STAMPS, NONE) as writer:
        writer.write(np.array([3]), pixels_of(STAMPS[3:4]), ignore)

        def killed(descriptor):
            raise SystemExit

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(os, "fsync", killed)
            writer.write(np.array([1, 2]), pixels_of(STAMPS[1:3]), ignore)
    images = file.read(file.unfinished)
    assert images.stamps.tolist() == [0, 0, 0, 90, 0]
    np.testing.assert_array_equal(images.pixels[1:4], pixels_of(STAMPS[1:4]))


def test_images_before_one_that_cannot_be_had_are_saved(tmp_path):
    file, told = ImageFile(tmp_path, SIZE), []
    rows = np.array([4, 0, 2])

    def images():
        yield from pixels_of(STAMPS[rows[:2]])
        raise ValueError("damaged")

    file.begin(STAMPS)
    with file.writer(STAMPS, NONE) as writer, pytest.raises(ValueError, match="damaged"):
        writer.write(rows, images(), told.append)
    assert told == [1, 1]
    saved = file.read(file.unfinished)
    assert saved.stamps.tolist() == [70, 0, 0, 0, 30]
    np.testing.assert_array_equal(saved.pixels[rows[:2]], pixels_of(STAMPS[rows[:2]]))


def test_names(tmp_path):
    assert spell_size((384, 128)) == "384x128"
    large, small = ImageFile(tmp_path, (384, 128)), ImageFile(tmp_path, (64, 32))
    assert large.whole == tmp_path / "pixels-384x128.cache"
    assert large.unfinished == tmp_path / "pixels-384x128.partial"
    aside = tmp_path / "pixels-64x32.older12"
    kept = [large.unfinished, large.whole, small.whole, aside]
    for path in (*kept, tmp_path / "pixels-64x32.lock", tmp_path / "manifest.parquet", tmp_path / "pixels.cache"):
        path.touch()
    assert all_files(tmp_path) == sorted(kept)
    assert whole_sizes(tmp_path) == ["384x128", "64x32"]
    assert small.put_aside() == [aside]
    assert large.put_aside() == []

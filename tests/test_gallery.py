"""The gallery: walking, embedding."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from PIL import Image

from tiprctl.errors import InputError
from tiprctl.gallery.embed import Unreadable, embed_images, list_images


class MeanColour:
    """An embedder that sees the mean colour; it counts what it embeds, and can be told to be interrupted."""

    description = "mean colours"
    width = 3
    image_size = (8, 4)
    precision = "float32"

    def __init__(self, fingerprint: str = "mean", interrupt_at: int | None = None):
        self.fingerprint = fingerprint
        self.interrupt_at = interrupt_at
        self.batches: list[int] = []

    @property
    def embedded(self) -> int:
        return sum(self.batches)

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        if self.interrupt_at == len(self.batches):
            raise KeyboardInterrupt
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (8, 4, 3)
        self.batches.append(len(pixels))
        return _unit(pixels.mean((1, 2)) + 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), colour).save(path)


@pytest.fixture
def crops(tmp_path):
    """Ten crops in two folders, each of a grey of its own."""
    root = tmp_path / "crops"
    for number in range(10):
        _paint(root / ("a" if number % 2 else "b") / f"{number}.png", (20 * number, 100, 100))
    return root


def _paths(listing):
    return [image.path for image in listing.images]


def test_walk_takes_every_image_kind_in_path_order_and_skips_what_is_hidden(tmp_path):
    for name in ("b.JPG", "a.jpeg", "c/d.png", "c.webp", "z.Bmp", ".hidden.png", ".git/e.png", "c/.thumbs/f.png"):
        _paint(tmp_path / name, "red")
    (tmp_path / "notes.txt").write_text("no image")
    listing = list_images(tmp_path)
    assert _paths(listing) == ["a.jpeg", "b.JPG", "c.webp", "c/d.png", "z.Bmp"]
    assert listing.unreadable == []
    first = (tmp_path / "a.jpeg").stat()
    assert (listing.images[0].size, listing.images[0].mtime_ns) == (first.st_size, first.st_mtime_ns)


def test_walk_takes_a_hidden_folder_that_is_named_outright(tmp_path):
    _paint(tmp_path / ".crops" / "a.png", "red")
    assert _paths(list_images(tmp_path / ".crops")) == ["a.png"]


def test_walk_survives_loops_and_counts_each_real_file_once(tmp_path):
    root = tmp_path / "crops"
    _paint(root / "m" / "one.png", "red")
    _paint(tmp_path / "elsewhere" / "two.png", "blue")
    (root / "m" / "up").symlink_to(root)
    (root / "a_link").symlink_to(root / "m")
    (root / "a_file.png").symlink_to(root / "m" / "one.png")
    (root / "n").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    listing = list_images(root)
    assert _paths(listing) == ["m/one.png", "n/two.png"]
    assert Unreadable("gone.png", "a link that leads nowhere") in listing.unreadable
    assert {one.path for one in listing.unreadable} == {"gone.png", "self.png"}


def test_walk_follows_a_linked_file_that_leaves_the_folder(tmp_path):
    _paint(tmp_path / "store" / "1.png", "red")
    (tmp_path / "crops").mkdir()
    for name in ("y.png", "x.png"):
        (tmp_path / "crops" / name).symlink_to(tmp_path / "store" / "1.png")
    assert _paths(list_images(tmp_path / "crops")) == ["x.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_walk_names_a_file_whose_name_is_not_utf8(tmp_path):
    _paint(tmp_path / "a.png", "red")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    (unreadable,) = list_images(tmp_path).unreadable
    assert unreadable.path == "\\udcff.png"
    assert "not valid UTF-8" in unreadable.reason


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lambda path: None, "There is no such gallery folder", "Name a folder"),
        (lambda path: path.write_text(""), "The gallery is a file, not a folder", "Name a folder"),
        (lambda path: path.mkdir(), "There is no image in the gallery", "Images end in .bmp, .jpeg, .jpg"),
        (lambda path: (path.mkdir(), (path / "a.png").symlink_to("gone")), "There is no image", "a.png (a link that"),
    ],
)
def test_walk_refuses_what_holds_no_image(tmp_path, make, what, remedy):
    make(tmp_path / "crops")
    with pytest.raises(InputError) as caught:
        list_images(tmp_path / "crops")
    assert what in caught.value.what
    assert caught.value.where == str(tmp_path / "crops")
    assert remedy in caught.value.remedy


def test_batches_hold_every_image_in_order(crops):
    listing = list_images(crops)
    embedder = MeanColour()
    batches = list(embed_images(crops, listing.images, embedder, batch_size=3))
    assert embedder.batches == [3, 3, 3, 1]
    assert [image for batch in batches for image in batch.images] == listing.images
    greys = [int(image.path[2]) for image in listing.images]
    expected = _unit(np.array([[20 * grey + 1, 101, 101] for grey in greys], float))
    np.testing.assert_allclose(np.concatenate([batch.vectors for batch in batches]), expected, atol=1e-6)

"""Walking a folder: every image once, nothing beyond the folder, a few bytes an image."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from PIL import Image

from tiprctl.errors import InputError
from tiprctl.gallery.filling.listing import ImageFile, Images, Unreadable
from tiprctl.gallery.filling.walking import _Walk, list_images

OUTSIDE = "a link that leads out of the folder, not followed"


def paint(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), colour).save(path)


def paths(listing):
    return [image.path for image in listing.images]


def test_walk_takes_every_image_kind_in_path_order_and_skips_what_is_hidden(tmp_path):
    for name in ("b.JPG", "a.jpeg", "c/d.png", "c-.png", "c.webp", "z.Bmp", ".hidden.png", ".git/e.png", "c/.th/f.png"):
        paint(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    listing = list_images(tmp_path)
    assert paths(listing) == ["a.jpeg", "b.JPG", "c-.png", "c.webp", "c/d.png", "z.Bmp"]
    assert listing.unreadable == []
    first = (tmp_path / "a.jpeg").stat()
    assert listing.images[0] == ImageFile("a.jpeg", first.st_size, first.st_mtime_ns)


def test_walk_comes_in_path_order(tmp_path):
    deep = "/".join("d" * 200)
    for name in ("b/z.png", "b-/x.png", "b.png", "b/a/y.png", f"{deep}/a.png"):
        paint(tmp_path / name)
    (tmp_path / "c.png").symlink_to(tmp_path / "b" / "z.png")
    assert list(_Walk(tmp_path, False, [])) == sorted(["b-/x.png", "b.png", "b/a/y.png", "b/z.png", f"{deep}/a.png"])


def test_walk_takes_a_hidden_folder_that_is_named_outright(tmp_path):
    paint(tmp_path / ".crops" / "a.png")
    assert paths(list_images(tmp_path / ".crops")) == ["a.png"]


@pytest.fixture
def linked(tmp_path):
    """A folder with links: around, to a sibling, to itself, and to nowhere."""
    root = tmp_path / "crops"
    paint(root / "m" / "one.png")
    paint(tmp_path / "elsewhere" / "two.png", "blue")
    (root / "m" / "up").symlink_to(root)
    (root / "a_link").symlink_to(root / "m")
    (root / "a_file.png").symlink_to(root / "m" / "one.png")
    (root / "n").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    return root


def test_walk_survives_loops_and_counts_each_real_file_once(linked):
    listing = list_images(linked, follow_links=True)
    assert paths(listing) == ["m/one.png", "n/two.png"]
    assert Unreadable("gone.png", "a link that leads nowhere") in listing.unreadable
    assert {one.path for one in listing.unreadable} == {"gone.png", "self.png"}


def test_no_link_leaves_the_folder_unless_asked(linked, tmp_path):
    (linked / "two.png").symlink_to(tmp_path / "elsewhere" / "two.png")
    listing = list_images(linked)
    assert paths(listing) == ["m/one.png"]
    assert {one.path for one in listing.unreadable if one.reason == OUTSIDE} == {"n", "two.png"}


def test_a_link_out_by_way_of_a_folder_that_is_named_alike_is_not_followed(tmp_path):
    paint(tmp_path / "crops" / "a.png")
    paint(tmp_path / "crops-private" / "b.png")
    (tmp_path / "crops" / "b.png").symlink_to(tmp_path / "crops-private" / "b.png")
    assert paths(list_images(tmp_path / "crops")) == ["a.png"]


def test_a_folder_that_is_itself_a_link_is_walked(tmp_path):
    paint(tmp_path / "real" / "a.png")
    (tmp_path / "crops").symlink_to(tmp_path / "real")
    assert paths(list_images(tmp_path / "crops")) == ["a.png"]


def test_a_linked_file_counts_once_under_its_first_name(tmp_path):
    paint(tmp_path / "store" / "1.png")
    (tmp_path / "crops").mkdir()
    for name in ("y.png", "x.png"):
        (tmp_path / "crops" / name).symlink_to(tmp_path / "store" / "1.png")
    assert paths(list_images(tmp_path / "crops", follow_links=True)) == ["x.png"]


def test_a_link_to_a_file_that_is_not_listed_itself_is_taken(tmp_path):
    paint(tmp_path / ".hidden" / "1.png")
    (tmp_path / "x.png").symlink_to(tmp_path / ".hidden" / "1.png")
    assert paths(list_images(tmp_path)) == ["x.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_walk_names_a_file_whose_name_is_not_utf8(tmp_path):
    paint(tmp_path / "a.png")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    (unreadable,) = list_images(tmp_path).unreadable
    assert unreadable.path == "\\udcff.png"
    assert "not valid UTF-8" in unreadable.reason


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lambda path: None, "There is no such folder", "Name a folder"),
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


def test_an_empty_folder_may_be_allowed(tmp_path):
    assert len(list_images(tmp_path, allow_empty=True).images) == 0


@pytest.mark.parametrize("order", [list, sorted])
def test_images_are_a_sequence_that_takes_few_bytes(order):
    many = order(ImageFile(f"cam_{number % 7}/{number:08d}.jpg", number, -number) for number in range(20_000))
    images = Images.of(iter(many))
    assert list(images) == sorted(many)
    assert images[3] == sorted(many)[3]
    assert images[-1] == sorted(many)[-1]
    assert list(images[5:9]) == sorted(many)[5:9]
    assert list(images.take(np.array([17_000, 2]))) == [sorted(many)[17_000], sorted(many)[2]]
    assert list(images.take(np.array([], int))) == []
    assert images.sizes.tolist() == [-time for time in images.times.tolist()] == [image.size for image in sorted(many)]
    assert list(images.paths) == [image.path for image in sorted(many)]
    assert images.table.nbytes / len(many) < 50
    with pytest.raises(IndexError):
        images[20_000]

"""From files to vectors: full batches, read once, nothing lost to what is damaged."""

from __future__ import annotations

import os
import threading
from hashlib import blake2b

import numpy as np
import pytest
from colours import MeanColour, paint, unit

from tiprctl.errors import TiprError
from tiprctl.gallery.filling import embedding
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.embedding import content_hash, embed_images
from tiprctl.gallery.filling.walking import list_images


@pytest.fixture
def crops(tmp_path):
    """Ten crops in two folders, each of a grey of its own."""
    for number in range(10):
        paint(tmp_path / "crops" / "ab"[number % 2] / f"{number}.png", (20 * number, 100, 100))
    return tmp_path / "crops"


def embed(root, model, **options):
    return list(embed_images(root, list_images(root).images, model, **options))


def test_batches_hold_every_image_in_order(crops):
    model = MeanColour()
    batches = embed(crops, model, batch_size=3)
    assert model.batches == [3, 3, 3, 1]
    read = [image for batch in batches for image in batch.images]
    assert [image.file for image in read] == list(list_images(crops).images)
    greys = [int(image.file.path[2]) for image in read]
    expected = unit(np.array([[20 * grey + 1, 101, 101] for grey in greys], float))
    np.testing.assert_allclose(np.concatenate([batch.vectors for batch in batches]), expected, atol=1e-6)
    contents = [(crops / image.file.path).read_bytes() for image in read]
    assert [image.hash for image in read] == [blake2b(one, digest_size=16).hexdigest() for one in contents]


def test_damaged_images_leave_no_holes_in_batches(crops):
    for number in range(9):
        (crops / f"a{number}.png").write_text("not a picture")
        (crops / "b" / f"{number}0.png").touch()
    model = MeanColour()
    batches = embed(crops, model, batch_size=4)
    assert model.batches == [4, 4, 2]
    assert sum(len(batch.unreadable) for batch in batches) == 18
    assert sum(map(len, batches)) == 28


def test_many_damaged_images_are_told_of_before_the_batch_is_full(crops):
    for number in range(9):
        (crops / f"0{number}.png").touch()
    first = embed(crops, MeanColour(), batch_size=4)[0]
    assert (len(first.images), len(first.unreadable)) == (0, 4)


def test_each_file_is_read_once(crops, monkeypatch):
    opened = []
    original = embedding.read_content
    monkeypatch.setattr(embedding, "read_content", lambda path: opened.append(path) or original(path))
    embed(crops, MeanColour(), batch_size=3)
    assert len(opened) == len(set(opened)) == 10


def test_what_cannot_be_read_is_told_with_its_reason(crops):
    images = list_images(crops).images
    (crops / "a" / "0.png").unlink()
    (crops / "b" / "1.png").write_text("not a picture")
    (crops / "b" / "5.png").unlink()
    os.mkfifo(crops / "b" / "5.png")
    (batch,) = embed_images(crops, images, MeanColour())
    reasons = {one.path: one.reason for one in batch.unreadable}
    assert reasons["a/0.png"] == "it was deleted after it had been listed"
    assert "not an image of a known format" in reasons["b/1.png"]
    assert "not an image file" in reasons["b/5.png"]
    assert len(batch.images) == 7


def test_known_content_is_neither_decoded_nor_embedded(crops):
    known = DigestSet([content_hash((crops / "a" / "4.png").read_bytes())])
    model = MeanColour()
    (batch,) = embed(crops, model, known=known)
    assert [image.file.path for image in batch.reusable] == ["a/4.png"]
    assert model.batches == [9]


def test_decoding_goes_on_while_the_model_works(crops, monkeypatch):
    """The model is at its first batch of two until four images are decoded."""
    decoded, four = [], threading.Event()
    original = embedding.load_pixels

    def count(*args, **kwargs):
        decoded.append(original(*args, **kwargs))
        if len(decoded) == 4:
            four.set()
        return decoded[-1]

    class Waiting(MeanColour):
        def embed_images(self, pixels):
            assert four.wait(timeout=20)
            return super().embed_images(pixels)

    monkeypatch.setattr(embedding, "load_pixels", count)
    assert sum(map(len, embed(crops, Waiting(), batch_size=2, workers=1))) == 10


def test_images_are_taken_only_a_few_batches_ahead(crops):
    taken = []

    def images():
        for image in list_images(crops).images:
            taken.append(image)
            yield image

    batches = embed_images(crops, images(), MeanColour(), batch_size=1)
    next(batches)
    assert len(taken) <= 4
    batches.close()


@pytest.mark.parametrize("fault", [np.nan, 3.0])
def test_vectors_that_are_not_of_unit_length_are_refused(crops, fault):
    model = MeanColour()
    model.embed_images = lambda pixels: np.full((len(pixels), 3), fault, np.float32)
    with pytest.raises(TiprError, match="not 10 unit vectors") as caught:
        embed(crops, model)
    assert "--model" in caught.value.remedy


def test_digests_find_what_is_there_and_nothing_else():
    members = [f"/crops/{number}" for number in range(1000)]
    found = DigestSet(members).find(["/crops/7", "/crops/1000", "", "/crops/999", "\udcff"])
    assert found.tolist() == [7, -1, -1, 999, -1]
    assert DigestSet().find(["a"]).tolist() == [-1]
    assert "/crops/1" in DigestSet(members)
    assert DigestSet(members).find([]).tolist() == []

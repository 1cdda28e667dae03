"""What is looked for: sentences, images, more of this and less of that, and files of queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiprctl.errors import ImageError, InputError, UsageError
from tiprctl.gallery.searching.wish import Term, Wish, make_wishes, read_queries, wish_vectors


class Words:
    """A model whose texts are unit vectors of their letters' numbers, and whose images are their mean colours."""

    width = 3
    image_size = (8, 4)

    def __init__(self):
        self.batches: list[int] = []

    def embed_texts(self, texts):
        self.batches.append(len(texts))
        return np.stack([unit([sum(map(ord, text)), len(text), 50.0]) for text in texts]).astype(np.float32)

    def embed_images(self, pixels):
        self.batches.append(len(pixels))
        return np.stack([unit(one.mean((0, 1)) + 1) for one in pixels]).astype(np.float32)


def unit(vector):
    vector = np.asarray(vector, float)
    return vector / np.sqrt(sum(value * value for value in vector))


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (4, 8), (200, 20, 0)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_sentence_alone_is_its_own_vector():
    (one,) = make_wishes(["red coat"])
    assert (one.label, one.sentence) == ("red coat", "red coat")
    np.testing.assert_allclose(wish_vectors([one], Words()), Words().embed_texts(["red coat"]), atol=1e-6)


def test_all_parts_add_up_with_their_weights(image):
    (one,) = make_wishes(["red coat"], [f"{image}^2"], ["a bag^0.5"], ["hat"])
    model = Words()
    words = dict(zip(("red coat", "a bag", "hat"), model.embed_texts(["red coat", "a bag", "hat"]).astype(float)))
    expected = unit(words["red coat"] + 2 * unit([201, 21, 1]) + 0.5 * words["a bag"] - words["hat"])
    (vector,) = wish_vectors([one], model)
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert vector.dtype == np.float32
    assert one.label == f"red coat + like {image}^2 + a bag^0.5 - hat"
    assert one.sentence is None


def test_the_further_parts_go_with_each_sentence(image):
    wishes = make_wishes(["red", "blue"], [str(image)], (), ["hat^3"])
    assert wishes == [Wish((Term(word), Term(image), Term("hat", -3.0))) for word in ("red", "blue")]
    together = wish_vectors(wishes, Words())
    np.testing.assert_allclose(together, np.concatenate([wish_vectors([one], Words()) for one in wishes]), atol=1e-6)


def test_images_and_texts_need_no_sentence(image):
    (alike,) = make_wishes([], [str(image), str(image)])
    np.testing.assert_allclose(wish_vectors([alike], Words())[0], unit([201, 21, 1]), atol=1e-6)
    assert alike.label == f"like {image} + like {image}"
    (more,) = make_wishes([], (), ["a bag^2"])
    assert more.label == "a bag^2"
    np.testing.assert_allclose(wish_vectors([more], Words()), Words().embed_texts(["a bag"]), atol=1e-6)


def test_many_queries_are_embedded_in_batches_and_once_each():
    model = Words()
    vectors = wish_vectors(make_wishes([f"text {number % 100}" for number in range(300)]), model)
    assert vectors.shape == (300, 3)
    assert model.batches == [64, 36]
    np.testing.assert_array_equal(vectors[:100], vectors[100:200])


@pytest.mark.parametrize(
    ("given", "what", "weight"),
    [("hat^0.5", "hat", 0.5), ("hat ^2", "hat", 2), ("hat", "hat", 1), ("a^b", "a^b", 1), ("a^b^3", "a^b", 3)],
)
def test_a_weight_follows_the_last_caret(given, what, weight):
    (one,) = make_wishes([], (), [given])
    assert one.terms == (Term(what, weight),)


def test_a_file_whose_name_ends_like_a_weight_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a^2", "b"):
        Path(name).touch()
    assert make_wishes([], ["a^2"])[0].terms == (Term(Path("a^2")),)
    assert make_wishes([], ["b^2"])[0].terms == (Term(Path("b"), 2.0),)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(UsageError, match=f"The weight {weight} is no positive number") as caught:
        make_wishes(["x"], (), (), [f"hat^{weight}"])
    assert caught.value.where == f"--minus hat^{weight}"


def test_nothing_and_only_what_is_not_wanted_are_refused():
    for minus in ([], ["hat"]):
        with pytest.raises(UsageError, match="nothing to look for"):
            make_wishes([], (), (), minus)
    with pytest.raises(UsageError, match="The text is empty"):
        make_wishes(["x"], (), ["  ^2"])


def test_parts_that_cancel_each_other_out_are_told():
    with pytest.raises(UsageError, match="cancel each other out") as caught:
        wish_vectors(make_wishes(["hat"], (), (), ["hat"]), Words())
    assert caught.value.where == "hat - hat"


def test_an_image_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(InputError, match="no such image file") as caught:
        make_wishes([], [str(tmp_path / "none.png")])
    assert caught.value.where == str(tmp_path / "none.png")
    (tmp_path / "bad.png").write_text("not a picture")
    with pytest.raises(ImageError, match="not an image") as caught:
        wish_vectors(make_wishes([], [str(tmp_path / "bad.png")]), Words())
    assert caught.value.where == str(tmp_path / "bad.png")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", '\ufeffred coat\n\n  blue, "long" coat \n'),
        ("q", 'red coat\r\nblue, "long" coat'),
        ("q.csv", 'id,query\n1,red coat\n2," blue, ""long"" coat"\n3,\n4\n'),
        ("q.csv", 'Id, Query\n1,red coat\n2,"blue, ""long"" coat"\n'),
        ("q.CSV", 'red coat,1\n\n"blue, ""long"" coat",2\n'),
        ("q.jsonl", '"red coat"\n\n{"id": 2, "query": "blue, \\"long\\" coat"}\n'),
    ],
)
def test_files_of_queries_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_queries(tmp_path / name) == ["red coat", 'blue, "long" coat']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b" \n\n", "The file of queries is empty"),
        ("q.csv", b"", "The file of queries is empty"),
        ("q.csv", b"query\n", "The file of queries is empty"),
        ("q.csv", b'a\n"' + b"x" * 200_000, "is no CSV"),
        ("q.txt", "röd".encode("latin-1"), "is not UTF-8"),
        ("q.jsonl", b'"red"\n{"query": 3}\n', "Line 2 holds no description"),
        ("q.jsonl", b"red\n", "Line 1 holds no description"),
    ],
)
def test_bad_files_of_queries_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_queries(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


def test_a_missing_file_of_queries_is_explained(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_queries(tmp_path / "none.txt")

"""The built-in data set: what it writes, what its captions may say, and how hard it is."""

from __future__ import annotations

import json
import re
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from tiprctl.data.synth_pedes import Drawing
from tiprctl.data.synth_pedes.camera import Shot, photograph, sample_shots
from tiprctl.data.synth_pedes.drawing import draw
from tiprctl.data.synth_pedes.oracle import best_by_colour, oracle_recall, report
from tiprctl.data.synth_pedes.people import (
    ATTRIBUTES,
    COLOURS,
    MAIN_ATTRIBUTES,
    VIEWS,
    hidden_attributes,
    unique_people,
)
from tiprctl.data.synth_pedes.rendering import generate
from tiprctl.data.synth_pedes.wording import COLOUR_WORDS, HAIR_WORDS, THING_WORDS, _misspell, describe
from tiprctl.errors import InputError, UsageError
from tiprctl.tokenizer import default_tokenizer

TINY = {"ids": 2, "val_ids": 1, "test_ids": 1}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The test split of the default size with a few others beside it."""
    root = tmp_path_factory.mktemp("synth-pedes")
    counts = []
    generate(root, Drawing(ids=3, val_ids=2, test_ids=200), workers=1, on_image=counts.append)
    return root, counts


@pytest.fixture(scope="module")
def told():
    """(person, view, hidden attributes, caption) for many captions."""
    rows = []
    for number, person in enumerate(islice(unique_people(7), 1500)):
        rng = Random(f"told:{number}")
        for shot in sample_shots(rng, 4):
            hidden = shot.hidden(person)
            rows.append((person, shot, hidden, describe(person, hidden, shot.view, rng)))
    return rows


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(tmp_path):
    generate(tmp_path / "one", Drawing(**TINY, seed=3), workers=1)
    generate(tmp_path / "two", Drawing(**TINY, seed=3), workers=2)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len(one) == 4 * 4 + 2


def test_another_seed_gives_other_images_and_captions(tmp_path):
    generate(tmp_path / "one", Drawing(**TINY, seed=0), workers=1)
    generate(tmp_path / "two", Drawing(**TINY, seed=1), workers=1)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert not any(one[name] == two[name] for name in one)


def test_the_test_identities_do_not_depend_on_the_number_of_training_identities(tmp_path):
    for ids in (1, 3):
        generate(tmp_path / str(ids), Drawing(ids=ids, val_ids=1, test_ids=1), workers=1)
    images = [sorted(path.read_bytes() for path in (tmp_path / ids / "imgs/test").iterdir()) for ids in ("1", "3")]
    assert images[0] == images[1]


def test_layout_is_that_of_cuhk_pedes(rendered):
    root, counts = rendered
    records = json.loads((root / "reid_raw.json").read_text(encoding="utf-8"))
    assert all(set(record) == {"split", "captions", "file_path", "processed_tokens", "id"} for record in records)
    assert Counter(record["split"] for record in records) == {"train": 12, "val": 8, "test": 800}
    assert [record["id"] for record in records] == [pid for pid in range(1, 206) for _ in range(4)]
    assert all(len(record["captions"]) == len(record["processed_tokens"]) == 2 for record in records)
    assert {record["file_path"] for record in records} == {
        path.relative_to(root / "imgs").as_posix() for path in (root / "imgs").rglob("*.jpg")
    }
    assert counts == [4] * 205
    assert sorted(path.name for path in root.iterdir()) == ["attributes.json", "imgs", "reid_raw.json"]


def test_images_decode_and_have_the_shape_of_person_crops(rendered):
    root, _ = rendered
    sizes = set()
    for path in (root / "imgs").rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB"
            sizes.add(image.size)
    assert all(128 <= height <= 160 and 48 <= width <= 72 for width, height in sizes)
    assert len(sizes) > 20


def test_identities_are_unique():
    people = list(islice(unique_people(0), 3300))
    assert len({tuple(sorted(person.attributes().items())) for person in people}) == 3300


def test_views_of_one_person_differ():
    shots = sample_shots(Random(0), 4)
    assert {shot.view for shot in shots} == set(VIEWS)


def test_hidden_attributes_leave_no_trace_in_the_captions_record(told):
    for _, _, hidden, caption in told:
        assert not hidden & caption.mentions.keys()


FACE = re.compile(r"glasses|spectacles|shades")
LOGO = re.compile(r"print|logo")
ON_THE_LEFT = re.compile(r"shoulder bag|messenger bag|cross-body bag|handbag|purse")
IN_THE_RIGHT = re.compile(r"suitcase|trolley case|shopping bag|umbrella")
CLOSURE = re.compile(r"\bopen\b|unbuttoned|buttoned-up|closed")
SHOES = re.compile(r"\bshoes|sneakers|trainers|boots")


@pytest.mark.parametrize(
    ("words", "unseen"),
    [
        (FACE, lambda shot: shot.view == "back"),
        (LOGO, lambda shot: shot.view != "front"),
        (CLOSURE, lambda shot: shot.view != "front"),
        (ON_THE_LEFT, lambda shot: shot.view == "right"),
        (IN_THE_RIGHT, lambda shot: shot.view == "left"),
        (re.compile("newspaper"), lambda shot: shot.view == "back"),
        (re.compile(r"underneath| over an? "), lambda shot: shot.view == "back"),
        (SHOES, lambda shot: not shot.feet),
    ],
)
def test_captions_do_not_tell_what_the_view_hides(told, words, unseen):
    assert not [caption.text for _, shot, _, caption in told if unseen(shot) and words.search(caption.text)]
    assert any(words.search(caption.text) for *_, caption in told)


def test_what_a_garment_covers_is_not_told(told):
    for person, _, _, caption in told:
        if person.closure == "closed":
            assert not caption.mentions.keys() & {"top", "top_colour", "pattern", "sleeves"}
        if person.hat is not None and person.hair == "short":
            assert " hair" not in caption.text


def test_mentions_are_true_except_for_recorded_mistakes(told):
    for person, _, _, caption in told:
        wrong = {name for name, value in caption.mentions.items() if getattr(person, name) != value}
        assert wrong == set(caption.mistakes) - {"typo"}
        assert all(name.endswith("colour") for name in wrong)


def test_every_mention_stands_in_the_text(told):
    things = ("hat", "glasses", "outer", "shoes", "bag", "carried")
    for *_, caption in told:
        if "typo" in caption.mistakes:
            continue
        for name, value in caption.mentions.items():
            if name.endswith("_colour"):
                words = (HAIR_WORDS if name == "hair_colour" else COLOUR_WORDS)[value]
            elif name in things:
                words = THING_WORDS[value]
            else:
                continue
            assert any(word in caption.text.lower() for word in words), (name, value, caption.text)


def test_mistakes_and_typos_are_a_few_per_cent(told):
    wrong = sum(bool(set(caption.mistakes) - {"typo"}) for *_, caption in told) / len(told)
    misspelt = sum("typo" in caption.mistakes for *_, caption in told) / len(told)
    assert 0.02 < wrong < 0.06
    assert 0.02 < misspelt < 0.06


def test_a_typo_changes_one_word_and_spares_short_ones():
    text = "A woman in a red coat."
    for seed in range(50):
        before, after = text.split(), _misspell(text, Random(seed)).split()
        assert [word for word in before if word not in after] == ["woman"]
    assert _misspell("A man in a red top.", Random(0)) == "A man in a red top."


def test_captions_are_as_long_as_the_real_ones_and_fit_the_context(told):
    texts = [caption.text for *_, caption in told]
    words = [len(text.split()) for text in texts]
    assert 27 < np.mean(words) < 33
    tokenizer = default_tokenizer()
    assert max(len(tokenizer.encode(text)) for text in sorted(texts, key=len)[-100:]) < 75


def test_captions_are_varied_sentences(told):
    texts = [caption.text for *_, caption in told]
    assert len(set(texts)) > 0.97 * len(texts)
    assert all(re.fullmatch(r"[A-Z][a-z0-9' ,.-]*(?:[A-Z][a-z0-9' ,.-]*)*\.", text) for text in texts)
    assert not [text for text in texts if "  " in text or " ." in text or " ," in text]
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE)]
    assert any(re.search(r"^A (woman|lady|female) in a red (coat|jacket)", text) for text in texts)


def test_pronouns_agree_with_the_gender_and_hide_with_it(told):
    for *_, caption in told:
        found = set(re.findall(r"\b(she|her|he|his)\b", caption.text.lower()))
        gender = caption.mentions.get("gender")
        assert found <= {"woman": {"she", "her"}, "man": {"he", "his"}, None: set()}[gender]


def test_a_garment_has_its_colour_in_the_image():
    person = next(
        person
        for person in unique_people(0)
        if person.top_colour == "red" and person.outer is None and person.pattern == "plain" and person.bag is None
    )
    image = photograph(person, Shot("front", True, (60, 140)), Random(0))
    pixels = np.asarray(Image.open(BytesIO(image)).convert("RGB"), np.float32)
    red, green, blue = pixels[40:60, 24:36].mean(axis=(0, 1))
    assert red > 2 * green
    assert red > 2 * blue


def test_the_difficulty_is_within_its_bounds(rendered):
    figures = report(rendered[0])
    assert (figures.split, figures.images, figures.captions) == ("test", 800, 1600)
    assert 90 <= figures.oracle_all <= 99
    assert 85 <= figures.oracle_main <= 95
    assert 1 <= figures.baseline < 30


def test_oracle_counts_ties_in_expectation():
    people = {1: {"gender": "man", "bag": "backpack"}, 2: {"gender": "man"}, 3: {"gender": "woman"}}
    queries = [(1, {"gender": "man"}), (3, {"gender": "woman"}), (1, {"gender": "man", "bag": "backpack"})]
    assert oracle_recall(people, queries, ("gender",)) == pytest.approx(100 * (0.5 + 1 + 0.5) / 3)
    assert oracle_recall(people, queries, ("gender", "bag")) == pytest.approx(100 * (0.5 + 1 + 1) / 3)
    assert oracle_recall(people, [(2, {"gender": "woman"})], ("gender",)) == 0


def test_main_attributes_are_known_ones():
    assert set(MAIN_ATTRIBUTES) < set(ATTRIBUTES)
    for person in islice(unique_people(1), 200):
        assert all(hidden_attributes(person, view) <= set(ATTRIBUTES) for view in VIEWS)


def test_baseline_picks_the_image_with_the_colours_of_the_words():
    red, navy, white, black = (COLOURS[name] for name in ("red", "navy", "white", "black"))
    colours = np.array([[white, black, red], [black, red, navy], [black, navy, red]], np.float32)
    assert best_by_colour("A man in a white shirt.", colours) == 0
    assert best_by_colour("Dark blue trousers and a red coat.", colours) == 1
    assert best_by_colour("A man.", colours) == 0


def test_a_former_rendering_is_replaced_whole(tmp_path):
    generate(tmp_path, Drawing(**TINY), workers=1)
    generate(tmp_path, Drawing(ids=1, val_ids=0, test_ids=0, seed=5), workers=1)
    assert len(contents(tmp_path)) == 4 + 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_rendering_leaves_the_former_one(tmp_path, workers):
    generate(tmp_path, Drawing(**TINY), workers=1)
    before = contents(tmp_path)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, Drawing(ids=60, seed=9), workers=workers, on_image=interrupt)
    assert contents(tmp_path) == before


def test_what_a_killed_rendering_left_goes_away(tmp_path):
    (tmp_path / ".rendering-stale/imgs/train").mkdir(parents=True)
    (tmp_path / ".rendering-stale/imgs/train/00001_0.jpg").write_bytes(b"half")
    generate(tmp_path, Drawing(**TINY), workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attributes.json", "imgs", "reid_raw.json"]


def test_another_data_set_is_never_replaced(tmp_path):
    (tmp_path / "imgs").mkdir()
    with pytest.raises(InputError) as caught:
        draw(tmp_path, Drawing(**TINY), force=True, workers=1)
    assert "files that are no synth-pedes" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "--root" in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "imgs"]


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nobody to draw"):
        Drawing(ids=0, val_ids=0, test_ids=0)
    with pytest.raises(UsageError, match="--val-ids must not be negative: -1"):
        Drawing(val_ids=-1)
    with pytest.raises(UsageError, match="workers must be at least 1"):
        generate(tmp_path, Drawing(), workers=0)


def test_a_root_that_is_a_file_is_explained(tmp_path):
    file = tmp_path / "data"
    file.write_text("")
    with pytest.raises(InputError, match="Cannot write the data set") as caught:
        generate(file, Drawing(**TINY))
    assert str(file) in str(caught.value)


def test_report_explains_a_folder_without_the_data_set(tmp_path, rendered):
    with pytest.raises(InputError, match="holds no synth-pedes"):
        report(tmp_path)
    with pytest.raises(InputError, match="no split 'query'"):
        report(rendered[0], "query")


@pytest.mark.parametrize("seed", range(3))
def test_a_woman_in_a_red_coat_is_always_there(seed):
    first, second = islice(unique_people(seed), 2)
    assert (first.gender, first.outer, first.outer_colour) == ("woman", "coat", "red")
    assert first != second

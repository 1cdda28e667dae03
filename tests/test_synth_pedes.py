"""The built-in data set: what it writes, what its captions may say, and how hard it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, features

from tiprctl.data.synth_pedes import Drawing
from tiprctl.data.synth_pedes.camera import Shot, photograph, sample_shots
from tiprctl.data.synth_pedes.drawing import draw
from tiprctl.data.synth_pedes.oracle import best_by_colour, oracle_recall, report
from tiprctl.data.synth_pedes.people import (
    ATTRIBUTES,
    COLOURS,
    FAMILY,
    FIRST,
    MAIN_ATTRIBUTES,
    VIEWS,
    families,
    hidden_attributes,
    unique_people,
)
from tiprctl.data.synth_pedes.rendering import generate
from tiprctl.data.synth_pedes.wording import (
    COLOUR_WORDS,
    HAIR_WORDS,
    HARD,
    THING_WORDS,
    USUAL,
    Manner,
    _misspell,
    describe,
)
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
    """(person, shot, hidden attributes, caption) for many captions."""
    return captions_in(USUAL)


@pytest.fixture(scope="module")
def told_hard():
    """The same for the captions of the hard data set."""
    return captions_in(HARD)


def captions_in(manner: Manner) -> list[tuple]:
    rows = []
    for number, person in enumerate(islice(unique_people(7), 1500)):
        rng = Random(f"told:{number}")
        for shot in sample_shots(rng, 4):
            hidden = shot.hidden(person)
            rows.append((person, shot, hidden, describe(person, hidden, shot.view, rng, manner)))
    return rows


def digest(root: Path, pattern: str) -> str:
    """A hash of the names and contents of the files that fit `pattern`."""
    hashed = hashlib.sha256()
    for path in sorted(root.rglob(pattern)):
        hashed.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()


def test_the_usual_drawing_stays_what_it_is(tmp_path):
    generate(tmp_path, Drawing(ids=6, val_ids=2, test_ids=3, seed=3), workers=1)
    assert digest(tmp_path, "*.json") == "0e0782420eba55b1ef81009c6dfa783873f50b0be0046fae08521ed158de1505"
    # Another encoder may write other bytes for the same picture.
    if features.version("libjpeg_turbo") == "3.2.0":
        assert digest(tmp_path, "*.jpg") == "f2ccfba19598ea943c6e208dc2c93d4804102f54204763cdf56dcbbe674b21e9"


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


def differing(family) -> set[str]:
    """The attributes that are not the same for all members."""
    return {name for name in ATTRIBUTES if len({getattr(person, name) for person in family}) > 1}


def test_the_members_of_a_family_differ_in_one_attribute_that_a_view_shows():
    drawn = list(islice(families(0), 800))
    told_apart = Counter()
    for family in drawn:
        (name,) = differing(family)
        values = [getattr(person, name) for person in family]
        assert 2 <= len(family) <= FAMILY
        assert len(set(values)) == len(family)
        assert None not in values
        assert all(any(name not in hidden_attributes(person, view) for view in VIEWS) for person in family)
        assert len({(person.skin, person.build, person.dye) for person in family}) == 1
        told_apart[name] += 1
    assert len(told_apart) > 10
    assert max(told_apart.values()) < 0.25 * len(drawn)
    people = [person for family in drawn for person in family]
    assert len(set(people)) == len(people)
    assert all(getattr(people[0], name) == value for name, value in FIRST.items())


def test_look_alikes_wear_what_anyone_might():
    for person in (person for family in islice(families(1), 400) for person in family):
        assert person.top_colour is None or person.top_colour != person.outer_colour
        assert person.pattern_colour is None or person.pattern_colour not in (person.top_colour, person.dress_colour)
        assert (person.bag, person.gender) != ("handbag", "man")


@pytest.fixture(scope="module")
def rendered_hard(tmp_path_factory):
    """A hard data set whose splits end within a family."""
    root = tmp_path_factory.mktemp("synth-pedes-hard")
    generate(root, Drawing(ids=9, val_ids=5, test_ids=90, hard=True), workers=1)
    return root


def test_a_family_is_in_one_split(rendered_hard):
    records = json.loads((rendered_hard / "reid_raw.json").read_text(encoding="utf-8"))
    known = json.loads((rendered_hard / "attributes.json").read_text(encoding="utf-8"))["people"]
    split_of = {record["id"]: record["split"] for record in records}
    assert Counter(split_of.values()) == {"train": 9, "val": 5, "test": 90}
    looks = {pid: set(known[str(pid)].items()) for pid in split_of}
    alike = {(one, two) for one in looks for two in looks if one < two and len(looks[one] ^ looks[two]) == 2}
    assert len(alike) > 90
    assert all(split_of[one] == split_of[two] for one, two in alike)


def test_the_hard_test_identities_do_not_depend_on_the_number_of_training_identities(rendered_hard, tmp_path):
    generate(tmp_path, Drawing(ids=1, val_ids=5, test_ids=90, hard=True), workers=1)
    images = [
        sorted(path.read_bytes() for path in (root / "imgs/test").iterdir()) for root in (rendered_hard, tmp_path)
    ]
    assert images[0] == images[1]


def test_the_hard_captions_are_long_and_fit_the_context(told_hard):
    texts = [caption.text for *_, caption in told_hard]
    words = [len(text.split()) for text in texts]
    assert 43 < np.mean(words) < 50
    assert np.mean([40 <= count <= 55 for count in words]) > 0.98
    tokenizer = default_tokenizer()
    assert max(len(tokenizer.encode(text)) for text in sorted(texts, key=len)[-200:]) <= 75


def test_the_hard_captions_tell_nearly_all_that_is_seen(told, told_hard):
    def share(rows):
        seen = [set(person.attributes()) - hidden for person, _, hidden, _ in rows]
        return np.mean([len(caption.mentions) / len(names) for names, (*_, caption) in zip(seen, rows)])

    assert share(told) < 0.8
    assert share(told_hard) > 0.9


def test_one_hard_caption_in_eight_is_wrong(told_hard):
    wrong = sum(bool(set(caption.mistakes) - {"typo"}) for *_, caption in told_hard) / len(told_hard)
    assert 0.1 < wrong < 0.15
    for person, _, _, caption in told_hard:
        untrue = {name for name, value in caption.mentions.items() if getattr(person, name) != value}
        assert untrue == set(caption.mistakes) - {"typo"}


def test_filler_is_not_repeated(told_hard):
    for *_, caption in told_hard:
        sentences = [sentence.split(" ", 1)[-1] for sentence in caption.text.rstrip(".").split(". ")]
        assert len(set(sentences)) == len(sentences), caption.text


def test_look_alikes_are_hard_for_who_sees_main_colours_alone(rendered, rendered_hard):
    usual, hard = report(rendered[0]), report(rendered_hard)
    assert 85 <= hard.oracle_all < usual.oracle_all
    assert 40 <= hard.oracle_main <= 70


@pytest.mark.parametrize("seed", range(3))
def test_a_woman_in_a_red_coat_is_always_there(seed):
    first, second = islice(unique_people(seed), 2)
    assert (first.gender, first.outer, first.outer_colour) == ("woman", "coat", "red")
    assert first != second

"""Which words of a caption stay, and the file that keeps them."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tiprctl.data import pruning, tagging
from tiprctl.data.manifest import Manifest
from tiprctl.data.pruning import FILE_NAME, PARTIAL_NAME, prune_captions, read_pruned
from tiprctl.data.tagging import TAGGERS, classify, find_tagger, prune, tokens_of
from tiprctl.errors import InputError, UsageError

# Written by the rule, before any tagger was asked: nouns, adjectives and pronouns stay, possessive ones among them.
BY_HAND = {
    "A man in a black hooded jacket carries a bag in his left hand.": "man black hooded jacket bag his left hand",
    "She wears a short-sleeved white t-shirt and blue jeans.": "she short-sleeved white t-shirt blue jeans",
    "The woman has long brown hair tied in a ponytail.": "woman long brown hair ponytail",
    "A person is walking away from the camera with a backpack on their back.": "person camera backpack their back",
    "He is wearing a grey sweater, dark trousers and white sneakers.": "he grey sweater dark trousers white sneakers",
    "A young lady in a knee-length red skirt is talking on her phone.": "young lady knee-length red skirt her phone",
    "The man wears glasses and is looking to his left.": "man glasses his left",
    "A woman with blonde hair, wearing a striped sleeveless top and high-heeled shoes.": (
        "woman blonde hair striped sleeveless top high-heeled shoes"
    ),
    "This pedestrian is pushing a bicycle; it has a large basket.": "pedestrian bicycle it large basket",
    "The boy is dressed in a bright yellow raincoat that covers him down to the knees.": (
        "boy bright yellow raincoat him knees"
    ),
    "A middle-aged man with a bald head is holding a black umbrella under his right arm.": (
        "middle-aged man bald head black umbrella his right arm"
    ),
    "She has her hair in a bun and carries two shopping bags.": "she her hair bun shopping bags",
    "Wearing a green hoodie over a plaid shirt, the person walks quickly towards the exit.": (
        "green hoodie plaid shirt person exit"
    ),
    "The girl's dress is navy blue with small white dots and a thin belt.": (
        "girl dress navy blue small white dots thin belt"
    ),
    "The tall man left the shop with a suitcase behind him.": "tall man shop suitcase him",
    "Seen from behind.": "Seen from behind.",
}


@pytest.fixture
def manifest(cuhk_manifest):
    return cuhk_manifest


@pytest.mark.parametrize(("caption", "expected"), BY_HAND.items(), ids=range(len(BY_HAND)))
def test_captions_are_pruned_as_by_hand(caption, expected):
    assert prune(caption, classify(caption, "hanta")) == expected


@pytest.mark.parametrize("caption", [c for c in BY_HAND if not {"left", "back"} & set(tokens_of(c))])
def test_textblob_prunes_likewise_where_it_knows_the_words(caption):
    pytest.importorskip("textblob")
    assert prune(caption, classify(caption, "textblob")) == BY_HAND[caption]


@pytest.mark.parametrize("tagger", TAGGERS)
@pytest.mark.parametrize(
    ("caption", "expected"),
    {
        "wears is a verb even after down": ("With her hair down she wears boots", "her hair she boots"),
        "patterns before a noun": ("a checked and a stripy shirt", "checked stripy shirt"),
        "clitics go": ("He's a man who doesn't wear the woman's hat", "he man woman hat"),
        "capitals say nothing": ("THE MAN WEARS A RED HAT", "man red hat"),
        "no word at all": (" _ ", " _ "),
        "marks alone": ("?! ...", "?! ..."),
        "entities and broken letters": ("a red&amp;white cafÃ© dress", "red white café dress"),
    }.values(),
)
def test_pruning_of_what_is_hard(tagger, caption, expected):
    if tagger == "textblob":
        pytest.importorskip("textblob")
    assert prune(caption, classify(caption, tagger)) == expected


def test_tokens_keep_hyphens_and_divide_clitics_and_marks():
    assert tokens_of("The girl's T-shirt isn't 'new', short-sleeved - or is it?") == [
        *("the", "girl", "'s", "t-shirt", "is", "n't", "'", "new", "'", ",", "short-sleeved", "-", "or", "is", "it"),
        "?",
    ]


def test_classes_tell_nouns_from_adjectives_and_pronouns():
    assert classify("She has a red bag.", "hanta") == "p..an."


def test_an_unknown_tagger_lists_the_choices():
    with pytest.raises(UsageError, match="Did you mean hanta"):
        find_tagger("hantha")


def test_a_tagger_that_is_not_installed_says_how(manifest, monkeypatch):
    missing = tagging.Tagger("no-such-package", lambda: None, {}, "`pip install it`")
    monkeypatch.setitem(tagging.TAGGERS, "textblob", missing)
    with pytest.raises(UsageError, match=r"not installed[\s\S]*pip install it"):
        prune_captions(manifest, "textblob")
    assert not (manifest.root / FILE_NAME).exists()


def test_the_file_holds_every_training_caption_in_order(manifest):
    made = prune_captions(manifest, "hanta")
    captions = manifest.split("train").captions
    assert made.pruned == [prune(caption, classify(caption, "hanta")) for caption in captions]
    assert read_pruned(manifest) == made
    assert (made.origin.tagger, made.origin.fingerprint) == ("hanta", manifest.fingerprint)
    assert made.origin.version == TAGGERS["hanta"].version
    assert pq.read_table(manifest.root / FILE_NAME).column("pruned").to_pylist() == made.pruned
    assert {file.name for file in manifest.root.iterdir()} == {"imgs", "reid_raw.json", "manifest.parquet", FILE_NAME}


def test_processes_tag_as_one_does(manifest):
    alone = prune_captions(manifest, "hanta")
    (manifest.root / FILE_NAME).unlink()
    assert prune_captions(manifest, "hanta", workers=2) == alone


class Counting:
    """A progress that remembers what it was told, and can press Ctrl-C after some captions."""

    def __init__(self, stop_after=None):
        self.begun, self.told, self.stop_after = [], 0, stop_after

    @contextmanager
    def __call__(self, total, done):
        self.begun.append((total, done))
        yield self.advance

    def advance(self, count):
        self.told += count
        if self.told == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)


def test_what_is_done_is_not_done_again(manifest):
    prune_captions(manifest, "hanta")
    again = Counting()
    prune_captions(manifest, "hanta", progress=again)
    assert again.begun == []


@pytest.mark.parametrize("workers", [1, 2])
def test_after_ctrl_c_it_goes_on_from_there(manifest, workers):
    first, second = Counting(stop_after=5), Counting()
    with pytest.raises(KeyboardInterrupt):
        prune_captions(manifest, "hanta", workers=workers, progress=first)
    assert not (manifest.root / FILE_NAME).exists()
    resumed = prune_captions(manifest, "hanta", progress=second)
    assert (first.told, second.begun, second.told) == (5, [(16, 5)], 11)
    assert not (manifest.root / PARTIAL_NAME).exists()
    (manifest.root / FILE_NAME).unlink()
    assert prune_captions(manifest, "hanta") == resumed


def test_a_killed_run_goes_on_from_what_was_saved(manifest):
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_pruning import Counting; from tiprctl.data import pruning, manifest\n"
        "class Kill(Counting):\n"
        "    def advance(self, count):\n"
        "        self.told += count\n"
        "        if self.told == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pruning.SAVE_EVERY = 3\n"
        "pruning.prune_captions(manifest.read_manifest(sys.argv[2]), 'hanta', progress=Kill())"
    )
    arguments = [str(Path(__file__).parent), str(manifest.root)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    second = Counting()
    assert len(prune_captions(manifest, "hanta", progress=second)) == 16
    assert second.begun == [(16, 6)]


def test_another_tagger_starts_anew_and_leaves_the_old_file_until_it_is_whole(manifest):
    pytest.importorskip("textblob")
    old = prune_captions(manifest, "hanta")
    with pytest.raises(KeyboardInterrupt):
        prune_captions(manifest, "textblob", progress=Counting(stop_after=5))
    assert read_pruned(manifest) == old
    third = Counting()
    (manifest.root / FILE_NAME).unlink()
    prune_captions(manifest, "hanta", progress=third)
    assert third.begun == [(16, 0)]


def test_another_version_of_the_tagger_starts_anew(manifest, monkeypatch):
    prune_captions(manifest, "hanta")
    monkeypatch.setattr(tagging.Tagger, "version", "99")
    again = Counting()
    assert prune_captions(manifest, "hanta", progress=again).origin.version == "99"
    assert again.begun == [(16, 0)]


def test_a_missing_file_says_how_to_make_it(manifest):
    with pytest.raises(InputError, match="not tagged yet") as raised:
        read_pruned(manifest)
    assert raised.value.where == str(manifest.root / FILE_NAME)
    assert f"`tiprctl augment {manifest.root}`" in raised.value.remedy
    assert all(recipe in raised.value.remedy for recipe in ("sen prunes", "scvd makes its phrases"))


def test_a_file_of_another_manifest_is_refused_and_made_anew(manifest):
    prune_captions(manifest, "hanta")
    other = Manifest(manifest.dataset, manifest.root, manifest.captions.iloc[:-1])
    with pytest.raises(InputError, match=r"another manifest[\s\S]*tiprctl augment"):
        read_pruned(other)
    prune_captions(other, "hanta")
    assert read_pruned(other).origin.fingerprint == other.fingerprint


@pytest.mark.parametrize("damage", ["no parquet", "no metadata", "fewer rows", "other classes"])
def test_a_damaged_file_is_told_from_another_and_made_anew(manifest, damage):
    made = prune_captions(manifest, "hanta")
    file = manifest.root / FILE_NAME
    table = pq.read_table(file)
    match damage:
        case "no parquet":
            file.write_bytes(b"PAR1 no parquet PAR1")
        case "no metadata":
            pq.write_table(table.replace_schema_metadata(None), file)
        case "fewer rows":
            pq.write_table(table.slice(1), file)
        case "other classes":
            classes = pruning.pa.array([text + "." for text in made.classes])
            pq.write_table(table.set_column(1, "classes", classes), file)
    with pytest.raises(InputError, match=r"damaged[\s\S]*tiprctl augment"):
        read_pruned(manifest)
    assert prune_captions(manifest, "hanta") == made == read_pruned(manifest)

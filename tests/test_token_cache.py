"""Captions tokenised once: the same from the file, made anew where the file cannot be trusted, never an error."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
import pytest

from tiprctl.config import CaptionConfig
from tiprctl.data import token_cache
from tiprctl.data.captions import TrainingCaptions
from tiprctl.data.pruning import prune_captions
from tiprctl.data.token_cache import TokenCache
from tiprctl.evaluation import EvaluationData
from tiprctl.tokenizer import BytePairTokenizer, default_tokenizer

TOKENIZER = default_tokenizer()
# An exclamation mark is token 0, as padding is.
TEXTS = ["A man in red!", "", "!!! wow", "A woman with a long, blue " + "coat " * 90, "!"]


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    monkeypatch.setattr(token_cache, "FEWEST", 1)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many texts each call of a tokenizer was given."""
    numbers: list[int] = []
    original = BytePairTokenizer.__call__

    def counted(self, texts, **options):
        numbers.append(len(texts))
        return original(self, texts, **options)

    monkeypatch.setattr(BytePairTokenizer, "__call__", counted)
    return numbers


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.npz"))


def test_from_the_file_as_from_the_tokenizer(tmp_path, calls):
    first, second = (TokenCache(tmp_path, TOKENIZER).token_ids("train", TEXTS) for _ in range(2))
    assert calls == [len(TEXTS)]
    expected = TOKENIZER(TEXTS)
    for token_ids in (first, second):
        np.testing.assert_array_equal(token_ids, expected)
        assert token_ids.dtype == np.int64
        token_ids[0, 0] = 1  # writable
    assert files(tmp_path) == [f"tokens-train-{TOKENIZER.fingerprint[:8]}.npz"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("spoil", ["truncated", "empty", "noise", "bit", "folder"])
def test_a_damaged_file_is_made_anew(tmp_path, calls, spoil):
    expected = TokenCache(tmp_path, TOKENIZER).token_ids("train", TEXTS)
    file = tmp_path / files(tmp_path)[0]
    content = file.read_bytes()
    spoilt = bytearray(content)
    spoilt[spoilt.index(b"\x93NUMPY") + 140] ^= 1
    match spoil:
        case "truncated":
            file.write_bytes(content[:-40])
        case "empty":
            file.write_bytes(b"")
        case "noise":
            file.write_bytes(bytes(range(256)) * 4)
        case "bit":
            file.write_bytes(spoilt)
        case "folder":
            file.unlink()
            file.mkdir()
    for _ in range(2):
        np.testing.assert_array_equal(TokenCache(tmp_path, TOKENIZER).token_ids("train", TEXTS), expected)
    assert len(calls) == (3 if spoil == "folder" else 2), "made anew and, but for what is in its place, kept"


def test_other_texts_or_another_tokenizer_are_not_mistaken(tmp_path, calls):
    cache = TokenCache(tmp_path, TOKENIZER)
    cache.token_ids("train", TEXTS)
    other = [*TEXTS[:-1], "?"]
    np.testing.assert_array_equal(cache.token_ids("train", other), TOKENIZER(other))
    assert len(files(tmp_path)) == 1
    letters = BytePairTokenizer(["r e", "re d</w>"])
    np.testing.assert_array_equal(TokenCache(tmp_path, letters).token_ids("train", other), letters(other))
    assert len(files(tmp_path)) == 2
    calls.clear()
    cache.token_ids("train", other)
    assert calls == []


def test_fingerprint_of_a_tokenizer_tells_its_merges_and_their_order():
    pairs = ["a b", "b c"]
    prints = [BytePairTokenizer(merges).fingerprint for merges in (pairs, pairs[::-1], pairs[:1], pairs)]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3


def test_fingerprint_of_a_word_piece_tokenizer_tells_its_vocabulary_and_context():
    pytest.importorskip("tokenizers")
    from tiprctl.wordpiece import WordPieceTokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    made = [WordPieceTokenizer([*special, word], length) for word, length in (("red", 9), ("blue", 9), ("red", 8))]
    assert len({tokenizer.fingerprint for tokenizer in made}) == 3
    assert made[0].fingerprint == WordPieceTokenizer([*special, "red"], 9).fingerprint


def test_tokens_that_cannot_be_kept_are_told_to_the_log(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level("INFO", "tiprctl"):
        token_ids = TokenCache(tmp_path / "file", TOKENIZER).token_ids("train", TEXTS)
    np.testing.assert_array_equal(token_ids, TOKENIZER(TEXTS))
    (told,) = caplog.messages
    assert str(tmp_path / "file" / "tokens-train") in told
    assert "cannot be kept" in told


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, caplog, monkeypatch):
    folders = []

    def refused(*, dir, **options):
        folders.append(dir)
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with caplog.at_level("INFO", "tiprctl"):
        token_ids = TokenCache(tmp_path, TOKENIZER).token_ids("train", TEXTS)
    np.testing.assert_array_equal(token_ids, TOKENIZER(TEXTS))
    assert folders == [tmp_path]
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages[0].endswith("Permission denied")


def test_a_folder_that_is_none_costs_only_time(tmp_path):
    (tmp_path / "file").touch()
    cache = TokenCache(tmp_path / "file", TOKENIZER)
    np.testing.assert_array_equal(cache.token_ids("train", TEXTS), TOKENIZER(TEXTS))


def test_few_texts_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "FEWEST", len(TEXTS) + 1)
    TokenCache(tmp_path, TOKENIZER).token_ids("train", TEXTS)
    assert files(tmp_path) == []


@pytest.mark.parametrize("width", [1, 8, 13])
def test_flags_come_back_as_they_were(tmp_path, width):
    flags = np.random.default_rng(0).random((5, width)) < 0.5
    cache = TokenCache(tmp_path, TOKENIZER)
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(1)
        return flags

    for _ in range(2):
        found = cache.flags("train", [["a"] * 5, ["n"] * 5], make)
        np.testing.assert_array_equal(found, flags)
        assert found.dtype == bool
    assert len(made) == 1
    cache.flags("train", [["a"] * 5, [*["n"] * 4, "p"]], make)
    assert len(made) == 2


def test_training_captions_are_the_same_from_the_files(cuhk_manifest, calls, monkeypatch):
    prune_captions(cuhk_manifest, "hanta")
    config = CaptionConfig(prune=0.5, mask_content=0.9, mask_other=0.1)
    first = TrainingCaptions(cuhk_manifest, config, TOKENIZER)
    assert calls == [32]
    assert [name.split("-")[:3] for name in files(cuhk_manifest.root)] == [
        ["flags", "train", "pruned"],
        ["tokens", "train", "pruned"],
    ]
    monkeypatch.setattr("tiprctl.data.captions.flag_content", None)
    second = TrainingCaptions(cuhk_manifest, config, TOKENIZER)
    assert calls == [32]
    for name in ("token_ids", "ends", "content"):
        assert getattr(first, name).equal(getattr(second, name))


def test_changed_captions_are_tokenised_anew(cuhk_manifest, calls):
    config = CaptionConfig()
    TrainingCaptions(cuhk_manifest, config, TOKENIZER)
    rows = cuhk_manifest.captions.assign(caption=cuhk_manifest.captions["caption"].str.replace("wears", "has"))
    changed = replace(cuhk_manifest, captions=rows)
    found = TrainingCaptions(changed, config, TOKENIZER).token_ids[0].numpy()
    np.testing.assert_array_equal(found, TOKENIZER(changed.split("train").captions))
    assert calls[:2] == [16, 16]
    assert len(files(changed.root)) == 1


def test_evaluation_reads_the_file_too(cuhk_manifest, calls):
    split = cuhk_manifest.split("test")
    first, second = (EvaluationData(split, (16, 8)).token_ids(TOKENIZER) for _ in range(2))
    assert first.equal(second)
    assert calls == [8]

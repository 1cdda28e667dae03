import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tiprctl.errors import InputError, UsageError
from tiprctl.tokenizer import BytePairTokenizer, default_tokenizer

ROWS = json.loads((Path(__file__).parent / "reference" / "tokenizer.json").read_text(encoding="utf-8"))["rows"]

FRAGMENTS = [
    *("a woman", "RED", "jacket", "T-shirt", "it's", "they'll've", "don't", "jekyll", "naïve", "İstanbul", "straße"),
    *("😀", "👩🏽‍🦰", "🏳️‍🌈", "❤️", "一个穿黑色外套的男人", "かばん", "한국어", "हिन्दी", "مرحبا", "ไทย", "Ñandú", "ﬁne"),
    *("&amp;", "&amp;lt;", "&#39;", "&#x1F600;", "&nbsp;", "&notanentity;", "&#xD800;", "&", "<b>", "</b>"),
    *("\x00", "\x1b[31m", "\x1c", "\x85", "\u200b", "\u2028", "\ufeff", "\xa0", "\t", "\r\n", "\ud800", "\ufffd"),
    *("1234567890", "½", "²", "٣", "１２３", "...", "?!", "--", "_", "`", "{}|~", "’s", "“", "—", "Ã©", "ſ", "'ſ", "K"),
    *("x" * 300, "pneumonoultramicroscopicsilicovolcanoconiosis", "<start>", "</w>", "Ġ", "", " ", "   "),
]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return default_tokenizer()


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_gives_the_ids_of_openais_tokenizer(tokenizer, row):
    assert tokenizer.encode(row["text"]) == row["encode"]
    assert tokenizer([row["text"]], length=77).tolist() == [row["tokenize77"]]


def test_gives_the_ids_of_open_clips_tokenizer_on_odd_strings(tokenizer):
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer()
    dice = random.Random(0)
    characters = [chr(code) for code in [*range(0x500), *range(0x2000, 0x2100), *range(0x1F600, 0x1F650)]]
    texts = [dice.choice(["", " "]).join(dice.choices(FRAGMENTS, k=dice.randint(1, 8))) for _ in range(300)]
    texts += ["".join(dice.choices(characters, k=dice.randint(1, 40))) for _ in range(300)]
    for text in texts:
        assert tokenizer.encode(text) == theirs.encode(text), repr(text)


def test_special_tokens_and_size(tokenizer):
    assert (tokenizer.start, tokenizer.end, tokenizer.vocab_size) == (49406, 49407, 49408)
    assert tokenizer.context_length == 77


def test_knows_the_word_of_the_last_merge(tokenizer):
    assert tokenizer.encode("jekyll") == [49405]


def test_rows_are_as_long_as_the_longest_and_padded_with_zeros(tokenizer):
    rows = tokenizer(["a", "", "a man walking"])
    assert rows.dtype == np.int64
    assert rows.tolist() == [[49406, 320, 49407, 0, 0], [49406, 49407, 0, 0, 0], [49406, 320, 786, 3941, 49407]]


def test_a_single_text_is_one_row(tokenizer):
    assert tokenizer("a").tolist() == [[49406, 320, 49407]]


def test_no_text_gives_no_row(tokenizer):
    assert len(tokenizer([])) == 0
    assert tokenizer([], length=77).shape == (0, 77)


@pytest.mark.parametrize("length", [None, 77, 10, 2])
def test_a_long_caption_keeps_its_end_token(tokenizer, length):
    rows = tokenizer(["red coat " * 100, "a"], length=length)
    assert rows.shape == (2, length or 77)
    assert rows[0, 0] == tokenizer.start
    assert rows[0, -1] == tokenizer.end
    assert rows[0, 1:-1].tolist() == ([736, 7356] * 50)[: rows.shape[1] - 2]


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(UsageError, match="no room for the start and the end token"):
        tokenizer(["a"], length=1)


def test_survives_pickling_for_worker_processes(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a red coat") == tokenizer.encode("a red coat")


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("tiprctl.tokenizer.CACHED_WORDS", 3)
    small = BytePairTokenizer(["a b", "ab c</w>"])
    once = [token for word in ("abc", "ab", "ba") for token in small.encode(word)]
    assert small.encode("abc ab ba") == once
    assert len(small._cache) == 3


def test_joins_the_pair_of_lowest_rank_first_and_each_of_its_occurrences():
    small = BytePairTokenizer(["b c</w>", "a b", "a a"])
    symbols = {index: symbol for symbol, index in small._ids.items()}
    assert [symbols[token] for token in small.encode("abc abab aaa")] == [
        "a",
        "bc</w>",
        "ab",
        "a",
        "b</w>",
        "aa",
        "a</w>",
    ]


def test_imports_neither_torch_nor_open_clip():
    code = (
        "import sys, tiprctl.tokenizer as t; t.default_tokenizer()\n"
        "assert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_list_of_merges_is_named(monkeypatch, tmp_path):
    damaged = tmp_path / "merges.gz"
    damaged.write_bytes(b"not gzip")
    monkeypatch.setattr("tiprctl.tokenizer._merges_path", lambda: damaged)
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*merges\.gz[\s\S]*open-clip-torch"):
        default_tokenizer.__wrapped__()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("tiprctl.tokenizer.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed[\s\S]*pip install"):
        default_tokenizer.__wrapped__()

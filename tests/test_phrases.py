"""The noun phrases of captions, and their prompts: in words and as token ids."""

from importlib import metadata

import numpy as np
import pytest
import torch

from tiprctl.data import tagging
from tiprctl.data.phrases import noun_phrases, phrases_of
from tiprctl.data.tagging import classify
from tiprctl.errors import UsageError
from tiprctl.prompts import Prompts, prompt
from tiprctl.tokenizer import default_tokenizer

TOKENIZER = default_tokenizer()

CAPTIONS = [
    ("A woman in a red coat.", ".n..an.", ["woman", "red coat"]),
    ("She has long black hair", "p.aan", ["long black hair"]),
    ("a white t-shirt, a short-sleeved one", ".an..a.", ["white t-shirt"]),
    ("His T-Shirt and his backpack are BLUE", "pn.pn.a", ["t-shirt", "backpack"]),
    ("The man's baseball cap", ".n.nn", ["man", "baseball cap"]),
    ("A red and white striped shirt", ".a.aan", ["white striped shirt"]),
    ("black shoes, black trousers, black shoes", "an.an.an", ["black shoes", "black trousers"]),
    ("a shirt red", ".na", ["shirt"]),
    ("jeans", "n", ["jeans"]),
    ("He walks quickly away.", "p....", ["He walks quickly away."]),
    ("Tall, dark", "a.a", ["Tall, dark"]),
    (" _ ", "", [" _ "]),
]


@pytest.mark.parametrize(("caption", "classes", "expected"), CAPTIONS)
def test_phrases_are_the_runs_of_adjectives_and_nouns_that_end_in_a_noun(caption, classes, expected):
    assert noun_phrases(caption, classes) == expected


MANY = "man, red cap, step, green coat, way, blue jeans, bag, white socks"
MANY_CLASSES = "n.an.n.an.n.an.n.an"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, ["red cap"]),
        (3, ["red cap", "green coat", "blue jeans"]),
        (5, ["man", "red cap", "green coat", "blue jeans", "white socks"]),
        (6, ["man", "red cap", "step", "green coat", "blue jeans", "white socks"]),
        (8, MANY.split(", ")),
    ],
)
def test_of_too_many_those_of_several_words_stay_in_the_caption_s_order(limit, expected):
    assert noun_phrases(MANY, MANY_CLASSES, limit) == expected


def test_six_are_the_most_where_nothing_is_said():
    assert noun_phrases(MANY, MANY_CLASSES) == noun_phrases(MANY, MANY_CLASSES, 6)


def test_sentences_are_tagged_by_the_tagger_of_that_name():
    sentences = ["A woman wears a red coat and has long black hair.", "He walks away.", "red coat"]
    expected = [["woman", "red coat", "long black hair"], ["He walks away."], ["red coat"]]
    assert phrases_of(sentences, "hanta") == expected
    assert phrases_of(sentences, "hanta") == [noun_phrases(each, classify(each, "hanta")) for each in sentences]
    assert phrases_of(sentences, "hanta", limit=1) == [["red coat"], ["He walks away."], ["red coat"]]
    assert phrases_of([], "hanta") == []


def test_a_tagger_that_does_not_exist_or_is_not_installed_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="hanta"):
        phrases_of(["red coat"], "hantha")

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(tagging.metadata, "version", missing)
    with pytest.raises(UsageError, match="textblob is not installed"):
        phrases_of(["red coat"], "textblob")


def test_a_prompt_describes_a_person():
    assert prompt("black trousers") == "a photo of a person with black trousers"


TEXTS = [["red coat", "man"], ["man"], ["green and blue umbrella", "red coat", "hat"], ["hat"], ["a !~^ hat"]]
"""The token id 0, which also pads, is a word's part in the last one."""


def words(prompts, row):
    """The token ids of a caption's prompts, without padding."""
    rows = prompts.token_ids[prompts.index[row][prompts.found[row]]]
    return [np.trim_zeros(tokens, "b").tolist() for tokens in rows.numpy()]


def expected_words(texts):
    return [[TOKENIZER.start, *TOKENIZER.encode(text), TOKENIZER.end] for text in texts]


def test_captions_share_the_prompts_that_they_have_in_common():
    prompts = Prompts.of(TEXTS, TOKENIZER, limit=4)
    assert prompts.token_ids.shape == (5, 7)
    assert (prompts.index.shape, prompts.found.shape) == ((5, 4), (5, 4))
    assert prompts.found.sum(dim=1).tolist() == [2, 1, 3, 1, 1]
    for row, texts in enumerate(TEXTS):
        assert words(prompts, row) == expected_words(texts)
        assert (prompts.index[row][~prompts.found[row]] == prompts.index[row, 0]).all()


@pytest.mark.parametrize("rows", [[0, 1], [3], [4], [2, 2, 0], [3, 2, 1, 0]])
def test_a_choice_of_captions_has_their_prompts_and_no_others(rows):
    chosen = Prompts.of(TEXTS, TOKENIZER, limit=3).select(torch.tensor(rows))
    texts = [TEXTS[row] for row in rows]
    assert [words(chosen, row) for row in range(len(rows))] == [expected_words(each) for each in texts]
    distinct = {text for each in texts for text in each}
    assert chosen.token_ids.shape == (len(distinct), max(len(each) for each in expected_words(distinct)))
    assert len(set(map(tuple, chosen.token_ids.tolist()))) == len(distinct)
    assert chosen.index.shape == chosen.found.shape == (len(rows), 3)


def test_prompts_are_rows_of_whole_numbers_and_marks():
    prompts = Prompts.of(TEXTS, TOKENIZER, limit=3)
    assert (prompts.token_ids.dtype, prompts.index.dtype, prompts.found.dtype) == (torch.int64, torch.int64, torch.bool)


def test_a_prompt_that_is_too_long_is_cut_to_the_context():
    prompts = Prompts.of([["red " * 100], ["hat"]], TOKENIZER, limit=1)
    assert prompts.token_ids.shape == (2, 77)
    assert prompts.token_ids[0, -1] == TOKENIZER.end
    assert prompts.select(torch.tensor([1])).token_ids.shape == (1, 3)

"""Which form of a caption a batch reads, and which of its tokens are masked."""

import os
import signal

import numpy as np
import pytest
import tiny
import torch

from tiprctl.checkpoint import read_checkpoint
from tiprctl.config import CaptionConfig, override
from tiprctl.data.batches import TrainingBatches, step_generator
from tiprctl.data.captions import TrainingCaptions, captions_origin, flag_content, kept_classes
from tiprctl.data.manifest import Manifest
from tiprctl.data.phrases import phrases_of
from tiprctl.data.pruning import FILE_NAME, prune_captions
from tiprctl.data.synth_pedes import wording
from tiprctl.data.tagging import ADJECTIVE, NOUN, OTHER, classify, prune, tokens_of
from tiprctl.errors import InputError, UsageError
from tiprctl.progress import Listener
from tiprctl.prompts import prompt
from tiprctl.runs import LAST
from tiprctl.tokenizer import default_tokenizer
from tiprctl.training import Trainer

TOKENIZER = default_tokenizer()
WORDS = sorted({word for words in wording.THING_WORDS.values() for word in words})
SENTENCES = [f"A man's {word}, the left-hand one; he's in {word} & a T-shirt!" for word in WORDS]
HARD_SENTENCES = [
    "café &amp;amp; 'quoted' red/blue -- don't ... (short-sleeved) 42cm",
    " ".join(["striped"] * 90),
    " _ ",
]


@pytest.fixture
def manifest(cuhk_manifest):
    prune_captions(cuhk_manifest, "hanta")
    return cuhk_manifest


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(captions, times=1, seed=0):
    """Every caption of the split so many times, in one draw."""
    return captions.draw(np.tile(np.arange(len(captions.lengths)), times), generator(seed))


@pytest.mark.parametrize("caption", SENTENCES + HARD_SENTENCES)
def test_pieces_are_the_tokens_of_the_whole_caption(caption):
    pieces = [token for _, tokens in TOKENIZER.pieces(caption) for token in tokens]
    row = TOKENIZER(caption)[0]
    assert pieces[:75] == row[1 : row.argmax()].tolist()
    assert len(flag_content(caption, classify(caption, "hanta"), TOKENIZER)) == len(pieces)


def test_flags_follow_the_words_into_their_pieces():
    caption = "She wears a short-sleeved t-shirt, and his"
    flags = flag_content(caption, classify(caption, "hanta"), TOKENIZER)
    content = [token for token, flag in zip(TOKENIZER.encode(caption), flags, strict=True) if flag]
    assert content == TOKENIZER.encode("short-sleeved t-shirt")


@pytest.mark.parametrize("caption", SENTENCES)
def test_flags_agree_with_a_tokenising_word_by_word(caption):
    classes = classify(caption, "hanta")
    tokens = [(word, kind in (NOUN, ADJECTIVE)) for word, kind in zip(tokens_of(caption), classes, strict=True)]
    expected = [(token, flag) for word, flag in tokens for token in TOKENIZER.encode(word)]
    assert [token for token, _ in expected] == TOKENIZER.encode(caption)
    assert flag_content(caption, classes, TOKENIZER).tolist() == [flag for _, flag in expected]


def test_classes_of_the_pruned_form():
    assert kept_classes("p..an.") == "pan"
    assert kept_classes("....") == "...."
    pruned = prune("She wears a red bag.", "p..an.")
    assert flag_content(pruned, kept_classes("p..an."), TOKENIZER).tolist() == [False, True, True]


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_captions_are_pruned_with_the_probability(manifest, probability):
    whole = manifest.split("train").captions
    pruned = [prune(caption, classify(caption, "hanta")) for caption in whole]
    token_ids, labels = drawn(TrainingCaptions(manifest, CaptionConfig(prune=probability), TOKENIZER), times=50)
    rows = [tuple(row[row > 0].tolist()) for row in token_ids]
    forms = [[tuple(row[row > 0].tolist()) for row in TOKENIZER(texts)] for texts in (whole, pruned)]
    is_pruned = [row == forms[1][index % 16] for index, row in enumerate(rows)]
    assert all(cut or row == forms[0][index % 16] for index, (row, cut) in enumerate(zip(rows, is_pruned)))
    assert np.mean(is_pruned) == pytest.approx(probability, abs=0.06)
    assert token_ids.shape[1] == max(map(len, rows))
    assert labels is None


def test_a_draw_depends_on_its_generator_alone_and_changes_no_caption(manifest):
    captions = TrainingCaptions(manifest, CaptionConfig(prune=0.5, mask_content=0.5, mask_other=0.2), TOKENIZER)
    before = captions.token_ids.clone()
    first, again, other = (drawn(captions, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])
    for tensor in (first[0], first[1]):
        tensor.fill_(7)
    assert torch.equal(captions.token_ids, before)


def test_nouns_and_adjectives_are_masked_more_often(manifest):
    captions = TrainingCaptions(manifest, CaptionConfig(mask_content=0.9, mask_other=0.1), TOKENIZER)
    token_ids, labels = drawn(captions, times=40)
    texts = manifest.split("train").captions
    flags = [flag_content(text, classify(text, "hanta"), TOKENIZER) for text in texts]
    masked = {True: [], False: []}
    for index, row in enumerate(labels):
        for position, flag in enumerate(flags[index % 16], start=1):
            masked[bool(flag)].append(bool(row[position]))
    assert np.mean(masked[True]) == pytest.approx(0.9, abs=0.03)
    assert np.mean(masked[False]) == pytest.approx(0.1, abs=0.03)
    restored = torch.where(labels > 0, labels, token_ids)
    assert torch.equal(restored, captions.token_ids[0].repeat(40, 1)[:, : restored.shape[1]])


def test_masking_knows_the_words_of_the_pruned_form_too(manifest):
    captions = TrainingCaptions(manifest, CaptionConfig(prune=1.0, mask_content=1.0, mask_other=0.0), TOKENIZER)
    _, labels = drawn(captions)
    for row, text in zip(labels, manifest.split("train").captions, strict=True):
        classes = classify(text, "hanta")
        content = "".join(kind if kind in (NOUN, ADJECTIVE) else OTHER for kind in classes)
        assert row[row > 0].tolist() == TOKENIZER.encode(prune(text, content))


def test_equal_masking_needs_no_tags(cuhk_manifest):
    captions = TrainingCaptions(cuhk_manifest, CaptionConfig(mask_content=0.5, mask_other=0.5), TOKENIZER)
    _, labels = drawn(captions, times=40)
    words = sum(int(length) - 2 for length in captions.lengths) * 40
    assert (labels > 0).sum().item() / words == pytest.approx(0.5, abs=0.02)


def test_a_caption_that_is_cut_keeps_its_flags_in_place(manifest):
    table = manifest.captions.copy()
    table.loc[table["split"] == "train", "caption"] = "She wears " + "a striped t-shirt, " * 30
    long = Manifest(manifest.dataset, manifest.root, table)
    prune_captions(long, "hanta")
    captions = TrainingCaptions(long, CaptionConfig(mask_content=1.0), TOKENIZER)
    token_ids, labels = drawn(captions)
    assert token_ids.shape[1] == 77
    assert (token_ids[:, -1] == TOKENIZER.end).all()
    content = set(TOKENIZER.encode("striped t-shirt"))
    whole = captions.token_ids[0]
    assert torch.equal(labels > 0, torch.tensor([[token in content for token in row] for row in whole.tolist()]))


@pytest.mark.parametrize("captions", [{"prune": 0.2}, {"mask_content": 0.3, "mask_other": 0.05}, {"phrases": 1}])
def test_the_pruned_file_is_asked_for_only_where_it_is_needed(cuhk_manifest, captions):
    with pytest.raises(InputError, match=rf"{FILE_NAME}[\s\S]*tiprctl augment"):
        TrainingCaptions(cuhk_manifest, CaptionConfig(**captions), TOKENIZER)
    with pytest.raises(InputError, match="tiprctl augment"):
        captions_origin(cuhk_manifest, CaptionConfig(**captions))
    TrainingCaptions(cuhk_manifest, CaptionConfig(), TOKENIZER)
    assert captions_origin(cuhk_manifest, CaptionConfig()) is None


def test_batches_carry_labels_and_are_the_same_when_taken_up_again(manifest):
    config = override(tiny.recipe(), {"captions": {"prune": 0.4, "mask_content": 0.3, "mask_other": 0.1}})
    batches = TrainingBatches(manifest, config, TOKENIZER)
    whole = list(batches.epoch(1, skip=0, device=torch.device("cpu")))
    rest = list(TrainingBatches(manifest, config, TOKENIZER).epoch(1, skip=2, device=torch.device("cpu")))
    assert len(whole) - len(rest) == 2
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.token_labels, other.token_labels)
        assert torch.equal(one.pixels, other.pixels)
    assert all(batch.token_labels.shape == batch.token_ids.shape for batch in whole)


def test_a_training_on_pairs_of_pruned_and_masked_captions_is_taken_up_exactly(manifest, tmp_path):
    changes = {"captions": {"prune": 0.4, "mask_content": 0.3, "mask_other": 0.1}, "sampling.sampler": "pairs"}
    config = override(tiny.recipe(), changes)

    class Interrupting(Listener):
        left = 3

        def on_step(self, samples):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    def train(folder, listener=None):
        return Trainer(config, manifest, folder, device=torch.device("cpu"), listener=listener).run()

    assert not train(tmp_path / "whole").interrupted
    assert train(tmp_path / "parts", Interrupting()).interrupted
    assert not train(tmp_path / "parts").interrupted
    whole, parts = (read_checkpoint(tmp_path / name / LAST)[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def read_prompts(prompts):
    """For each caption the token ids of its prompts, without padding."""
    texts = [np.trim_zeros(row, "b").tolist() for row in prompts.token_ids.numpy()]
    return [
        [texts[number] for number, there in zip(*row) if there]
        for row in zip(prompts.index.tolist(), prompts.found.tolist(), strict=True)
    ]


def expected_prompts(captions, limit=6):
    return [
        [[TOKENIZER.start, *TOKENIZER.encode(prompt(phrase)), TOKENIZER.end] for phrase in each]
        for each in phrases_of(captions, "hanta", limit)
    ]


@pytest.mark.parametrize("limit", [1, 2, 6])
def test_prompts_are_those_of_the_whole_caption_whatever_is_drawn(manifest, limit):
    config = CaptionConfig(phrases=limit, prune=1.0, mask_content=0.9, mask_other=0.9)
    captions = TrainingCaptions(manifest, config, TOKENIZER)
    chosen = np.array([3, 0, 11, 0])
    prompts = captions.prompts_of(chosen)
    expected = expected_prompts([manifest.split("train").captions[number] for number in chosen], limit)
    assert read_prompts(prompts) == expected
    assert prompts.index.shape == prompts.found.shape == (4, limit)
    assert len(prompts.token_ids) == len({tuple(row) for each in expected for row in each})
    assert prompts.token_ids.shape[1] == max(len(row) for each in expected for row in each)


def test_a_caption_without_a_noun_is_its_own_prompt(manifest):
    table = manifest.captions.copy()
    table.loc[table["split"] == "train", "caption"] = ["He walks quickly away."] + ["A man in a red coat."] * 15
    silent = Manifest(manifest.dataset, manifest.root, table)
    prune_captions(silent, "hanta")
    prompts = TrainingCaptions(silent, CaptionConfig(phrases=3), TOKENIZER).prompts_of(np.arange(16))
    assert prompts.found.sum(dim=1).tolist() == [1] + [2] * 15
    assert len(prompts.token_ids) == 3
    own = [TOKENIZER.start, *TOKENIZER.encode(prompt("He walks quickly away.")), TOKENIZER.end]
    assert read_prompts(prompts)[0] == [own]


def test_each_distinct_prompt_is_tokenised_once(manifest, monkeypatch):
    read = []
    original = type(TOKENIZER).__call__
    monkeypatch.setattr(type(TOKENIZER), "__call__", lambda self, texts: read.append(texts) or original(self, texts))
    TrainingCaptions(manifest, CaptionConfig(phrases=6), TOKENIZER)
    prompts = read[-1]
    phrases = phrases_of(manifest.split("train").captions, "hanta")
    assert sorted(prompts) == sorted({prompt(phrase) for each in phrases for phrase in each})


def test_phrases_change_nothing_else_in_a_batch(manifest):
    captions = {"prune": 0.4, "mask_content": 0.3, "mask_other": 0.1}
    plain, asked = (
        TrainingBatches(manifest, override(tiny.recipe(), {"captions": captions | more}), TOKENIZER)
        for more in ({}, {"phrases": 6})
    )
    texts = manifest.split("train").captions
    for one, other, chosen in zip(
        plain.epoch(1, skip=0, device=torch.device("cpu")),
        asked.epoch(1, skip=0, device=torch.device("cpu")),
        asked._indices(1),
        strict=True,
    ):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.token_labels, other.token_labels)
        assert one.prompts is None
        assert read_prompts(other.prompts) == expected_prompts([texts[number] for number in chosen])


@pytest.mark.parametrize("phrases", [-1, 7, "two"])
def test_a_number_of_phrases_out_of_range_is_refused(phrases):
    with pytest.raises(UsageError, match=r"captions\.phrases"):
        override(tiny.recipe(), {"captions.phrases": phrases})


def test_images_do_not_change_with_the_captions(manifest):
    plain, pruned = (
        next(TrainingBatches(manifest, config, TOKENIZER).epoch(0, skip=0, device=torch.device("cpu")))
        for config in (tiny.recipe(), override(tiny.recipe(), {"captions.prune": 1.0}))
    )
    assert torch.equal(plain.pixels, pruned.pixels)
    assert plain.token_ids.shape != pruned.token_ids.shape
    assert plain.token_labels is None


def test_purposes_have_generators_of_their_own():
    draws = [torch.rand(3, generator=step_generator(0, 0, 0, purpose=purpose)).tolist() for purpose in range(4)]
    assert len({tuple(draw) for draw in draws}) == 4

"""The loader's benchmark: the plain loader makes the same samples as ours, and the goal is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiprctl.config import AugmentConfig, CaptionConfig
from tiprctl.data.manifest import read_manifest
from tiprctl.tokenizer import default_tokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def loader(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import loader

    return loader


def test_goal(loader):
    ratios = dict.fromkeys(((paper, way) for paper in ("IRRA", "SEN") for way in ("plain", *loader.WAYS)), 3)
    assert loader.shortfalls(ratios | {("SEN", "plain"): 1, ("SEN", "memory"): 2}) == []
    assert loader.shortfalls(ratios | {("SEN", "files"): 2.34}) == [
        "tiprctl, from the files: 2.3 times the samples of the plain loader as SEN, less than 3"
    ]
    assert len(loader.shortfalls(ratios | {("IRRA", "files"): 1, ("IRRA", "cache"): 1})) == 2


def test_an_epoch_knows_its_rate(loader):
    epoch = loader.Epoch([(64, 3, 8, 4), (16, 3, 8, 4)], 2.0)
    assert (epoch.samples, epoch.rate) == (80, 40)


@pytest.mark.parametrize(("paper", "form"), [("IRRA", CaptionConfig()), ("SEN", CaptionConfig(prune=1.0))])
@pytest.mark.parametrize("way", ["files", "cache", "memory"])
def test_both_make_the_same_samples_where_nothing_is_random(loader, tmp_path, way, paper, form):
    loader.make_people(tmp_path, 4)
    still = AugmentConfig(flip=0, pad=0, jitter=0, erase=0)
    config = replace(loader.CONFIGS[paper], batch_size=4, augment=still, captions=form)
    batches = loader.our_batches(way, tmp_path, config)
    assert (batches.images.cache is not None) == (way == "cache")
    assert (batches.images.kept is not None) == (way == "memory")
    batch = next(iter(batches.epoch(0, skip=0, device=torch.device("cpu"))))
    plain = loader.PLAIN_SAMPLES[paper](tmp_path, config)
    samples = [plain[int(pid)] for pid in batch.pids]
    # One grey level of 255, over the smallest of the standard deviations.
    difference = (batch.pixels - torch.stack([sample["images"] for sample in samples])).abs()
    assert difference.max() <= 1.01 / 255 / 0.26
    width = batch.token_ids.shape[1]
    assert torch.equal(batch.token_ids, torch.stack([sample["caption_ids"] for sample in samples])[:, :width])
    assert not any(sample["labels"].any() for sample in samples)


def test_each_makes_what_its_paper_asks_for(loader):
    forms = {paper: config.captions for paper, config in loader.CONFIGS.items()}
    assert forms["IRRA"] == CaptionConfig(mask_content=0.15, mask_other=0.15)
    assert forms["SEN"] == CaptionConfig(prune=0.2, mask_content=0.30, mask_other=0.05)
    assert {config.model.image_size for config in loader.CONFIGS.values()} == {loader.IMAGE_SIZE}


def words_of(folder: Path) -> list[int]:
    return default_tokenizer()(read_manifest(folder).split("train").captions)[0].tolist()


def test_the_plain_loader_masks_as_published(loader, tmp_path):
    loader.make_people(tmp_path, 1)
    config = replace(loader.CONFIGS["IRRA"], captions=CaptionConfig(mask_content=1.0, mask_other=1.0))
    plain = loader.PlainSamples(tmp_path, config)
    words = words_of(tmp_path)
    masked, labels = plain.mask([*words, 0, 0])
    assert labels == [0, *words[1:-1], 0, 0, 0]
    assert [masked[0], *masked[-3:]] == [words[0], words[-1], 0, 0]
    assert plain.tokenizer.vocab_size - 3 in masked


def test_the_plain_loader_as_sen_masks_nouns_and_adjectives_otherwise(loader, tmp_path):
    loader.make_people(tmp_path, 1)
    config = replace(loader.CONFIGS["SEN"], captions=CaptionConfig(mask_content=1.0))
    plain = loader.PlainTaggedSamples(tmp_path, config)
    _, labels = plain.mask(words_of(tmp_path))
    masked = {plain.tokenizer.decoder[label].removesuffix("</w>") for label in labels if label}
    assert {"hair", "short", "trousers"} <= masked
    assert not masked & {"a", "with", "is", "and", "the", "of", ".", ","}


def test_report_has_each_contestant(loader):
    shapes = [(64, 3, 384, 128)]
    seconds = {"plain": 0.32, "files": 0.16, "cache": 0.04, "memory": 0.02}
    speeds = {
        (paper, way): loader.Epoch(shapes, slower * each)
        for paper, slower in (("IRRA", 1), ("SEN", 2))
        for way, each in seconds.items()
    }
    report = loader.report_on(speeds)
    assert [row[1:] for row in report.rows[:4]] == [
        ("5.00", "200", ""),
        ("2.50", "400", "2.0 x"),
        ("0.62", "1,600", "8.0 x"),
        ("0.31", "3,200", "16.0 x"),
    ]
    assert report.rows[4] == ("plain, as SEN", "10.00", "100", "")
    assert report.figures["samples"] == 64
    assert report.figures["contestants"][2] == {
        "paper": "IRRA",
        "from": "cache",
        "seconds": 0.04,
        "samples_per_second": pytest.approx(1600),
        "ratio": pytest.approx(8),
    }

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
    assert loader.shortfalls({"plain": 1, "files": 3, "cache": 3.2, "memory": 2}) == []
    assert loader.shortfalls({"plain": 1, "files": 2.34, "cache": 9, "memory": 9}) == [
        "tiprctl, from the files: 2.3 times the samples of the plain loader, less than 3"
    ]
    assert len(loader.shortfalls({"plain": 1, "files": 1, "cache": 1, "memory": 9})) == 2


def test_an_epoch_knows_its_rate(loader):
    epoch = loader.Epoch([(64, 3, 8, 4), (16, 3, 8, 4)], 2.0)
    assert (epoch.samples, epoch.rate) == (80, 40)


@pytest.mark.parametrize("way", ["files", "cache", "memory"])
def test_both_make_the_same_samples_where_nothing_is_random(loader, tmp_path, monkeypatch, way):
    loader.make_people(tmp_path, 4)
    still = AugmentConfig(flip=0, pad=0, jitter=0, erase=0)
    config = replace(loader.CONFIG, batch_size=4, augment=still, captions=CaptionConfig())
    monkeypatch.setattr(loader, "CONFIG", config)
    monkeypatch.setattr(loader, "MASKED", 0.0)
    ours = loader.our_batches(tmp_path, cached=way == "cache", kept=way == "memory")
    assert (ours.images.cache is not None) == (way == "cache")
    assert (ours.images.kept is not None) == (way == "memory")
    batch = next(iter(ours.epoch(0, skip=0, device=torch.device("cpu"))))
    plain = loader.PlainSamples(tmp_path, config)
    samples = [plain[int(pid)] for pid in batch.pids]
    # One grey level of 255, over the smallest of the standard deviations.
    difference = (batch.pixels - torch.stack([sample["images"] for sample in samples])).abs()
    assert difference.max() <= 1.01 / 255 / 0.26
    width = batch.token_ids.shape[1]
    assert torch.equal(batch.token_ids, torch.stack([sample["caption_ids"] for sample in samples])[:, :width])
    assert not any(sample["labels"].any() for sample in samples)


def test_the_plain_loader_masks_as_published(loader, tmp_path, monkeypatch):
    loader.make_people(tmp_path, 1)
    plain = loader.PlainSamples(tmp_path, loader.CONFIG)
    words = default_tokenizer()(read_manifest(tmp_path).split("train").captions)[0].tolist()
    monkeypatch.setattr(loader, "MASKED", 1.0)
    masked, labels = plain.mask([*words, 0, 0])
    assert labels == [0, *words[1:-1], 0, 0, 0]
    assert [masked[0], *masked[-3:]] == [words[0], words[-1], 0, 0]
    assert plain.tokenizer.vocab_size - 3 in masked


def test_report_has_each_contestant(loader):
    shapes = [(64, 3, 384, 128)]
    seconds = {"plain": 0.32, "files": 0.16, "cache": 0.04, "memory": 0.02}
    report = loader.report_on({name: loader.Epoch(shapes, each) for name, each in seconds.items()})
    assert [row[1:] for row in report.rows] == [
        ("5.00", "200", ""),
        ("2.50", "400", "2.0 x"),
        ("0.62", "1,600", "8.0 x"),
        ("0.31", "3,200", "16.0 x"),
    ]
    assert report.figures["samples"] == 64
    assert report.figures["contestants"]["cache"] == {
        "seconds": 0.04,
        "samples_per_second": pytest.approx(1600),
        "ratio": pytest.approx(8),
    }

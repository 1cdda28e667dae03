"""Each fault is found, counted in its split, and nothing else is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tiprctl.data.catalog import DATA_SETS
from tiprctl.data.checks import Fault, check, differs_from_published, split_sizes
from tiprctl.data.records import Record, SplitSize


@pytest.fixture
def records(cuhk_root) -> list[Record]:
    return DATA_SETS["cuhk-pedes"].read(cuhk_root / "reid_raw.json")


def test_sound_data_set_has_no_findings(cuhk_root, records):
    counted = []
    report = check(cuhk_root, records, workers=2, on_image=counted.append)
    assert report.findings == ()
    assert sum(counted) == 16
    assert report.sizes == {
        "train": SplitSize(4, 8, 16),
        "val": SplitSize(2, 4, 8),
        "test": SplitSize(2, 4, 8),
    }


def test_split_sizes_agree_with_a_loop(records):
    for split, size in split_sizes(records).items():
        pids, images, captions = set(), 0, 0
        for record in records:
            if record.split == split:
                pids.add(record.pid)
                images += 1
                captions += len(record.captions)
        assert size == SplitSize(len(pids), images, captions)


@pytest.mark.parametrize("workers", [1, 4])
def test_missing_and_undecodable_images(cuhk_root, records, workers):
    (cuhk_root / records[0].path).unlink()
    cut = cuhk_root / records[-1].path
    cut.write_bytes(cut.read_bytes()[:-300])
    (cuhk_root / records[-2].path).write_bytes(b"")
    report = check(cuhk_root, records, workers=workers)
    [missing] = report.of(Fault.MISSING)
    assert (missing.split, missing.subject, missing.detail) == ("train", records[0].path, "there is no such file")
    empty, truncated = report.of(Fault.UNDECODABLE)
    assert (empty.subject, truncated.subject) == (records[-2].path, records[-1].path)
    assert empty.detail == "The image file is empty (0 bytes)"
    assert "truncated" in truncated.detail
    assert report.counts == Counter({("train", Fault.MISSING): 1, ("test", Fault.UNDECODABLE): 2})


def test_empty_captions(cuhk_root, records):
    records[3] = replace(records[3], captions=("A man.", " \n", ""))
    records[9] = replace(records[9], captions=())
    found = check(cuhk_root, records).findings
    assert {finding.fault for finding in found} == {Fault.EMPTY}
    assert [(finding.subject, finding.detail) for finding in found] == [
        (records[3].path, "caption 2 of 3"),
        (records[3].path, "caption 3 of 3"),
        (records[9].path, "the image has no caption at all"),
    ]


def test_duplicate_paths(cuhk_root, records):
    again = replace(records[0], pid=13, split="test")
    [duplicate] = check(cuhk_root, [*records, again]).findings
    assert (duplicate.fault, duplicate.split, duplicate.subject) == (Fault.DUPLICATE, "test", records[0].path)
    assert duplicate.detail == "in train as identity 1, again in test as identity 13"


def test_shared_identities(cuhk_root, records):
    records[-1] = replace(records[-1], pid=1)
    [shared] = check(cuhk_root, records).findings
    assert (shared.fault, shared.split) == (Fault.SHARED, "test")
    assert (shared.subject, shared.detail) == ("identity 1", "also in train")


def test_published_sizes_are_compared():
    published = DATA_SETS["icfg-pedes"].published
    assert differs_from_published(dict(published), published) == []
    assert differs_from_published({"test": SplitSize(1, 1, 1)}, {}) == []
    train_only = {"train": SplitSize(3102, 34674, 34673), "val": SplitSize(1, 2, 3)}
    assert differs_from_published(train_only, published) == [
        "train has 3,102 identities, 34,674 images, 34,673 captions; "
        "published: 3,102 identities, 34,674 images, 34,674 captions",
        "test has 0 identities, 0 images, 0 captions; published: 1,000 identities, 19,848 images, 19,848 captions",
        "val has 1 identities, 2 images, 3 captions; published: 0 identities, 0 images, 0 captions",
    ]

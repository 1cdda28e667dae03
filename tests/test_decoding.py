"""Decoded images: the same whether kept or decoded by workers, and a damaged one named by its own error."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from PIL import Image

from tiprctl.cores import cores
from tiprctl.data import decoding
from tiprctl.data.decoding import DecodedImages
from tiprctl.errors import ImageError
from tiprctl.interrupt import ignore_interrupt


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 16), (40 * number, 10, 20)).save(path)
    return paths


@pytest.fixture
def nothing_fits(monkeypatch):
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 0)


def batches(images: DecodedImages) -> list[torch.Tensor]:
    images.keep_if_small()
    return list(images.in_order(2))


@pytest.mark.parametrize("workers", [0, 1])
def test_decoded_on_access_as_from_memory(paths, nothing_fits, monkeypatch, workers):
    images = DecodedImages(paths, (16, 8), workers=workers)
    on_access = batches(images)
    assert images.kept is None
    assert [batch.shape for batch in on_access] == [(2, 3, 16, 8), (2, 3, 16, 8), (1, 3, 16, 8)]
    assert torch.cat(on_access)[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 1 << 20)
    assert torch.equal(torch.cat(batches(images)), torch.cat(on_access))
    assert images.kept is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_by_its_own_error(paths, nothing_fits, workers):
    paths[3].write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        batches(DecodedImages(paths, (16, 8), workers=workers))
    assert caught.value.what == "The image file is empty (0 bytes)"
    assert caught.value.where == str(paths[3])
    assert caught.value.remedy


def test_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == DecodedImages([], (16, 8)).workers == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64


def test_workers_leave_the_interrupt_to_their_parent():
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupt(3)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

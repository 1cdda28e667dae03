"""Decoded images: the same whether kept or decoded by workers, and a damaged one named by its own error."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import weakref
from contextlib import suppress

import numpy as np
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
    assert caught.value.remedy.startswith("Copy it again")
    with pytest.raises(ImageError) as caught:
        batches(DecodedImages(paths, (16, 8), workers=workers, remedy="Leave it.").part(slice(2, 4)))
    assert caught.value.remedy == "Leave it."


@pytest.mark.parametrize("kept", [True, False])
def test_batches_can_be_left_and_asked_for_again(paths, kept, monkeypatch):
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 1 << 20 if kept else 0)
    images = DecodedImages(paths, (16, 8), workers=1)
    images.keep_if_small()
    left = iter(images.batches([np.array([number]) for number in range(5)]))
    assert next(left)[0, 0, 0, 0] == 0
    for order in ([4, 2, 0], [1, 1, 3]):
        reds = torch.cat(list(images.batches([np.array(order[:2]), np.array(order[2:])])))[:, 0, 0, 0]
        assert reds.tolist() == [40 * number for number in order]


def test_workers_stay_for_the_next_time(paths, nothing_fits):
    images = DecodedImages(paths, (16, 8), workers=1)
    rounds = []
    for _ in range(2):
        batches(images)
        rounds.append([process.pid for process in multiprocessing.active_children()])
    assert rounds[0] == rounds[1]
    assert len(rounds[0]) >= 1


def test_a_damaged_image_does_not_end_the_workers(paths, nothing_fits):
    content = paths[1].read_bytes()
    paths[1].write_bytes(b"")
    images = DecodedImages(paths, (16, 8), workers=1)
    with pytest.raises(ImageError):
        batches(images)
    paths[1].write_bytes(content)
    assert len(torch.cat(batches(images))) == 5


def test_an_error_does_not_hold_the_images(paths, nothing_fits):
    """Else their processes would end only with the next collection of garbage, and slowly."""
    paths[1].write_bytes(b"")
    images = DecodedImages(paths, (16, 8), workers=1)
    held = weakref.ref(images)
    gc.disable()
    try:
        with suppress(ImageError):
            batches(images)
        del images
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("device", "expected"), [("cpu", 0), ("cuda", 2)])
def test_batches_are_pinned_for_the_device_that_reads_them(paths, monkeypatch, kept, device, expected):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self, *_: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(len(self)) or self)
    images = DecodedImages(paths, (16, 8), workers=0)
    if kept:
        images.keep_if_small()
        list(images.batches([np.array([0]), np.array([1, 2])], torch.device(device)))
        assert len(pinned) == expected
    else:
        assert images._make_loader(pinned=device == "cuda").pin_memory == (device == "cuda")


def test_memory_is_read_ahead_in_order(paths):
    images = DecodedImages(paths, (16, 8), workers=1)
    images.keep_if_small()
    orders = [np.array([number % 5]) for number in range(20)]
    assert [int(batch[0, 0, 0, 0]) for batch in images.batches(orders)] == [40 * (number % 5) for number in range(20)]


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

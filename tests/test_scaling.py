"""The arithmetic of training on many devices."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tiprctl.models.clip import Block

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scaling")


def test_what_autograd_keeps_is_counted_once_and_without_parameters(scaling):
    layers = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 3))
    # The input, for the first weight, and the sigmoid's result, for itself and the second weight.
    assert scaling.per_pair(lambda pairs: layers(torch.ones(pairs, 10)), layers, None) == 4 * (10 + 20)


def test_attention_in_bfloat16_keeps_what_it_keeps_on_a_gpu(scaling, monkeypatch):
    block = Block(8, 2, quick_gelu=False)
    through = partial(scaling._through, block, 500, 8)
    # Its weights alone, 500 x 500 of each of two heads, would take more.
    assert scaling.per_pair(through, block, torch.bfloat16) < 2 * 500 * 500
    monkeypatch.setattr(scaling, "fused_attention", nullcontext)
    assert scaling.per_pair(through, block, torch.bfloat16) > 2 * 500 * 500 * 2


def test_the_load_of_a_device(scaling):
    sizes = scaling.Sizes("m", parameters=100, kept={"fp32": 50}, checkpointed={"fp32": 5})
    load = scaling.load(sizes, batch=10, processes=4)
    assert load.pairs == 3
    assert (load.memory["fp32"], load.checkpointed["fp32"]) == (1600 + 150, 1600 + 15)
    assert load.reduced == 2 * 3 / 4 * 400
    assert scaling.load(sizes, batch=10, processes=1).reduced == 0


IDS, WIDTH = 8, 4 * 128
"""Bytes of an identity, and of a token of the tiny encoder, which has 33 of an image and 77 of a caption."""

TRAFFIC = {
    # Features alone: the masked image and the masked words are each process's own matter.
    "sen": (2 * WIDTH + IDS, 2 * WIDTH),
    "irra": (2 * WIDTH + IDS, 2 * WIDTH),
    # Features of three parts, the global tokens, their places and all of them; of 3 patches and 15 words in each of two
    # selections, which they are and whether they are there.
    "cfine": ((6 + 2 + 33 + 77) * WIDTH + IDS + 2 * 8 + 2 * (3 + 15) * (8 + 1), (6 + 2 + 33 + 77) * WIDTH),
    # Features, global tokens, all tokens of the image, six prompts with their numbers, and twice (on device and host)
    # whether they are there.
    "scvd": ((2 + 2 + 33 + 6) * WIDTH + IDS + 6 * (8 + 1 + 1), (2 + 2 + 33 + 6) * WIDTH),
}


@pytest.mark.parametrize("recipe", TRAFFIC)
def test_what_the_losses_of_a_recipe_tell_of_a_pair(scaling, recipe):
    found = scaling.traffic("tiny", recipe)
    assert (found.gathered, found.returned) == TRAFFIC[recipe]


def test_what_a_device_sends_of_a_batch(scaling):
    traffic = scaling.Traffic("m", "r", gathered=100, returned=60)
    # Of 40 rows it has 10: they go three times on their way to the others, and three tenths' gradients come by.
    assert traffic.sent(40, 4) == 3 * 10 * 100 + 3 * 10 * 60
    assert traffic.sent(40, 1) == 0


def test_the_short_form(scaling, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick", "--json", "--processes", "2"])
    scaling.main()
    document = json.loads(capsys.readouterr().out)
    tiny = document["sizes"][0]
    assert tiny["checkpointed"]["fp32"] < tiny["kept"]["fp32"]
    assert tiny["kept"]["bf16"] < tiny["kept"]["fp32"]
    assert [each["recipe"] for each in document["traffic"]] == ["sen", "irra", "cfine", "scvd"]
    assert [each["batch"] for each in document["loads"]] == [128, 256, 512, 1024, 2048, 4096]

"""The arithmetic of training on many devices."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scaling")


def test_what_autograd_keeps_is_counted_once_and_without_parameters(scaling):
    layers = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 3))
    # The input, for the first weight, and the sigmoid's result, for itself and the second weight.
    assert scaling.per_pair(lambda pairs: layers(torch.ones(pairs, 10)), layers, None) == 4 * (10 + 20)


def test_the_load_of_a_device(scaling):
    sizes = scaling.Sizes("m", parameters=100, features=8, tokens=80, kept={"fp32": 50}, checkpointed={"fp32": 5})
    load = scaling.load(sizes, batch=10, processes=4)
    assert load.pairs == 3
    assert (load.memory["fp32"], load.checkpointed["fp32"]) == (1600 + 150, 1600 + 15)
    assert (load.features, load.tokens) == (80, 800)
    assert load.reduced == 2 * 3 / 4 * 400
    assert scaling.load(sizes, batch=10, processes=1).reduced == 0


def test_the_short_form(scaling, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick", "--json", "--processes", "2"])
    scaling.main()
    document = json.loads(capsys.readouterr().out)
    tiny = document["sizes"][0]
    assert tiny["checkpointed"]["fp32"] < tiny["kept"]["fp32"]
    assert tiny["kept"]["bf16"] < tiny["kept"]["fp32"]
    # Features of 128 numbers, and tokens as wide: of 33 places in the image and 77 in the caption.
    assert (tiny["features"], tiny["tokens"]) == (2 * 4 * 128, 4 * 128 * (33 + 77))
    assert [each["batch"] for each in document["loads"]] == [128, 256, 512, 1024, 2048, 4096]

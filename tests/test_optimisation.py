import itertools
import json
from dataclasses import replace
from pathlib import Path

import published
import pytest
import tiny
import torch
from torch import nn

from tiprctl.config import ObjectiveConfig, OptimConfig
from tiprctl.models.clip import Clip
from tiprctl.models.encoder import DualEncoder
from tiprctl.objectives.base import Role
from tiprctl.objectives.composition import Composition
from tiprctl.optimisation import (
    build_optimizer,
    clip_gradients,
    pack_optimizer,
    parameter_groups,
    schedule_factor,
    set_learning_rate,
    unpack_optimizer,
)
from tiprctl.recipes import RECIPES

REFERENCES = Path(__file__).parent / "reference"
OPTIONS = {"tir": {"depth": 2}, "mlm": {"depth": 2}}
SCHEDULE = json.loads((REFERENCES / "schedule.json").read_text())


def test_the_published_schedule_is_met_epoch_by_epoch():
    config = OptimConfig()
    rates = [config.lr * schedule_factor(epoch + part, 60, config) for epoch in range(60) for part in (0, 0.99)]
    torch.testing.assert_close(torch.tensor(rates[::2]), torch.tensor(SCHEDULE["cosine"]))
    assert rates[::2] == rates[1::2]


def test_by_step_the_schedule_is_smooth_and_ends_at_zero():
    config = OptimConfig(interval="step", warmup=0.1, warmup_start=0.0)
    factors = [schedule_factor(step / 100, 10, config) for step in range(1001)]
    assert factors[0] == 0
    assert factors[50] == pytest.approx(0.5)
    assert max(factors) == factors[100] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0)
    assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < 0.011


def test_roles_give_every_parameter_its_rate_and_decay():
    tower, fast, classifier = nn.LayerNorm(3), nn.MultiheadAttention(4, 2), nn.Linear(3, 2)
    roles = [(Role.BASE, tower), (Role.FAST, fast), (Role.CLASSIFIER, classifier)]
    groups = parameter_groups(roles, OptimConfig())
    found = {id(p): (group["factor"], group["weight_decay"]) for group in groups for p in group["params"]}
    decay = OptimConfig().weight_decay
    assert found[id(tower.weight)] == (1, decay)
    assert found[id(tower.bias)] == (2, 0)
    assert found[id(fast.in_proj_weight)] == (5, decay)
    assert found[id(fast.in_proj_bias)] == (2, 0)
    assert found[id(fast.out_proj.bias)] == (2, 0)
    assert found[id(classifier.weight)] == (5, decay)
    assert found[id(classifier.bias)] == (5, 0)


def test_vectors_can_be_spared_from_decay():
    norm = nn.LayerNorm(3)
    groups = parameter_groups([(Role.BASE, norm)], OptimConfig(decay_vectors=False, bias_factor=1))
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0, 2)]


def test_the_learning_rate_reaches_every_group_by_its_factor():
    optimizer = build_optimizer([(Role.CLASSIFIER, nn.Linear(3, 2)), (Role.BASE, nn.Linear(2, 2))], OptimConfig())
    set_learning_rate(optimizer, 0.1)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.1, 0.2, 0.5, 0.5])


def test_gradients_are_clipped_to_the_limit_or_left():
    layer = nn.Linear(2, 1, bias=False)
    for limit, expected in ((0, 5.0), (1, 1.0), (10, 5.0)):
        layer.weight.grad = torch.tensor([[3.0, 4.0]])
        clip_gradients(layer, limit)
        assert layer.weight.grad.norm() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "objectives", "prefixes", "unused"),
    [
        ("sen", ("sdm", "id", "triplet", "tir"), published.SEN, published.SEN_UNUSED),
        ("irra", ("sdm", "id", "mlm"), published.IRRA, ()),
    ],
    ids=["sen", "irra"],
)
def test_the_published_groups_are_met_parameter_by_parameter(method, objectives, prefixes, unused):
    clip = Clip(replace(tiny.CLIP, vision_layers=2, text_layers=2))
    configs = tuple(ObjectiveConfig(name=name, options=OPTIONS.get(name, {})) for name in objectives)
    composition = Composition(DualEncoder(clip), configs, identities=3)
    groups = parameter_groups(composition.roles(), RECIPES["baseline"].optim)
    factors = {id(p): (group["factor"], group["weight_decay"]) for group in groups for p in group["params"]}
    found = {name: factors[id(parameter)] for name, parameter in composition.named_parameters()}
    rows = json.loads((REFERENCES / f"{method}_param_groups.json").read_text())
    assert found == {
        published.ours(row["name"], prefixes): (row["lr_over_base"], row["weight_decay"])
        for row in rows
        if not row["name"].startswith(unused)
    }


def test_the_state_survives_packing():
    layer = nn.Linear(3, 2)
    roles = [(Role.CLASSIFIER, layer)]
    first, second = (build_optimizer(roles, OptimConfig(name="adamw")) for _ in range(2))
    layer(torch.ones(1, 3)).sum().backward()
    first.step()
    unpack_optimizer(second, *pack_optimizer(first))
    assert str(second.state_dict()) == str(first.state_dict())

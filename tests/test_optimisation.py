import itertools
import json
from dataclasses import replace
from pathlib import Path

import published
import pytest
import tiny
import torch
from torch import nn

from tiprctl.config import ObjectiveConfig, OptimConfig, from_dict
from tiprctl.errors import UsageError
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


@pytest.mark.parametrize(
    ("published", "changes"), [("cosine", {}), ("step", {"schedule": "steps", "milestones": (20 / 60, 50 / 60)})]
)
def test_the_published_schedules_are_met_epoch_by_epoch(published, changes):
    config = OptimConfig(**changes)
    rates = [config.lr * schedule_factor(epoch + part, 60, config) for epoch in range(60) for part in (0, 0.99)]
    torch.testing.assert_close(torch.tensor(rates[::2]), torch.tensor(SCHEDULE[published]))
    assert rates[::2] == rates[1::2]


def test_cfines_rate_warms_up_over_ten_epochs_and_falls_at_20_25_and_35():
    config = OptimConfig(schedule="steps", warmup=10 / 50, warmup_start=0.01)
    factors = [schedule_factor(epoch, 50, config) for epoch in range(50)]
    warm_up = [0.01 * (1 - epoch / 10) + epoch / 10 for epoch in range(10)]
    assert factors == pytest.approx([*warm_up, *[1] * 10, *[0.1] * 5, *[0.01] * 10, *[0.001] * 15])


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize(
    ("milestones", "epochs"), [((0.4, 0.5, 0.7), 50), ((0.1, 0.3), 10), ((7 / 30, 19 / 30), 30), ((0.29, 0.58), 100)]
)
def test_a_step_falls_on_its_epoch_however_the_fraction_rounds(milestones, epochs, interval):
    config = OptimConfig(schedule="steps", milestones=milestones, warmup=0, interval=interval)
    factors = [schedule_factor(epoch, epochs, config) for epoch in range(epochs)]
    falls = [epoch for epoch in range(1, epochs) if factors[epoch] < factors[epoch - 1]]
    assert falls == [round(milestone * epochs) for milestone in milestones]


def test_steps_without_milestones_keep_the_rate():
    config = OptimConfig(schedule="steps", milestones=(), warmup=1 / 4)
    assert [schedule_factor(epoch, 4, config) for epoch in range(4)] == [0.1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestones": [0.5, 0.4]}, "milestones do not rise: 0.5, 0.4"),
        ({"milestones": [0.5, 0.5]}, "milestones do not rise"),
        ({"milestones": [0.5, 20]}, "milestones.1"),
        ({"schedule": "steps", "warmup": 0.5}, "the milestone 0.4 falls into the warm-up, which lasts to 0.5"),
        ({"schedule": "stairs"}, "'cosine' or 'steps'"),
        ({"gamma": 2}, "gamma"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        from_dict(OptimConfig, changes)


def test_milestones_do_not_bind_a_cosine():
    assert OptimConfig(warmup=0.5).schedule == "cosine"


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


def test_without_a_factor_of_their_own_biases_learn_as_the_weights_beside_them():
    roles = [(Role.BASE, nn.Linear(2, 3)), (Role.FAST, nn.Linear(2, 3)), (Role.CLASSIFIER, nn.Linear(2, 3))]
    config = OptimConfig(bias_factor=None, fresh_factor=10)
    factors = {id(p): group["factor"] for group in parameter_groups(roles, config) for p in group["params"]}
    assert [factors[id(p)] for _, module in roles for p in (module.weight, module.bias)] == [1, 1, 10, 10, 10, 10]


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

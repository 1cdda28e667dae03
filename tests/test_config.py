import dataclasses
import math

import pytest

from tiprctl.config import AugmentConfig, ObjectiveConfig, TrainConfig, from_dict, override, to_dict
from tiprctl.errors import UsageError
from tiprctl.recipes import RECIPES, find_recipe, with_objectives


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_survive_json(recipe):
    config = RECIPES[recipe]
    assert from_dict(TrainConfig, to_dict(config)) == config


def test_override_changes_what_is_named_and_nothing_else():
    before = RECIPES["baseline"]
    after = override(before, {"optim.lr": 3e-4, "epochs": None, "model.image_size": (256, 128)})
    assert after.optim.lr == 3e-4
    assert after.model.image_size == (256, 128)
    assert dataclasses.replace(after, optim=before.optim, model=before.model) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("optim.lr", -1.0),
        ("optim.betas", [1, 0.5]),
        ("optim.betas", [0.9, 1]),
        ("augment.flip", 1.5),
        ("augment.erase_area", [0.4, 1.1]),
        ("captions.prune", math.nan),
        ("amp", "fp8"),
        ("model.head", 3),
        ("batch_size", 1),
        ("seed", 2**63),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(UsageError) as raised:
        override(RECIPES["synth"], {field: value})
    assert field in str(raised.value)


def test_the_largest_area_to_erase_is_not_below_the_smallest():
    assert AugmentConfig(erase_area=(0.1, 0.1)).erase_area == (0.1, 0.1)
    with pytest.raises(UsageError, match=r"augment: .*erase_area would go from 0.4 down to 0.1"):
        override(RECIPES["synth"], {"augment.erase_area": [0.4, 0.1]})


def test_an_objective_cannot_take_part_twice():
    with pytest.raises(UsageError, match="an objective is named twice: sdm"):
        override(RECIPES["synth"], {"objectives": [{"name": name} for name in ("sdm", "id", "sdm")]})


def test_what_our_own_checks_say_stands_after_its_place_or_alone():
    with pytest.raises(UsageError) as raised:
        override(RECIPES["synth"], {"augment.erase_area": [0.4, 0.1]})
    assert raised.value.what == "Not a valid configuration: augment: erase_area would go from 0.4 down to 0.1"
    with pytest.raises(UsageError) as raised:
        from_dict(AugmentConfig, {"erase_area": [0.4, 0.1]})
    assert raised.value.what == "Not a valid configuration: erase_area would go from 0.4 down to 0.1"


def test_unknown_fields_are_refused():
    with pytest.raises(UsageError, match="flipp"):
        from_dict(AugmentConfig, {"flipp": 0.5})


def test_an_objective_starts_before_it_stops():
    with pytest.raises(UsageError, match=r"sdm would stop at 0.3 before it starts at 0.5"):
        from_dict(ObjectiveConfig, {"name": "sdm", "start": 0.5, "stop": 0.3})


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["synth"].epochs = 3


def test_aux_adds_to_the_recipes_objectives():
    config = with_objectives(RECIPES["baseline"], None, "triplet")
    assert [(each.name, each.weight) for each in config.objectives] == [("sdm", 1), ("id", 1), ("triplet", 10)]


def test_losses_replace_the_recipes_objectives_for_the_whole_training():
    config = with_objectives(find_recipe("baseline", "synth-pedes"), "id,itc", None)
    assert config.objectives == (ObjectiveConfig(name="id", weight=0.3), ObjectiveConfig(name="itc"))


def test_misspelt_objective_lists_the_choices_nearest_first():
    with pytest.raises(UsageError, match=r"named 'triplett'\nDid you mean triplet\? Choices: triplet, "):
        with_objectives(RECIPES["baseline"], None, "triplett")


@pytest.mark.parametrize(("losses", "aux"), [(None, "sdm"), (None, "triplet,triplet"), ("sdm,sdm", None), (",", None)])
def test_objectives_named_twice_or_not_at_all_are_refused(losses, aux):
    with pytest.raises(UsageError):
        with_objectives(RECIPES["baseline"], losses, aux)

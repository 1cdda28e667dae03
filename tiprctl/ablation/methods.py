"""Whole recipes as contenders: made comparable, and started from the same weights."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from operator import attrgetter
from shlex import quote
from types import MappingProxyType

from tiprctl.ablation.parts import lasting
from tiprctl.ablation.plan import BUDGETS, Contender, Plan, durations
from tiprctl.config import TrainConfig
from tiprctl.errors import UsageError
from tiprctl.names import parse_names
from tiprctl.recipes import CLIP, RECIPES

OPTION = "--recipes"
START_RECIPE = CLIP.config.recipe
"""What trains the shared start: contrast alone, which favours none of the methods that build on it."""

FIXED = MappingProxyType(dict.fromkeys(("recipe", "objectives", "model.head"), OPTION) | {"seed": "--seeds"})
"""What a setting cannot change in a comparison, and the options that do."""

ALIKE = (
    *("model.name", "model.pretrained", "model.text_encoder", "model.image_size", "model.stride"),
    *("batch_size", "select_on", "amp"),
)
"""What recipes must have alike to be compared."""

MEANT = MappingProxyType({"model.text_encoder": "model.bert"})
"""Where a configuration tells what is meant by a setting that can be written in two ways."""


def parse_recipes(text: str) -> tuple[str, ...]:
    """The recipes of a comma-separated list.

    Raises:
        UsageError: there are fewer than two, one is unknown (the choices are listed) or named twice.
    """
    names = parse_names(text, "recipe", RECIPES, where=OPTION)
    if len(names) < 2:
        raise UsageError(
            "There is nothing to compare" if not names else f"There is nothing to compare {names[0]} with",
            where=OPTION,
            remedy="Name two recipes or more, as in clip,irra,sen.",
        )
    return names


def plan_recipes(
    recipes: Mapping[str, TrainConfig],
    start: TrainConfig,
    *,
    seeds: int,
    start_epochs: float | None = None,
    epochs: float | None = None,
    budgets: tuple[str, ...] = BUDGETS,
) -> Plan:
    """A comparison of recipes, by name, each with all its objectives throughout, from what `start` trains.

    Raises:
        UsageError: the recipes differ in what must be alike, or as `Plan`.
    """
    check_alike(recipes)
    first = next(iter(recipes.values()))
    return Plan(
        kind="comparison",
        compared="recipe",
        contenders=tuple(Contender(name, lasting(recipe)) for name, recipe in recipes.items()),
        start=start,
        settings={"recipes": list(recipes), "start": start, **recipes},
        seeds=seeds,
        budgets=budgets,
        memory=True,
        **durations(first, start_epochs, epochs),
    )


def check_alike(recipes: Mapping[str, TrainConfig]) -> None:
    """Refuse recipes that differ in size, input, start or batch size: neither steps nor time would compare them.

    Raises:
        UsageError: they do; what differs is named, with who has which value.
    """
    differing = [key for key in ALIKE if len(set(map(attrgetter(MEANT.get(key, key)), recipes.values()))) > 1]
    if differing:
        first = next(iter(recipes.values()))
        raise UsageError(
            f"The recipes differ in {'; '.join(_values(key, recipes) for key in differing)}",
            where=OPTION,
            remedy=f"Leave some out, or make them alike, as in {' '.join(_setting(key, first) for key in differing)}",
        )


def _values(key: str, recipes: Mapping[str, TrainConfig]) -> str:
    """Who has which value; those that most have in common come last."""
    names = defaultdict(list)
    for name, recipe in recipes.items():
        names[attrgetter(MEANT.get(key, key))(recipe)].append(name)
    *few, most = sorted(names.values(), key=len)
    holders = [(", ".join(group), group) for group in few]
    holders.append(("the others" if len(most) > 1 else most[0], most))
    return f"{key} ({', '.join(f'{who} {attrgetter(key)(recipes[group[0]])}' for who, group in holders)})"


def _setting(key: str, recipe: TrainConfig) -> str:
    """The option that gives a value of `recipe` to all, as a shell takes it."""
    value = attrgetter(key)(recipe)
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--set {quote(f'{key}={text}')}"

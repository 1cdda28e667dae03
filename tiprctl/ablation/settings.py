"""`KEY=VALUE` settings of several recipes at once: each takes those that concern it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields

from tiprctl.ablation.methods import FIXED, OPTION
from tiprctl.config import PARTS, TrainConfig
from tiprctl.errors import UsageError, unknown_name
from tiprctl.models.heads import HEADS
from tiprctl.objectives import OBJECTIVES
from tiprctl.settings import OPTION as SETTING
from tiprctl.settings import resolve


def resolve_all(recipes: Mapping[str, TrainConfig], settings: Collection[str]) -> dict[str, TrainConfig]:
    """The recipes, by name, each changed as those settings say that concern it.

    Raises:
        UsageError: a setting is of what none of them has, or as `resolve`. InputError: as `resolve`.
    """
    configs = recipes.values()
    check_places(settings, configs)
    return {
        name: resolve(recipe, settings_of(recipe, settings, configs), fixed=FIXED) for name, recipe in recipes.items()
    }


def check_places(settings: Iterable[str], recipes: Collection[TrainConfig]) -> None:
    """Refuse a setting of a head that none of the recipes has, or of what there is not at all.

    What is of an objective that none of them has is left to each of them to refuse.

    Raises:
        UsageError: there is such a setting; it names the recipes' places, or how to have that head.
    """
    heads = {recipe.model.head for recipe in recipes}
    known = {*PARTS, *(place for recipe in recipes for place in _own_places(recipe))}
    for place in map(_place, settings):
        if place in HEADS.keys() - heads:
            raise UsageError(
                f"No recipe that is compared has the head {place!r}",
                where=SETTING,
                remedy=f"Name a recipe with that head in {OPTION}.",
            )
        if place and place not in known | OBJECTIVES.keys():
            error = unknown_name("place", place, known)
            error.where = SETTING
            raise error


def settings_of(recipe: TrainConfig, settings: Iterable[str], recipes: Iterable[TrainConfig]) -> list[str]:
    """The settings that concern one of the recipes: those of an objective or a head, who has it."""
    elsewhere = {place for each in recipes for place in _own_places(each)} - _own_places(recipe)
    return [setting for setting in settings if _place(setting) not in elsewhere]


def _place(setting: str) -> str:
    """What a setting is of: an objective, a head, a part of the configuration, or "" for the top."""
    return setting.partition("=")[0].strip().rpartition(".")[0]


def _own_places(recipe: TrainConfig) -> set[str]:
    """The places of settings that not every recipe has."""
    head = recipe.model.head
    return {*(objective.name for objective in recipe.objectives), *([head] if fields(HEADS[head].Config) else [])}

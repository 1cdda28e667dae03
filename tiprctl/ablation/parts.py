"""The parts that an ablation takes out and puts in: objectives, and what is done to the captions."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from tiprctl.ablation.plan import BUDGETS, Contender, Plan, durations
from tiprctl.config import CaptionConfig, TrainConfig
from tiprctl.errors import UsageError
from tiprctl.names import parse_names
from tiprctl.objectives import OBJECTIVES
from tiprctl.recipes import RECIPES, with_objectives

Parts = tuple[str, ...]

CAPTION_PARTS = {"prune": ("prune",), "mask": ("mask_content", "mask_other")}
"""The parts that are no objective, and the probabilities of `CaptionConfig` that they stand for."""

CAPTIONS = RECIPES["sen-published"].captions
"""What a caption part comes with where the recipe has none of it."""

PLAIN = "plain"
OPTION = "--parts"


def parse_parts(text: str) -> Parts:
    """The parts of a comma-separated list.

    Raises:
        UsageError: there is none, one is unknown (the choices are listed) or named twice.
    """
    parts = parse_names(text, "part", (*OBJECTIVES, *CAPTION_PARTS), where=OPTION)
    if not parts:
        raise UsageError("No part is named", where=OPTION, remedy="Name some, as in tir,triplet,prune.")
    return parts


def subsets(parts: Parts) -> list[Parts]:
    """All 2^n subsets, small ones first: the first is empty, the last is whole."""
    return [subset for size in range(len(parts) + 1) for subset in combinations(parts, size)]


def label(parts: Parts) -> str:
    """A subset's name: `tir+triplet`, and `plain` for the empty one."""
    return "+".join(parts) or PLAIN


def with_all(recipe: TrainConfig, parts: Parts) -> TrainConfig:
    """`recipe` with all of `parts`: those that it does not hold are added with their defaults.

    Raises:
        UsageError: it has no objective to the end that is none of the parts.
    """
    needed = {objective.name for objective in lasting(recipe).objectives}
    if needed <= set(parts):
        kept = next(part for part in parts if part in needed)
        others = ",".join(part for part in parts if part != kept)
        raise UsageError(
            f"Without {', '.join(parts)}, the recipe {recipe.recipe} has no objective to train with to the end",
            where=OPTION,
            remedy=f"Leave one out, as in {OPTION} {others}." if others else "Take other parts, or another recipe.",
        )
    present = {objective.name for objective in recipe.objectives}
    missing = ",".join(part for part in parts if part in OBJECTIVES.keys() - present)
    captions = recipe.captions
    for part in CAPTION_PARTS.keys() & set(parts):
        if not any(_probabilities(captions, part).values()):
            captions = replace(captions, **_probabilities(CAPTIONS, part))
    return with_objectives(replace(recipe, captions=captions), None, missing)


def with_parts(whole: TrainConfig, parts: Parts, chosen: Parts) -> TrainConfig:
    """`whole`, which has all of `parts`, with the `chosen` ones alone.

    The objectives that are no part come first, so that they start from the same random weights in every subset.
    """
    left_out = set(parts) - set(chosen)
    kept = [objective for objective in whole.objectives if objective.name not in left_out]
    zeros = {name: 0.0 for part in CAPTION_PARTS.keys() & left_out for name in CAPTION_PARTS[part]}
    return replace(
        whole,
        objectives=tuple(sorted(kept, key=lambda objective: objective.name in parts)),
        captions=replace(whole.captions, **zeros),
    )


def lasting(recipe: TrainConfig, parts: Parts = ()) -> TrainConfig:
    """How a training is gone on with: the objectives that `recipe` has to the end, and `parts`, all throughout."""
    kept = (objective for objective in recipe.objectives if objective.stop == 1 or objective.name in parts)
    return replace(recipe, objectives=tuple(replace(objective, start=0.0, stop=1.0) for objective in kept))


def plan_subsets(
    recipe: TrainConfig,
    parts: Parts,
    *,
    seeds: int,
    start_epochs: float | None = None,
    epochs: float | None = None,
    budgets: tuple[str, ...] = BUDGETS,
) -> Plan:
    """An ablation: every subset of `parts` from a start without any of them. Parts that the recipe lacks are added.

    Raises:
        UsageError: no objective is left without the parts, or as `Plan`.
    """
    recipe = with_all(recipe, parts)
    whole = lasting(recipe, parts)
    return Plan(
        kind="ablation",
        compared="subset",
        contenders=tuple(Contender(label(subset), with_parts(whole, parts, subset)) for subset in subsets(parts)),
        start=with_parts(recipe, parts, ()),
        settings={"recipe": recipe, "parts": list(parts)},
        seeds=seeds,
        budgets=budgets,
        **durations(recipe, start_epochs, epochs),
    )


def _probabilities(captions: CaptionConfig, part: str) -> dict[str, float]:
    return {name: getattr(captions, name) for name in CAPTION_PARTS[part]}

"""The parts that an ablation takes out and puts in: objectives, and what is done to the captions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import combinations

from tiprctl.config import CaptionConfig, TrainConfig
from tiprctl.errors import UsageError, unknown_name
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
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    choices = (*OBJECTIVES, *CAPTION_PARTS)
    for part in parts:
        if part not in choices:
            raise unknown_name("part", part, choices)
        if parts.count(part) > 1:
            raise UsageError(f"The part {part!r} is named twice", where=OPTION, remedy="Name each part once.")
    if not parts:
        raise UsageError("No part is named", where=OPTION, remedy="Name some, as in tir,triplet,prune.")
    return parts


def subsets(parts: Parts) -> list[Parts]:
    """All 2^n subsets, small ones first: the first is empty, the last is whole."""
    return [subset for size in range(len(parts) + 1) for subset in combinations(parts, size)]


def label(parts: Parts) -> str:
    """A subset's name: `tir+triplet`, and `plain` for the empty one."""
    return "+".join(parts) or PLAIN


def with_parts(recipe: TrainConfig, parts: Parts, chosen: Parts) -> TrainConfig:
    """`recipe` with those of `parts` that are `chosen` and without the others.

    What the recipe does not hold is added with its default. The objectives that are no part come first, so that they
    start from the same random weights in every subset.

    Raises:
        UsageError: no objective is left.
    """
    kept = [objective for objective in recipe.objectives if objective.name not in parts or objective.name in chosen]
    if all(objective.name in parts for objective in recipe.objectives):
        raise UsageError(
            f"Without its parts, the recipe {recipe.recipe} has no objective to train with",
            where=OPTION,
            remedy=f"Leave one of {', '.join(objective.name for objective in recipe.objectives)} out.",
        )
    ordered = tuple(sorted(kept, key=lambda objective: objective.name in parts))
    changed = replace(recipe, objectives=ordered, captions=_captions(recipe.captions, parts, chosen))
    present = {objective.name for objective in kept}
    return with_objectives(changed, None, ",".join(part for part in chosen if part in OBJECTIVES.keys() - present))


def lasting(recipe: TrainConfig) -> TrainConfig:
    """`recipe` with the objectives that take part to the end, from the beginning: how a training is gone on with."""
    to_the_end = (objective for objective in recipe.objectives if objective.stop == 1)
    return replace(recipe, objectives=tuple(replace(objective, start=0.0) for objective in to_the_end))


def _captions(own: CaptionConfig, parts: Collection[str], chosen: Collection[str]) -> CaptionConfig:
    changes: dict[str, float] = {}
    for part in CAPTION_PARTS.keys() & set(parts):
        names = CAPTION_PARTS[part]
        source = own if any(getattr(own, name) for name in names) else CAPTIONS
        changes |= {name: getattr(source, name) if part in chosen else 0.0 for name in names}
    return replace(own, **changes)

"""`KEY=VALUE` settings: any value of a configuration, or of one of its objectives, by its dotted place."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from tiprctl.config import ObjectiveConfig, TrainConfig, from_dict, to_dict
from tiprctl.errors import UsageError, unknown_name
from tiprctl.objectives import OBJECTIVES, find_objective

OPTION = "--set"
SHARED = ("weight", "start", "stop")
"""What can be set of every objective, beside its own options."""
FIXED = ("recipe", "objectives")
"""What a setting cannot change: `--recipe`, `--losses` and `--aux` do."""


def with_settings(config: TrainConfig, settings: Iterable[str]) -> TrainConfig:
    """`config` changed as the settings say, all at once: `triplet.margin=0.1`, `tir.weight=5`, `captions.prune=0.3`.

    A key names an objective's weight, start, stop or option, or a value of the configuration. A value is JSON where it
    parses as such, else text.

    Raises:
        UsageError: a setting is malformed, names nothing that there is (the choices are listed), or is out of range.
    """
    values = to_dict(config)
    objectives = {objective["name"]: objective for objective in values["objectives"]}
    for key, value in map(_parse, settings):
        place, _, leaf = key.rpartition(".")
        holders = _holders(values, objectives, place)
        if leaf not in holders:
            raise _unknown(f"setting of {place}" if place else "setting", leaf, holders)
        holders[leaf][leaf] = value
    for name, objective in objectives.items():
        where = f"objective {name}"
        from_dict(ObjectiveConfig, objective, where=where)
        if objective["options"]:
            from_dict(find_objective(name).Config, objective["options"], where=where)
    return from_dict(TrainConfig, values, where=OPTION)


def _parse(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not (key.strip() and equals):
        raise UsageError(f"{setting!r} sets nothing", where=OPTION, remedy="Write KEY=VALUE, as in triplet.margin=0.1.")
    try:
        return key.strip(), json.loads(text)
    except json.JSONDecodeError:
        return key.strip(), text


def _holders(values: dict[str, Any], objectives: dict[str, Any], place: str) -> dict[str, dict[str, Any]]:
    """What can be set at a place, and which dictionary holds each: the place is an objective, a part, or "" for the top.

    Raises:
        UsageError: there is no such place.
    """
    if place in objectives:
        own = objectives[place]
        options = (field.name for field in fields(find_objective(place).Config))
        return dict.fromkeys(SHARED, own) | dict.fromkeys(options, own["options"])
    parts = {name: part for name, part in values.items() if isinstance(part, dict)}
    if place in parts:
        return dict.fromkeys(parts[place], parts[place])
    if place in OBJECTIVES:
        raise UsageError(
            f"The objective {place!r} does not take part in this training", where=OPTION, remedy=f"Add --aux {place}."
        )
    if place:
        raise _unknown("place", place, (*objectives, *parts))
    return {name: values for name in values if name not in (*parts, *FIXED)}


def _unknown(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    error = unknown_name(kind, name, choices)
    error.where = OPTION
    return error

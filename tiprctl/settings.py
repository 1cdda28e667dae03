"""`KEY=VALUE` settings: any value of a configuration, of one of its objectives, or of its head, by its dotted place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from tiprctl.config import PARTS, ObjectiveConfig, TrainConfig, from_dict, override, to_dict
from tiprctl.errors import UsageError, unknown_name
from tiprctl.models.heads import HEADS
from tiprctl.objectives import OBJECTIVES, find_objective
from tiprctl.starting import with_start

OPTION = "--set"
HEAD = "model.head"
SHARED = ("weight", "start", "stop")
"""What can be set of every objective, beside its own options."""
FIXED = MappingProxyType({"recipe": "--recipe", "objectives": "--losses or --aux"})
"""What a setting cannot change in `train`, and the options that do."""


def with_settings(config: TrainConfig, settings: Iterable[str], *, fixed: Mapping[str, str] = FIXED) -> TrainConfig:
    """`config` changed as the settings say, all at once: `triplet.margin=0.1`, `tir.weight=5`, `captions.prune=0.3`.

    A key names an objective's weight, start, stop or option, an option of the head, or a value of the configuration. A
    value is JSON where it parses as such, else text. Another head begins with its own defaults: the options of the one
    before mean nothing to it. `fixed` names what other options of a command decide, and these.

    Raises:
        UsageError: a setting is malformed, names nothing that there is (the choices are listed), or is out of range.
    """
    parsed = [_parse(setting) for setting in settings]
    values = to_dict(_with_head(config, parsed))
    objectives = {objective["name"]: objective for objective in values["objectives"]}
    for key, value in parsed:
        place, _, leaf = key.rpartition(".")
        if key in fixed:
            raise UsageError(f"The {key} cannot be set this way", where=OPTION, remedy=f"Use {fixed[key]}.")
        if place in OBJECTIVES.keys() - objectives:
            raise UsageError(
                f"The objective {place!r} does not take part in this training",
                where=OPTION,
                remedy=f"Name it in {fixed['objectives']}.",
            )
        if place in HEADS.keys() - {values["model"]["head"]}:
            raise UsageError(
                f"The head of this training is {values['model']['head']!r}, not {place!r}",
                where=OPTION,
                remedy=f"Take a recipe with that head, or name an objective that works on it in {fixed['objectives']}.",
            )
        holders = _holders(values, objectives, place)
        if leaf not in holders:
            raise _unknown(f"setting of {place}" if place else "setting", leaf, holders)
        _check_list(key, holders[leaf].get(leaf), value)
        holders[leaf][leaf] = value
    for name, objective in objectives.items():
        where = f"objective {name}"
        from_dict(ObjectiveConfig, objective, where=where)
        if objective["options"]:
            from_dict(find_objective(name).Config, objective["options"], where=where)
    head, options = values["model"]["head"], values["model"]["head_options"]
    if head in HEADS and options:
        from_dict(HEADS[head].Config, options, where=f"head {head}")
    return from_dict(TrainConfig, values, where=OPTION)


def resolve(
    config: TrainConfig,
    settings: Iterable[str],
    *,
    pretrained: str | None = None,
    fixed: Mapping[str, str] = FIXED,
) -> TrainConfig:
    """`config` at the size and input of the checkpoint that it starts from, then changed as the settings say.

    `pretrained` is where the weights start; None leaves that to the settings and `config`.

    Raises:
        UsageError: as `with_settings`. InputError: there is no such start, or it cannot be read.
    """
    settings = list(settings)
    asked = with_settings(config, settings, fixed=fixed)
    model = with_start(config.model, pretrained or asked.model.pretrained)
    changed = with_settings(replace(config, model=model), settings, fixed=fixed)
    return override(changed, {"model.pretrained": model.pretrained})


def _with_head(config: TrainConfig, settings: Iterable[tuple[str, Any]]) -> TrainConfig:
    """`config` with the head that the settings end up with; without options where it is another one."""
    *_, head = (config.model.head, *(value for key, value in settings if key == HEAD))
    return config if head == config.model.head else override(config, {HEAD: head, "model.head_options": {}})


def _parse(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not (key.strip() and equals):
        raise UsageError(f"{setting!r} sets nothing", where=OPTION, remedy="Write KEY=VALUE, as in triplet.margin=0.1.")
    try:
        return key.strip(), json.loads(text)
    except json.JSONDecodeError:
        return key.strip(), text


def _check_list(key: str, present: Any, value: Any) -> None:
    """Refuse something else where a list stands; the remedy shows what stands there, as one writes it in a shell."""
    if isinstance(present, list) and not isinstance(value, list):
        raise UsageError(
            f"{key} is a list, not {value}",
            where=OPTION,
            remedy=f"Write it in brackets and quotes: `--set '{key}={json.dumps(present, separators=(',', ':'))}'`.",
        )


def _holders(values: dict[str, Any], objectives: dict[str, Any], place: str) -> dict[str, dict[str, Any]]:
    """What can be set at a place, and which dictionary holds each.

    The place is an objective, the head, a part of the configuration, or "" for the top.

    Raises:
        UsageError: there is no such place.
    """
    if place in objectives:
        own = objectives[place]
        options = (field.name for field in fields(find_objective(place).Config))
        return dict.fromkeys(SHARED, own) | dict.fromkeys(options, own["options"])
    if place in PARTS:
        return dict.fromkeys(values[place], values[place])
    head = values["model"]["head"]
    options = [field.name for field in fields(HEADS[head].Config)] if head in HEADS else []
    if options and place == head:
        return dict.fromkeys(options, values["model"]["head_options"])
    if place:
        raise _unknown("place", place, (*objectives, *([head] if options else []), *PARTS))
    return {name: values for name in values if name not in (*PARTS, *FIXED)}


def _unknown(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    error = unknown_name(kind, name, choices)
    error.where = OPTION
    return error

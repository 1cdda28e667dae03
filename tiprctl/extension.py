"""What a method of one's own is written with, and how it becomes known by name (docs/extending.md)."""

from __future__ import annotations

import re
from typing import Any

from tiprctl.config import PARTS, Count, Fraction, NonNegative, Positive, frozen
from tiprctl.data.catalog import DATA_SETS
from tiprctl.data.records import DataSet, Fields, Record, SplitSize, read_objects
from tiprctl.errors import UsageError
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.models.encodings import EncoderSpec, Encodings, ImageMask, Needs, PairBatch, TextMask
from tiprctl.models.heads import HEADS
from tiprctl.models.heads.base import Features, Head, Related, Selection
from tiprctl.models.tokens import Tokens
from tiprctl.objectives import OBJECTIVES
from tiprctl.objectives.base import Objective, ObjectiveOutput, Role

__all__ = [
    "Count",
    "DataSet",
    "EncoderSpec",
    "Encodings",
    "Features",
    "Fields",
    "Fraction",
    "Head",
    "ImageMask",
    "Needs",
    "NonNegative",
    "Objective",
    "ObjectiveOutput",
    "PairBatch",
    "Positive",
    "Record",
    "Related",
    "Role",
    "Selection",
    "SplitSize",
    "TextMask",
    "Tokens",
    "add",
    "cosine_similarity",
    "frozen",
    "read_objects",
]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""What a name may be: it is typed in lists with commas, stands before the dots of settings, and names folders."""


def add(*things: type[Objective] | type[Head] | DataSet) -> None:
    """Make objectives, heads and data sets known by their names, beside the built-in ones, in this process.

    Raises:
        UsageError: one of them is none of these, has no proper name, or has the name of another: of a data set, or of
            what settings are given for, an objective, a head or a part of the configuration.
    """
    for thing in things:
        kind, table = _table_of(thing)
        name = getattr(thing, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be the name of {kind}",
                where=_whereabouts(thing),
                remedy="Take small letters and digits, with - and _ between them.",
            )
        if table.get(name) is not thing and (taken := _taken(name, table)):
            raise UsageError(f"{name!r} is {taken} already", where=_whereabouts(thing), remedy="Choose another name.")
        table[name] = thing


def _table_of(thing: object) -> tuple[str, dict[str, Any]]:
    """What a thing is, with its article, and the table that has its like."""
    if isinstance(thing, DataSet):
        return "a data set", DATA_SETS
    if isinstance(thing, type) and issubclass(thing, Objective):
        return "an objective", OBJECTIVES
    if isinstance(thing, type) and issubclass(thing, Head):
        return "a head", HEADS
    raise UsageError(
        f"{thing!r} is neither an objective, nor a head, nor a data set",
        remedy="Give a class that derives from Objective or Head, or a DataSet.",
    )


def _taken(name: str, table: dict[str, Any]) -> str | None:
    """What has the name already, with its article, where things of this table are found by name; None where nothing."""
    data_sets = {"a data set": DATA_SETS}
    with_settings = {"an objective": OBJECTIVES, "a head": HEADS, "a part of the configuration": PARTS}
    kinds = data_sets if table is DATA_SETS else with_settings
    return next((kind for kind, names in kinds.items() if name in names), None)


def _whereabouts(thing: DataSet | type) -> str:
    """The module and the name by which a programmer finds it."""
    found = thing.read if isinstance(thing, DataSet) else thing
    return f"{found.__module__}.{found.__qualname__}"

"""The errors that tiprctl reports to its users: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class TiprError(Exception):
    """An error that a user can act on.

    Args:
        what: what is wrong, one sentence without a final full stop.
        where: the file, folder, record or option that it is about.
        remedy: what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, remedy: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.where, self.remedy) if line)


class UsageError(TiprError):
    """The command was asked for something that does not exist or does not go together."""

    exit_code = 2


class InputError(TiprError):
    """A data set, image folder, checkpoint or other file is missing or damaged."""

    exit_code = 3


class ImageError(InputError):
    """An image file cannot be read."""


class CheckError(TiprError):
    """A check that was asked for has failed."""

    exit_code = 4


class TrainingError(TiprError):
    """Training cannot go on: a loss that is not finite, a step that runs out of memory."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """A `UsageError` for a misspelt name that lists the choices, the nearest first."""
    choices = sorted(choices)
    near = get_close_matches(name, choices, n=len(choices), cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    ordered = near + [choice for choice in choices if choice not in near]
    return UsageError(f"There is no {kind} named {name!r}", remedy=f"{hint}Choices: {', '.join(ordered)}.")

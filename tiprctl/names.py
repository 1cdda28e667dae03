"""Lists of names as users write them."""

from __future__ import annotations

from collections.abc import Collection

from tiprctl.errors import UsageError, unknown_name


def parse_names(text: str, kind: str, choices: Collection[str], *, where: str | None = None) -> tuple[str, ...]:
    """The names of a comma-separated list, in its order; spaces and empty places do not count.

    Args:
        kind: what is named, as in `recipe`.
        where: the option that the list was given with.

    Raises:
        UsageError: a name is none of the `choices`, which are then listed, or is there twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in choices:
            raise unknown_name(kind, name, choices)
        if names.count(name) > 1:
            raise UsageError(f"The {kind} {name!r} is named twice", where=where, remedy=f"Name each {kind} once.")
    return names

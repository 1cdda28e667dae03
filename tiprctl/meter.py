"""How far work has come, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Meter = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]
"""Opened with what is done, how many times (None: not known), and of what; the context's function is told how many more
are done."""

ResumedMeter = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]
"""Opened with how many there are to do, and how many of them former runs did; the context's function is told how many
more are done."""


def unseen(what: str, total: int | None, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """A `Meter` that nobody looks at."""
    return nullcontext(lambda count: None)

"""How many cores there are to work on."""

from __future__ import annotations

import os

from tiprctl.job import place


def cores() -> int:
    """The cores that this process may use: on a shared machine perhaps fewer than there are, in a job its part."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // place().locals)

"""Changes that others are in the way of are begun anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tiprctl.gallery.keeping.engine import ConflictError

if TYPE_CHECKING:
    from tiprctl.gallery.keeping.store import GalleryStore

T = TypeVar("T")
_ATTEMPTS, _PATIENCE = 5, 60.0
"""How often at least, and how many seconds, a change is tried that others are in the way of."""
_LONGEST_PAUSE = 1.0
"""In seconds, between two attempts."""


def settled(store: GalleryStore, change: Callable[[], T]) -> T:
    """What `change` returns, begun anew on the newest version where other writers were quicker.

    Raises:
        EngineError: it fails for another reason, or the others leave it no time.
    """
    # Without a seed, since two processes in each other's way must draw different pauses.
    begun, generator = time.monotonic(), np.random.default_rng()
    for attempt in count(1):
        store.refresh()
        try:
            return change()
        except ConflictError:
            if attempt >= _ATTEMPTS and time.monotonic() - begun > _PATIENCE:
                raise
        time.sleep(generator.uniform(0, min(0.05 * 2**attempt, _LONGEST_PAUSE)))

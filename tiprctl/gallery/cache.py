"""The folder in which tiprctl keeps what it can compute again, and what of it goes because nobody uses it."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import platformdirs

_ORIGIN = "origin.txt"
"""In what is kept of a folder: that folder's path; its time is when it was last used."""
_DISCARDED = ".discarded-"
_DAY = 86_400
_KEPT = 180 * _DAY
"""Seconds that nobody has used it, after which what is kept goes."""
_KEPT_WITHOUT = 7 * _DAY
"""The same where the folder is gone: its disk may not be mounted now."""


def cache_folder(cache: str | Path | None = None) -> Path:
    """The cache's folder: `cache`, else $TIPRCTL_CACHE, else the platform's."""
    return Path(cache or os.environ.get("TIPRCTL_CACHE") or platformdirs.user_cache_path("tiprctl"))


def mark_used(kept: Path, origin: Path) -> None:
    """Note in the folder `kept` that it was used now, for the folder `origin`; left out where it cannot be written."""
    with suppress(OSError):
        (kept / _ORIGIN).write_bytes(os.fsencode(origin.absolute()))


def discard(kept: Path) -> None:
    """Remove a folder: at once for who looks for it, its files after that."""
    away = kept.with_name(f"{_DISCARDED}{uuid4().hex}")
    with suppress(OSError):
        kept.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def prune(parent: Path) -> None:
    """Remove the folders in `parent` that were marked, and not used for long."""
    with suppress(OSError):
        for kept in list(parent.iterdir()):
            if kept.name.startswith(_DISCARDED):
                shutil.rmtree(kept, ignore_errors=True)
            elif _is_idle(kept):
                discard(kept)


def _is_idle(kept: Path) -> bool:
    """Whether it was marked, and so long ago that it can go."""
    mark = kept / _ORIGIN
    try:
        unused = time.time() - mark.stat().st_mtime
        there = unused <= _KEPT_WITHOUT or Path(os.fsdecode(mark.read_bytes())).is_dir()
    except OSError:
        return False
    return unused > (_KEPT if there else _KEPT_WITHOUT)

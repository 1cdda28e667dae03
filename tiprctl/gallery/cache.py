"""Where tiprctl keeps what it can compute again; apart from the gallery's index, since naming a folder loads nothing."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder(cache: str | Path | None = None) -> Path:
    """The cache's folder: `cache`, else $TIPRCTL_CACHE, else the platform's."""
    return Path(cache or os.environ.get("TIPRCTL_CACHE") or platformdirs.user_cache_path("tiprctl"))

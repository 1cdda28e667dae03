"""Which rows a user means to remove."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.expression import matching
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.gallery.keeping.schema import KEY
from tiprctl.gallery.keeping.store import GalleryStore


@dataclass(frozen=True)
class Chosen:
    """The paths of the rows, what was named that no row is of, and how many rows were not named themselves."""

    keys: list[str]
    missing: list[str]
    unnamed: int


def rows_of(store: GalleryStore, paths: Sequence[str], where: str | None) -> Chosen:
    """The rows at or below the paths, which need not be there any more, of which the expression holds.

    Args:
        paths: of images or folders, absolute or from the working folder; URIs. None of them means all rows.
        where: as for `expression.compiled`.

    Raises:
        UsageError: the expression cannot be read, or a path is empty.
    """
    if not all(map(str.strip, paths)):
        raise UsageError(
            "An empty path would mean the whole working folder", where="index remove", remedy="Name it: `.` is that."
        )
    named = {path: _spellings(path) for path in paths}
    keys, met = [], set()
    for batch in matching(store, [KEY], where):
        chosen = np.full(len(batch), not named)
        for path, spellings in named.items():
            hits = _at_or_below(batch[KEY], spellings)
            if hits.any():
                met.add(path)
            chosen |= hits
        keys += batch[KEY].filter(pa.array(chosen)).to_pylist()
    spelt = set().union(*named.values())
    return Chosen(keys, [path for path in named if path not in met], sum(key not in spelt for key in keys))


def _at_or_below(keys: pa.Array, spellings: Collection[str]) -> np.ndarray:
    """Which of the keys are one of these paths, or below one, bool."""
    hits = pc.is_in(keys, pa.array(spellings, pa.string())).to_numpy(zero_copy_only=False)
    for spelling in spellings:
        hits = hits | pc.starts_with(keys, spelling.rstrip("/") + "/").to_numpy(zero_copy_only=False)
    return hits


def _spellings(path: str) -> list[str]:
    """How a gallery may spell a path: below the real path of the folder that was added, whichever above it that was.

    Links below that folder keep their names. So does a link to an image, whose target is another path.
    """
    if is_remote(path):
        return [path.rstrip("/")]
    whole = Path(os.path.abspath(path))
    folders = [whole, *whole.parents] if whole.is_dir() else whole.parents
    return list(dict.fromkeys((folder.resolve() / whole.relative_to(folder)).as_posix() for folder in folders))

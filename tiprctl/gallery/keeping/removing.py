"""Which rows a user means to remove."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
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
    """The rows to remove, and what was named in vain.

    Attributes:
        keys: the paths of the rows.
        missing: what was named at or below which there is no row.
        unmatched: what was named at or below which there are rows, but none of which the expression holds.
        unnamed: how many of the rows were not named themselves.
    """

    keys: list[str]
    missing: list[str]
    unmatched: list[str]
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
    vain = {path: spellings for path, spellings in named.items() if path not in met}
    unmatched = [] if where is None else _with_rows(store, vain)
    spelt = set().union(*named.values())
    return Chosen(
        keys, [path for path in vain if path not in unmatched], unmatched, sum(key not in spelt for key in keys)
    )


def remove_chosen(store: GalleryStore, chosen: Chosen, paths: Sequence[str], where: str | None) -> int:
    """Take out the rows that were chosen and are still chosen on the newest version; how many there were.

    Others may have described rows anew since they were chosen, such as while the user was asked.

    Args:
        paths, where: what the rows were chosen by, as for `rows_of`.

    Raises:
        EngineError: the gallery cannot be written. Nothing was removed.
    """
    if where is None:
        return store.remove(chosen.keys)
    store.refresh()
    still = set(rows_of(store, paths, where).keys)
    return store.remove([key for key in chosen.keys if key in still])


def _with_rows(store: GalleryStore, named: Mapping[str, Collection[str]]) -> list[str]:
    """The paths, of these with their spellings, at or below which there is a row."""
    found = set()
    for batch in store.scan([KEY]) if named else ():
        found.update(path for path, spellings in named.items() if _at_or_below(batch[KEY], spellings).any())
    return [path for path in named if path in found]


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

"""Which rows a user means to remove."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.gallery.expression import matching
from tiprctl.gallery.places import is_remote
from tiprctl.gallery.schema import KEY
from tiprctl.gallery.store import GalleryStore


@dataclass(frozen=True)
class Chosen:
    """The paths of the rows, and what was named that no row is of."""

    keys: list[str]
    missing: list[str]


def rows_of(store: GalleryStore, paths: Sequence[str], where: str | None) -> Chosen:
    """The rows at or below the paths, which need not be there any more, of which the expression holds.

    Args:
        paths: of images or folders, absolute or from the working folder; URIs. None of them means all rows.
        where: as for `find`.

    Raises:
        UsageError: the expression cannot be read.
    """
    named = {path: _key(path) for path in paths}
    keys, met = [], set()
    for batch in matching(store, [KEY], where):
        chosen = np.full(len(batch), not named)
        for path, key in named.items():
            at = pc.or_(pc.equal(batch[KEY], key), pc.starts_with(batch[KEY], key.rstrip("/") + "/"))
            hits = at.to_numpy(zero_copy_only=False)
            if hits.any():
                met.add(path)
            chosen |= hits
        keys += batch[KEY].filter(pa.array(chosen)).to_pylist()
    return Chosen(keys, [path for path in named if path not in met])


def _key(path: str) -> str:
    """How a gallery spells a path: that of the real folder; the name itself may be a link's."""
    if is_remote(path):
        return path
    whole = Path(os.path.abspath(path))
    return (whole.parent.resolve() / whole.name).as_posix()

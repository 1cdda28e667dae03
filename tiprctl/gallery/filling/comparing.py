"""What sets the images of a folder apart from the rows of a gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.gallery.filling.digests import DigestSet, in_few_bytes
from tiprctl.gallery.filling.listing import ROWS_AT_ONCE, Listing
from tiprctl.gallery.keeping.places import key_of
from tiprctl.gallery.keeping.schema import KEY
from tiprctl.gallery.keeping.store import GalleryStore

_ROW = (KEY, "size", "mtime_ns", "hash")


@dataclass(frozen=True)
class Comparison:
    """Images on one side, rows on the other.

    Attributes:
        new: places in the listing of the images that have no row.
        changed: places of those whose row is of another size or time.
        rows: how many rows the folder has, or the list.
        gone: path, size, time and hash of the rows whose file is no more.
        stale: the same of the rows of `changed`.
        reusable: hashes of contents whose row is out of date, so that a file with such a content takes its vector.
    """

    new: np.ndarray
    changed: np.ndarray
    rows: int
    gone: pa.Table
    stale: pa.Table
    reusable: DigestSet

    @cached_property
    def wanted(self) -> np.ndarray:
        """The places of the images to read, in path order."""
        return np.sort(np.concatenate([self.new, self.changed]))


class Inventory:
    """A listing, ready to be compared with a gallery as often as it changes; a row takes no memory unless its file
    changed or is gone."""

    def __init__(self, listing: Listing):
        self.listing = listing
        self.root = listing.root_key
        self._sizes, self._times = listing.images.sizes, listing.images.times
        self._unlooked = {key_of(self.root, one.path) for one in listing.unreadable}

    def keys(self, places: np.ndarray) -> Iterator[str]:
        """The paths by which the gallery knows the images at these places."""
        for some in np.array_split(places, len(places) // ROWS_AT_ONCE + 1):
            for path in self.listing.images.take(some).paths:
                yield key_of(self.root, path)

    def compare(self, store: GalleryStore) -> Comparison:
        """What the gallery's version has of the images."""
        known, same = (np.zeros(len(self.listing.images), bool) for _ in range(2))
        schema = pa.schema([store.schema.field(name) for name in _ROW])
        gone, stale, unlooked = ([] for _ in range(3))
        rows = 0
        for batch in store.scan(_ROW):
            batch = self._near(batch).select(_ROW)
            places = self.listing.keys.find(batch[KEY].to_pylist())
            fresh = self._fresh(batch, places)
            known[places[places >= 0]] = True
            same[places[fresh]] = True
            absent = (places < 0) & self.listing.whole
            lost = absent.copy()
            lost[absent] = [self._is_gone(path) for path in batch[KEY].filter(pa.array(absent)).to_pylist()]
            for kept, which in ((gone, lost), (stale, (places >= 0) & ~fresh), (unlooked, absent & ~lost)):
                kept.append(batch.filter(pa.array(which)))
            rows += int((absent | (places >= 0)).sum())
        reusable = DigestSet(
            text for some in (*gone, *stale, *unlooked) for text in some["hash"].drop_null().to_pylist()
        )
        gone, stale = (pa.Table.from_batches(some, schema) for some in (gone, stale))
        new, changed = (in_few_bytes(np.flatnonzero(which)) for which in (~known, known & ~same))
        return Comparison(new, changed, rows, gone, stale, reusable)

    def _near(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows below the folder; of a list, which may lead anywhere, all."""
        if not self.listing.whole:
            return batch
        return batch.filter(pc.starts_with(batch[KEY], self.root.rstrip("/") + "/"))

    def _fresh(self, batch: pa.RecordBatch, places: np.ndarray) -> np.ndarray:
        """Which rows have the size and the time of their file."""
        fresh = places >= 0
        for name, values in (("size", self._sizes), ("mtime_ns", self._times)):
            fresh[fresh] = batch[name].to_numpy(zero_copy_only=False)[fresh] == values[places[fresh]]
        return fresh

    def _is_gone(self, path: str) -> bool:
        """Whether a file that is not listed is no more; what could not be looked at may still be there."""
        return not self._unlooked or self._unlooked.isdisjoint([path, *map(str, PurePosixPath(path).parents)])

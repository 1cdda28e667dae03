"""Rows that go into a gallery as they come, some seconds' worth at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tiprctl.gallery.filling.embedding import EmbeddedBatch, ReadImage
from tiprctl.gallery.filling.listing import ImageFile
from tiprctl.gallery.filling.metadata import Describer
from tiprctl.gallery.keeping.schema import VECTOR
from tiprctl.gallery.keeping.store import GalleryStore, Written

SECONDS_BETWEEN_COMMITS = 5.0
"""A fast model's batches are committed together: each commit is a file and a version of the gallery."""
_MANY_ROWS = 8192


class RowWriter:
    """Takes images with their vectors, and commits them when the last commit is a while ago or they are many.

    Attributes:
        written: what all commits did.
        reused: how many of these rows took a vector that the gallery had.
        crossed: whether others committed between this writer's last two commits.
        left_over: images whose vector was to be found in the gallery, but is there no more.
    """

    def __init__(self, store: GalleryStore, root: str, describer: Describer):
        self.written = Written(0, 0)
        self.reused = 0
        self.crossed = False
        self.left_over: list[ImageFile] = []
        self._store = store
        self._root = root
        self._describer = describer
        self._rows: list[pa.Table] = []
        self._reusable: list[ReadImage] = []
        self._last_commit = time.monotonic()

    @property
    def waiting(self) -> int:
        """How many images are not committed yet."""
        return sum(map(len, self._rows)) + len(self._reusable)

    def add(self, batch: EmbeddedBatch) -> bool:
        """Take the images of a batch; whether that led to a commit.

        Raises:
            EngineError: the gallery cannot be written.
        """
        if batch.images:
            self._rows.append(self._table(batch.images, batch.vectors))
        self._reusable += batch.reusable
        due = time.monotonic() - self._last_commit > SECONDS_BETWEEN_COMMITS or self.waiting >= _MANY_ROWS
        if due:
            self.commit()
        return due

    def commit(self) -> None:
        """Write what was taken; an interrupt leaves it to be written again, which does no harm."""
        try:
            if self.waiting:
                reused = self._with_known_vectors()
                self._put([*self._rows, *reused])
                self.reused += sum(map(len, reused))
        except Exception:
            self._clear()
            raise
        self._clear()

    def _put(self, tables: Sequence[pa.Table]) -> None:
        if not tables:
            return
        before = self._store.dataset.version
        done = self._store.put(pa.concat_tables(tables))
        self.written = Written(self.written.inserted + done.inserted, self.written.updated + done.updated)
        self.crossed = self._store.dataset.version > before + 1

    def _clear(self) -> None:
        self._rows, self._reusable, self._last_commit = [], [], time.monotonic()

    def _with_known_vectors(self) -> list[pa.Table]:
        """The rows of the images whose content the gallery knows."""
        if not self._reusable:
            return []
        known = self._store.vectors({image.hash for image in self._reusable})
        found = [image for image in self._reusable if image.hash in known]
        self.left_over += [image.file for image in self._reusable if image.hash not in known]
        return [self._table(found, np.stack([known[image.hash] for image in found]))] if found else []

    def _table(self, images: Sequence[ReadImage], vectors: np.ndarray) -> pa.Table:
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        told = self._describer.columns(images, self._root)
        if self._describer.camera is None:
            # Another run may have told it: a row that there is keeps what it has.
            del told["camera"]
        return pa.table({**told, VECTOR: column})

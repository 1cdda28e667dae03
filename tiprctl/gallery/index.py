"""The embeddings of a gallery, kept between queries: a small Lance dataset in the cache for each folder and model."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import lance
import numpy as np
import pyarrow as pa

from tiprctl.errors import InputError
from tiprctl.gallery.cache import cache_folder
from tiprctl.gallery.embed import ImageFile, Listing, Unreadable, VectorModel, embed_images, have_unit_length

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Takes the number of images to embed, gives a context with a function to call with each number done."""

_FORMAT = 1
_SECONDS_BETWEEN_COMMITS = 5.0
"""A fast model's batches are committed together: each commit is a file and a version of the dataset."""
_MANY_FRAGMENTS = 32
_OLD_VERSIONS = timedelta(hours=1)
"""Older versions are removed when fragments are merged; another query may still read a younger one."""
_DELETED_AT_ONCE = 10_000


class EmbeddingInterrupted(KeyboardInterrupt):
    """Ctrl-C while a gallery was embedded: `kept` of the `total` new images are in the cache."""

    def __init__(self, kept: int, total: int):
        super().__init__(f"{kept} of {total} new images are embedded and kept")
        self.kept = kept
        self.total = total


@dataclass(frozen=True)
class Gallery:
    """A folder of images as one model sees it.

    Attributes:
        root: the folder.
        paths: the images that could be read, below `root`, in path order.
        vectors: their embeddings, float32 `(n, width)`, rows of unit norm.
        unreadable: what was skipped.
        embedded: how many images were embedded now; the others were in the cache.
        notes: what the user should know of the cache.
    """

    root: Path
    paths: list[str]
    vectors: np.ndarray
    unreadable: list[Unreadable]
    embedded: int
    notes: list[str]


def read_gallery(
    listing: Listing,
    embedder: VectorModel,
    *,
    cache: str | Path | None = None,
    batch_size: int = 64,
    progress: Progress = lambda total: nullcontext(lambda done: None),
) -> Gallery:
    """The embeddings of the listed images: from the cache where path, size and time are unchanged, else computed.

    What is computed is committed to the cache as it comes. A damaged cache is rebuilt; one that cannot be written
    costs the next query's time, not this query's answer. Several queries may share a cache: Lance's commits are
    transactions, and images that two of them embed at once are merged by the next.

    Raises:
        EmbeddingInterrupted: Ctrl-C; what was embedded is kept.
        InputError: no image can be read.
        TiprError: the model's vectors are unusable.
    """
    store = _Store(cache_folder(cache), listing.root, embedder)
    vectors, stale = store.load(listing.images)
    new = [image for image in listing.images if image not in vectors]
    unreadable = list(listing.unreadable)
    if new:
        unreadable += _embed_new(listing.root, new, embedder, store, vectors, batch_size, progress)
    store.tidy(stale)
    images = [image for image in listing.images if image in vectors]
    if not images:
        first = unreadable[0]
        raise InputError(
            f"None of the {len(listing.images)} images in the gallery can be read",
            where=listing.root / first.path,
            remedy=f"{first.reason}. Copy the images again from their source, or name another folder.",
        )
    matrix = np.stack([vectors[image] for image in images])
    paths = [image.path for image in images]
    return Gallery(listing.root, paths, matrix, unreadable, store.embedded, store.notes)


def _embed_new(
    root: Path,
    new: Sequence[ImageFile],
    embedder: VectorModel,
    store: _Store,
    vectors: dict[ImageFile, np.ndarray],
    batch_size: int,
    progress: Progress,
) -> list[Unreadable]:
    """Embed `new` into `vectors` and `store`; what could not be read."""
    unreadable: list[Unreadable] = []
    try:
        with progress(len(new)) as advance:
            for batch in embed_images(root, new, embedder, batch_size=batch_size):
                store.add(batch.images, batch.vectors)
                vectors.update(zip(batch.images, batch.vectors))
                unreadable += batch.unreadable
                advance(len(batch.images) + len(batch.unreadable))
    except KeyboardInterrupt as interrupt:
        store.flush()
        raise EmbeddingInterrupted(store.kept, len(new)) from interrupt
    finally:
        store.flush()
    return unreadable


class _CacheError(Exception):
    """Lance cannot read or write the dataset."""


class _Store:
    """The Lance dataset of one gallery folder under one model: a row (path, size, mtime_ns, vector) an image.

    Faults never reach the caller; they become `notes`.
    """

    def __init__(self, cache: Path, root: Path, embedder: VectorModel):
        folder = str(root.resolve())
        identity = (_FORMAT, embedder.fingerprint, embedder.precision, embedder.width, tuple(embedder.image_size), folder)
        self.folder = cache / "galleries" / hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        columns = [("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())]
        columns.append(("vector", pa.list_(pa.float32(), embedder.width)))
        self.schema = pa.schema(columns, metadata={"gallery": os.fsencode(folder), "model": embedder.fingerprint})
        self.notes: list[str] = []
        self.embedded = 0
        self.kept = 0
        self._pending: list[pa.Table] = []
        self._last_commit = time.monotonic()

    def load(self, images: Sequence[ImageFile]) -> tuple[dict[ImageFile, np.ndarray], np.ndarray]:
        """The vectors of those `images` that are kept, and the row ids of all other rows.

        A damaged dataset is removed, with a note.
        """
        try:
            table = self._read()
        except _CacheError as error:
            self.notes.append(f"The cache of this gallery was damaged and is built again ({error}).")
            shutil.rmtree(self.folder, ignore_errors=True)
            table = None
        if table is None:
            return {}, np.empty(0, np.int64)
        wanted = set(images)
        rows: dict[ImageFile, int] = {}
        columns = (table[name].to_pylist() for name in ("path", "size", "mtime_ns"))
        for row, image in enumerate(map(ImageFile, *columns)):
            if image in wanted:
                rows[image] = row
        matrix = _matrix(table)
        stale = np.ones(len(table), bool)
        stale[list(rows.values())] = False
        return {image: matrix[row] for image, row in rows.items()}, table["_rowid"].to_numpy()[stale]

    def add(self, images: Sequence[ImageFile], vectors: np.ndarray) -> None:
        """Take rows, and commit them with those before when the last commit is a while ago."""
        if not images:
            return
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = [[image.path for image in images], [image.size for image in images]]
        columns += [[image.mtime_ns for image in images], pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
        self._pending.append(pa.table(columns, schema=self.schema))
        self.embedded += len(images)
        if time.monotonic() - self._last_commit > _SECONDS_BETWEEN_COMMITS:
            self.flush()

    def flush(self) -> None:
        """Commit the rows that were taken; on a conflict with another query once more, on the state it left."""
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        self._pending = []
        try:
            try:
                self._append(table)
            except _CacheError:
                self._append(table)
            self.kept += len(table)
        except _CacheError as error:
            note = f"Embeddings could not be kept in {self.folder}: {error}. The next query computes them again."
            if note not in self.notes:
                self.notes.append(note)
        self._last_commit = time.monotonic()

    def tidy(self, stale: np.ndarray) -> None:
        """Delete the rows with the ids `stale`; merge the dataset's fragments when they are many.

        Mere housekeeping, since no answer holds a stale row: where it fails, the next query does it.
        """
        with suppress(_CacheError), _lance_faults():
            if not self._exists():
                return
            dataset = lance.dataset(str(self.folder))
            for start in range(0, len(stale), _DELETED_AT_ONCE):
                dataset.delete(f"_rowid IN ({','.join(map(str, stale[start : start + _DELETED_AT_ONCE]))})")
            if len(dataset.get_fragments()) > _MANY_FRAGMENTS:
                dataset.optimize.compact_files()
                dataset.cleanup_old_versions(_OLD_VERSIONS)

    def _exists(self) -> bool:
        """Whether the dataset has a version; another query may be about to commit its first one."""
        return any(self.folder.glob("_versions/*.manifest"))

    def _read(self) -> pa.Table | None:
        with _lance_faults():
            if not self._exists():
                return None
            dataset = lance.dataset(str(self.folder))
            if not dataset.schema.equals(self.schema):
                raise _CacheError("it has other columns")
            table = dataset.to_table(with_row_id=True)
        if not have_unit_length(_matrix(table)):
            raise _CacheError("it holds vectors that no model gave")
        return table

    def _append(self, table: pa.Table) -> None:
        with _lance_faults():
            if not self._exists():
                self._create()
            lance.write_dataset(table, str(self.folder), mode="append")

    def _create(self) -> None:
        """Make an empty dataset, unless another query is quicker.

        It is renamed into place, because two datasets that Lance creates at once in one place overwrite each other.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder.parent, prefix=".new-") as temporary:
            lance.write_dataset(self.schema.empty_table(), f"{temporary}/dataset", mode="create")
            try:
                os.rename(f"{temporary}/dataset", self.folder)
            except OSError:
                if not self._exists():
                    raise


def _matrix(table: pa.Table) -> np.ndarray:
    """The vectors of a table as float32 `(n, width)`."""
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)


@contextmanager
def _lance_faults() -> Iterator[None]:
    """Turn what Lance raises on damage, on conflicts and on full disks into `_CacheError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _CacheError(_brief(error)) from error
    except BaseException as error:
        # A panic in its native code is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise _CacheError(_brief(error)) from error


def _brief(error: BaseException) -> str:
    """Lance's message without the places in its own source that follow it."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(", /")[0]

"""A folder as a gallery that needs no command: the vectors of its images stay in the cache, and each query brings them
up to date."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from tiprctl.errors import InputError, TiprError
from tiprctl.gallery.cache import cache_folder, discard, mark_used, prune
from tiprctl.gallery.filling.adding import Changes, Progress, Reading, sync
from tiprctl.gallery.filling.embedding import have_unit_length
from tiprctl.gallery.filling.listing import Listing
from tiprctl.gallery.keeping.datasets import exists
from tiprctl.gallery.keeping.engine import EngineError, ObstacleError, faults
from tiprctl.gallery.keeping.expression import compiled
from tiprctl.gallery.keeping.places import key_of, root_key
from tiprctl.gallery.keeping.schema import FORMAT, VECTOR, ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import finding
from tiprctl.gallery.searching.exact import vectors_of
from tiprctl.vector_model import VectorModel

_SAMPLE = 1000
"""How many vectors of a large gallery are read to tell damage: of each file some."""


@dataclass(frozen=True)
class FolderGallery:
    """A folder of images as one model sees it.

    Attributes:
        root: the folder, as the user names it.
        store: a row an image that could be read.
        changes: what became of it now.
        notes: what the user should know of the cache.
    """

    root: Path
    store: GalleryStore
    changes: Changes
    notes: list[str]

    @property
    def in_memory(self) -> bool:
        """Whether the gallery ends with the process, since the cache could not be written."""
        return self.store.uri.startswith("memory://")

    def shown(self, path: str) -> str:
        """A path of the gallery, below the folder as the user names it."""
        return os.path.join(self.root, path.removeprefix(root_key(self.root).rstrip("/") + "/"))

    def stored(self, shown: str) -> str:
        """A path that was shown, or a pattern of such, as the gallery has it; any other as it is."""
        below = os.path.join(self.root, "")
        return key_of(root_key(self.root), shown.removeprefix(below)) if shown.startswith(below) else shown


def open_folder(
    listing: Listing,
    model: VectorModel,
    *,
    cache: str | Path | None = None,
    follow_links: bool = False,
    where: str | None = None,
    batch_size: int = 64,
    progress: Progress = lambda total: nullcontext(lambda done: None),
) -> FolderGallery:
    """The listed images with their vectors: from the cache where path, size and time are unchanged, else computed.

    What is computed is committed as it comes. A damaged cache is built again; one that cannot be read or written now
    costs time, not the answer, and stays as it is. Several queries may share a cache.

    Args:
        follow_links: whether the listing does: such have a cache of their own, or who asks now with and now without
            would have the linked images embedded each time.
        where: an expression that the folder will be asked: it is checked before anything is embedded.

    Raises:
        EmbeddingInterrupted: Ctrl-C; what was embedded is kept.
        InputError: no image can be read. UsageError: the engine cannot read the expression.
        TiprError: the model's vectors are unusable.
    """
    notes: list[str] = []
    store = _opened(_place(listing, model, cache, follow_links), listing.root, model, notes)
    if where is not None:
        compiled(store, where)
    # What cannot be looked at now must not be found: told of it, `sync` would keep its rows.
    readable = replace(listing, unreadable=[])
    bring = partial(_brought, listing=readable, model=model, reading=Reading(batch_size=batch_size, progress=progress))
    try:
        changes = bring(store)
    except EngineError as error:
        notes.append(_not_kept(error))
        store = _copied(store)
        changes = bring(store)
    changes = replace(changes, unreadable=[*listing.unreadable, *changes.unreadable])
    if not len(store):
        raise _none_readable(listing, changes)
    return FolderGallery(listing.root, store, changes, notes)


def kept(listing: Listing, model: VectorModel, *, cache: str | Path | None = None, follow_links: bool = False) -> int:
    """How many images of the folder the cache has, more or less: they may have changed since."""
    try:
        return len(GalleryStore.open(_place(listing, model, cache, follow_links)))
    except TiprError:
        return 0


def _brought(store: GalleryStore, listing: Listing, model: VectorModel, reading: Reading) -> Changes:
    """What `sync` changed; the rows of images that are out of reach, which it leaves, are out as well."""
    changes = sync(store, listing, model, reading, drop_many=True)
    away = [key_of(root_key(listing.root), one.path) for one in changes.unreadable if not one.damaged]
    changes.removed += store.remove(away)
    return changes


def _place(listing: Listing, model: VectorModel, cache: str | Path | None, follow_links: bool) -> Path:
    """Where the cache keeps the folder's gallery: one for each model."""
    identity = (FORMAT, model.fingerprint, model.width, root_key(listing.root), follow_links)
    return cache_folder(cache) / "galleries" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.lance"


def _opened(place: Path, root: Path, model: VectorModel, notes: list[str]) -> GalleryStore:
    """The gallery that is kept there, else a new one; in memory where that place cannot be used."""
    try:
        store = _known(place, notes) if exists(place) else None
        if store is None:
            prune(place.parent)
            store = GalleryStore.create(place, ModelIdentity.of(model))
        mark_used(place, root)
        return store
    except TiprError as error:
        notes.append(_not_kept(error))
        return GalleryStore.in_memory(ModelIdentity.of(model))


def _known(place: Path, notes: list[str]) -> GalleryStore | None:
    """The gallery that is kept there; None once it has been removed, since it is damaged.

    Raises:
        ObstacleError: it cannot be read now, but nothing is wrong with it.
    """
    try:
        store = GalleryStore.open(place)
        _check_vectors(store)
        return store
    except ObstacleError:
        raise
    except TiprError as error:
        notes.append(f"The cache of this gallery was damaged and is built again ({error.what}).")
        discard(place)
        return None


def _check_vectors(store: GalleryStore) -> None:
    """Read what is kept once, since damage is to be found before the answer depends on it.

    Of a gallery that is large enough to be searched through its index, that is a sample.
    """
    rows = len(store)
    if rows <= finding.EXACT_ROWS:
        batches = store.scan([VECTOR])
    else:
        with faults(store.uri, ""):
            batches = [store.dataset.take(np.linspace(0, rows - 1, _SAMPLE, dtype=int).tolist(), [VECTOR])]
    for batch in batches:
        if not have_unit_length(vectors_of(batch)):
            raise InputError("it holds vectors that no model gave", where=store.uri)


def _copied(store: GalleryStore) -> GalleryStore:
    """The gallery in memory; what cannot be read of it is computed again."""
    copy = GalleryStore.in_memory(store.identity)
    with suppress(EngineError), faults(store.uri, ""):
        copy.put(store.dataset.to_table())
    return copy


def _not_kept(error: TiprError) -> str:
    return f"Embeddings cannot be kept in {error.where}: {error.what}. The next query computes them again."


def _none_readable(listing: Listing, changes: Changes) -> InputError:
    first = changes.unreadable[0]
    return InputError(
        f"None of the {len(listing.images)} images in the gallery can be read",
        where=listing.root / first.path,
        remedy=f"{first.reason}. Copy the images again from their source, or name another folder.",
    )

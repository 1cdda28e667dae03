"""A folder as a gallery that needs no command: the vectors of its images stay in the cache, and each query brings them
up to date."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tiprctl.errors import InputError, TiprError
from tiprctl.gallery import upkeep
from tiprctl.gallery.adding import Changes, Manner, Progress, sync
from tiprctl.gallery.cache import cache_folder
from tiprctl.gallery.embedding import have_unit_length
from tiprctl.gallery.engine import EngineError, faults
from tiprctl.gallery.exact import vectors_of
from tiprctl.gallery.expression import compiled
from tiprctl.gallery.listing import Listing
from tiprctl.gallery.metadata import key_of, root_key
from tiprctl.gallery.schema import FORMAT, VECTOR, ModelIdentity
from tiprctl.gallery.store import GalleryStore, exists
from tiprctl.vector_model import VectorModel

_MANY_FRAGMENTS = 32


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
    where: str | None = None,
    batch_size: int = 64,
    progress: Progress = lambda total: nullcontext(lambda done: None),
) -> FolderGallery:
    """The listed images with their vectors: from the cache where path, size and time are unchanged, else computed.

    What is computed is committed as it comes. A damaged cache is built again; one that cannot be written costs the next
    query's time, not this one's answer. Several queries may share a cache.

    Args:
        where: an expression that the folder will be asked: it is checked before anything is embedded.

    Raises:
        EmbeddingInterrupted: Ctrl-C; what was embedded is kept.
        InputError: no image can be read. UsageError: the engine cannot read the expression.
        TiprError: the model's vectors are unusable.
    """
    notes: list[str] = []
    store = _opened(_place(listing, model, cache), model, notes)
    if where is not None:
        compiled(store, where)
    # What cannot be looked at now must not be found: told of it, `sync` would keep its rows.
    readable = replace(listing, unreadable=[])
    bring = partial(sync, listing=readable, model=model, manner=Manner(batch_size=batch_size, progress=progress))
    try:
        changes = bring(store, drop_many=True)
    except EngineError as error:
        notes.append(_not_kept(error))
        store = _copied(store)
        changes = bring(store, drop_many=True)
    changes = replace(changes, unreadable=[*listing.unreadable, *changes.unreadable])
    if not len(store):
        raise _none_readable(listing, changes)
    _tidy(store)
    return FolderGallery(listing.root, store, changes, notes)


def kept(listing: Listing, model: VectorModel, *, cache: str | Path | None = None) -> int:
    """How many images of the folder the cache has, more or less: they may have changed since."""
    try:
        return len(GalleryStore.open(_place(listing, model, cache)))
    except TiprError:
        return 0


def _place(listing: Listing, model: VectorModel, cache: str | Path | None) -> Path:
    """Where the cache keeps the folder's gallery: one for each model."""
    identity = (FORMAT, model.fingerprint, model.width, root_key(listing.root))
    return cache_folder(cache) / "galleries" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.lance"


def _opened(place: Path, model: VectorModel, notes: list[str]) -> GalleryStore:
    """The gallery that is kept there, else a new one; in memory where that place cannot be written."""
    if exists(place):
        try:
            store = GalleryStore.open(place)
            _check_vectors(store)
            return store
        except TiprError as error:
            notes.append(f"The cache of this gallery was damaged and is built again ({error.what}).")
            shutil.rmtree(place, ignore_errors=True)
    try:
        return GalleryStore.create(place, ModelIdentity.of(model))
    except TiprError as error:
        notes.append(_not_kept(error))
        return GalleryStore.in_memory(ModelIdentity.of(model))


def _check_vectors(store: GalleryStore) -> None:
    """Read what is kept once, since damage is to be found before the answer depends on it."""
    for batch in store.scan([VECTOR]):
        if not have_unit_length(vectors_of(batch)):
            raise InputError("it holds vectors that no model gave", where=store.uri)


def _tidy(store: GalleryStore) -> None:
    """Join the files of many small commits; mere housekeeping, which the next query does where it fails."""
    with suppress(EngineError), faults(store.uri, ""):
        if len(store.dataset.get_fragments()) > _MANY_FRAGMENTS:
            for change in (upkeep.compact, upkeep.forget_old_versions):
                upkeep.settled(store, partial(change, store))


def _copied(store: GalleryStore) -> GalleryStore:
    """The gallery in memory; it was readable when it was opened."""
    copy = GalleryStore.in_memory(store.identity)
    with faults(store.uri, "Remove it: it is built again."):
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

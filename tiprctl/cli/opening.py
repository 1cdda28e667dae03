"""Opening what is searched: an indexed gallery or a folder, with the model that its vectors are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiprctl.cli import render
from tiprctl.cli.index_session import keep_indexed, warn_of
from tiprctl.cli.own_model import own_model

if TYPE_CHECKING:
    from tiprctl.gallery.filling.listing import Listing, Unreadable
    from tiprctl.gallery.folder import FolderGallery
    from tiprctl.gallery.keeping.store import GalleryStore
    from tiprctl.vector_model import VectorModel

Load = Callable[[str | None, bool], "VectorModel"]
"""From a model's name to the model; true where it is to embed many images."""

MANY = 1000
"""New images of a folder for which torch is started where it embeds on CUDA and an export does not: while it starts,
an export on the processor embeds hundreds. A round number, for want of a measurement that holds for other machines."""


@dataclass(frozen=True)
class Opened:
    """What is searched: `store`, by `model`; `folder` where it is one."""

    name: str
    store: GalleryStore
    model: VectorModel
    folder: FolderGallery | None = None

    @property
    def skipped(self) -> list[Unreadable]:
        return self.folder.changes.unreadable if self.folder else []

    def shown(self, path: str) -> str:
        """A path of the gallery as the user reaches it."""
        return self.folder.shown(path) if self.folder else path

    def stored(self, shown: str) -> str:
        """A path that was shown, or a pattern of such, as the gallery has it."""
        return self.folder.stored(shown) if self.folder else shown


def open_gallery(
    name: str,
    source: str | None,
    load: Load,
    *,
    where: str | None,
    follow_links: bool,
    check: Callable[[int], None],
) -> Opened:
    """An indexed gallery or a folder by its name, with the model named, or else the gallery's own or the newest run's.

    The expression `where` is checked before a folder is embedded, and `check` is called with the number of images
    before a model is loaded.

    Raises:
        InputError: there is none, it is damaged, or no image in it can be read. UsageError: the model does not fit it.
    """
    from tiprctl.gallery.keeping.datasets import exists
    from tiprctl.gallery.keeping.engine import lance
    from tiprctl.gallery.keeping.places import is_remote
    from tiprctl.gallery.keeping.store import GalleryStore
    from tiprctl.gallery.searching.finding import warm_up

    if is_remote(name) or name.rstrip("/\\").endswith(".lance") or exists(name):
        store = GalleryStore.open(name)
        check(len(store))
        if where is None:
            # A filter may leave so few rows that they are searched without the index.
            warm_up(store)
        return _open_index(store, source, load)
    # First, since pyarrow imports pandas with its first array unless it was loaded in this way.
    lance()
    from tiprctl.gallery.filling.walking import list_images

    listing = list_images(name, follow_links=follow_links)
    check(len(listing.images))
    return _open_folder(listing, source, load, where, follow_links)


def _open_index(store: GalleryStore, source: str | None, load: Load) -> Opened:
    """An indexed gallery, with the model named, its own, or the newest run's.

    Raises:
        UsageError, InputError: the model's vectors are not those of the gallery, or it cannot be loaded.
    """
    model = load(source, False) if source is not None else own_model(store.identity, lambda name: load(name, False))
    store.check_model(model)
    render.note(f"Model: {model.description}")
    render.note(f"Gallery: {len(store):,} images")
    return Opened(store.uri, store, model)


def _open_folder(listing: Listing, source: str | None, load: Load, where: str | None, follow_links: bool) -> Opened:
    """A folder, its new and changed images embedded.

    Raises:
        EmbeddingInterrupted: Ctrl-C; what was embedded is kept. InputError: no image can be read.
    """
    from tiprctl.gallery import folder
    from tiprctl.gallery.filling.adding import EmbeddingInterrupted

    model = _fitting_model(listing, source, load, follow_links)
    render.note(f"Model: {model.description}")
    try:
        opened = folder.open_folder(
            listing,
            model,
            follow_links=follow_links,
            where=where,
            progress=lambda total: render.progress("Embedding", total=total, unit="images"),
        )
    except EmbeddingInterrupted as interrupt:
        render.warning(f"{interrupt}; the same command goes on from there.")
        raise
    for note in opened.notes:
        render.warning(note)
    warn_of(opened.changes)
    render.note(f"Gallery: {len(opened.store):,} images, {opened.changes.embedded:,} of them embedded now")
    if opened.changes.embedded and not opened.in_memory:
        _keep_indexed(opened.store, model)
    return Opened(str(listing.root), opened.store, model, opened)


def _fitting_model(listing: Listing, source: str | None, load: Load, follow_links: bool) -> VectorModel:
    """The model that answers soonest, as many new images as the folder has."""
    from tiprctl.exported import ExportedModel
    from tiprctl.gallery import folder

    model = load(source, False)
    new = len(listing.images) - folder.kept(listing, model, follow_links=follow_links)
    # Any other is the encoder itself, by torch, which is as quick with many.
    return load(source, True) if new > MANY and isinstance(model, ExportedModel) else model


def _keep_indexed(store: GalleryStore, model: VectorModel) -> None:
    """Index a large folder's gallery; where that fails, the answer only takes longer."""
    from tiprctl.gallery.keeping.engine import EngineError

    try:
        keep_indexed(store, model)
    except EngineError as error:
        render.warning(f"The index of the folder's gallery could not be built. {error.what}")

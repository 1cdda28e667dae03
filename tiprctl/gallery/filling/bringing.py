"""Bringing in the images of a folder or a list, described as it was once said of them.

A folder is told apart from its cameras once: later commands describe its images as the first one said.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

from tiprctl.gallery.filling.adding import Changes, Progress, Reading, add, check_patterns, describe_again, sync
from tiprctl.gallery.filling.listing import Listing
from tiprctl.gallery.filling.origins import Origin, Remembered, forget, recall, recall_for, remember
from tiprctl.gallery.keeping.places import parents
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.vector_model import VectorModel


def bring(
    store: GalleryStore,
    origin: Origin,
    listing: Listing,
    model: VectorModel,
    reading: Reading,
    *,
    drop: bool = False,
    drop_many: bool = False,
) -> Changes:
    """`sync` where what is gone is to `drop`, else `add`; and remember the origin and whether it came to its end.

    Where the origin describes its images otherwise than before, those that have a row are described anew.

    Raises:
        UsageError: a pattern that is new matches no image at all. As `add` and `sync` otherwise.
    """
    begun = begin(store, origin, "sync" if drop else "add")
    unmatched = check_patterns(reading.describer, listing.known_as, new=listing.whole) if begun.outdated else None
    watched = replace(reading, progress=_remembering(store, begun, reading.progress))
    if drop:
        changes = sync(store, listing, model, watched, drop_many=drop_many)
    else:
        changes = add(store, listing, model, watched)
    end(store, begun, origin, listing, reading, changes)
    if unmatched is not None:
        changes.unmatched = unmatched
    return changes


def begin(store: GalleryStore, origin: Origin, command: str) -> Remembered:
    """What is to be remembered of an origin until the command there has come to its end.

    Rows of a folder that is told of for the first time were described otherwise, if what is told are patterns.
    Its table counts as the one that was read before, so that a command which ends early has not told a new one.
    """
    store.refresh()
    before = recall_for(origin.name, store.settings())
    if before is None:
        # What is there was described by none, or by one of a folder below.
        outdated = bool(origin.camera_from or origin.time_from) and store.has_below(origin.name)
        return Remembered(replace(origin, metadata_hash=None), command, outdated)
    outdated = before.outdated or not before.origin.tells_as(origin)
    return Remembered(replace(origin, metadata_hash=before.origin.metadata_hash), command, outdated)


def end(
    store: GalleryStore, begun: Remembered, origin: Origin, listing: Listing | None, reading: Reading, changes: Changes
) -> bool:
    """Describe the rows anew that were left as they were, where the origin tells otherwise than before; remember that
    it came to its end.

    Of a table that is new, only its columns are told. A list may have one for rows that another origin describes. What
    another process has said of it meanwhile is not overwritten: rows are then described anew by the next command.

    Args:
        listing: the images; None where they cannot be looked at, so that it is left to another time.

    Returns:
        Whether all rows are described as the origin tells.
    """
    columns = None if begun.outdated else reading.describer.types
    if changes.unchanged and (begun.outdated or (columns and begun.origin.metadata_hash != origin.metadata_hash)):
        if listing is None:
            remember(store, replace(begun, unfinished=None))
            return False
        remember(store, begun)
        forgotten = superseded(store, origin)
        changes.described = describe_again(store, listing, reading, columns)
        forget(store, forgotten)
    store.refresh()
    said = recall(store.settings()).get(origin.name)
    otherwise = said is not None and not said.origin.tells_as(origin)
    remember(store, replace(said, outdated=True) if otherwise else Remembered(origin))
    return True


def superseded(store: GalleryStore, origin: Origin) -> list[str]:
    """The folders and lists below an origin that are forgotten when its rows are described anew, theirs among them."""
    if not begin(store, origin, "").outdated:
        return []
    return [name for name in recall(store.settings()) if origin.name in parents(name)]


def _remembering(store: GalleryStore, begun: Remembered, progress: Progress) -> Progress:
    """A progress that first remembers that work begins, where there is any."""

    @contextmanager
    def wrapped(total: int):
        if total:
            remember(store, begun)
        with progress(total) as advance:
            yield advance

    return wrapped

"""Watching a folder: what arrives is taken once it has settled, so that no half-written file is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Set

import numpy as np

from tiprctl.errors import InputError
from tiprctl.gallery.filling.adding import Changes
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.listing import ImageFile, Listing


def watch(
    look: Callable[[], Listing],
    bring: Callable[[Listing], Changes],
    *,
    every: float,
    once: bool = False,
    tell: Callable[[str], object] = lambda text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Changes]:
    """List a folder again and again, and bring in what is as it was at the last look; yields what that changed.

    The gallery is asked only when the folder has changed. A damaged file is tried again once it has another
    size or time. Listing is used rather than the system's notices, which network folders do not give.

    Args:
        look: lists the folder.
        bring: takes images that have settled.
        every: seconds between two looks.
        once: end after the second look.
        tell: is told when the folder is away, and the watch goes on.

    Raises:
        As `look` at first, and as `bring`.
    """
    looked, done, failed = look(), None, set()
    away = False
    while True:
        sleep(every)
        before = looked
        try:
            looked, away = look(), False
        except InputError as error:
            if not away:
                tell(f"{error.what}: {error.where}; the watch goes on.")
            away = True
        calm = _calm(looked, before, failed)
        if not away and len(calm.images) and not (done and calm.images.table.equals(done.images.table)):
            changes, done = bring(calm), calm
            failed |= _failed(calm, changes)
            yield changes
        if once:
            return


def _calm(listing: Listing, before: Listing, failed: Set[str]) -> Listing:
    """The images that have the size and the time that they had `before`, but for those that `failed`."""
    if listing.images.table.equals(before.images.table):
        calm = np.ones(len(listing.images), bool)
    else:
        calm = DigestSet(map(_state, before.images)).contains(map(_state, listing.images))
    if failed:
        calm &= np.array([_state(image) not in failed for image in listing.images])
    return Listing(listing.root, listing.images.take(np.flatnonzero(calm)), [], whole=False)


def _failed(listing: Listing, changes: Changes) -> set[str]:
    """What is damaged, by the states of the files; what was out of reach is tried again with the next change."""
    unreadable = {one.path for one in changes.unreadable if one.damaged}
    return {_state(image) for image in listing.images if image.path in unreadable}


def _state(image: ImageFile) -> str:
    return "\0".join(map(str, image))

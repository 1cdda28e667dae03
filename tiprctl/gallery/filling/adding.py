"""Bringing a gallery up to date with images: what is new is embedded, what is known is left alone, what is gone goes.

All of it can be stopped at any time and given again: what was committed stays, and is not read another time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.errors import UsageError
from tiprctl.gallery.filling.comparing import Comparison, Inventory
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.embedding import embed_images
from tiprctl.gallery.filling.gone import refuse_great_loss, still_gone
from tiprctl.gallery.filling.listing import ROWS_AT_ONCE, ImageFile, Listing, Unreadable
from tiprctl.gallery.filling.metadata import Describer, Unmatched
from tiprctl.gallery.filling.work import Work
from tiprctl.gallery.filling.writing import RowWriter
from tiprctl.gallery.keeping.places import key_of
from tiprctl.gallery.keeping.schema import KEY, STAMP
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.vector_model import VectorModel

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]
"""Takes the number of images to read, gives a context with a function to call with each number done."""


class EmbeddingInterrupted(KeyboardInterrupt):
    """Ctrl-C while images were embedded: `kept` of the `total` new ones are in the gallery."""

    def __init__(self, kept: int, total: int):
        super().__init__(f"{kept:,} of {total:,} new images are embedded and kept")
        self.kept = kept
        self.total = total


@dataclass
class Changes:
    """What became of a gallery's rows.

    Attributes:
        images: how many images were listed.
        unchanged: those that had their row, and were not read.
        added: rows that are new.
        updated: rows that replaced one of the same path.
        reused: how many of both took a vector that the gallery had, since only the file's name or time is new.
        elsewhere: images that another process added meanwhile.
        removed: rows taken out.
        described: rows whose columns were told anew.
        unreadable: what was skipped, from the listing on. What is damaged has no row; what is gone or out of reach
            keeps the one it had.
        unmatched: patterns that tell nothing of some images.
    """

    images: int
    unchanged: int = 0
    added: int = 0
    updated: int = 0
    reused: int = 0
    elsewhere: int = 0
    removed: int = 0
    described: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)

    @property
    def embedded(self) -> int:
        """How many images the model saw."""
        return self.added + self.updated - self.reused


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        describer: tells the columns beside the vector.
        batch_size: images that the model takes at once.
        workers: threads that decode; None takes one a core.
        progress: told of each image that is done.
    """

    describer: Describer = field(default_factory=Describer)
    batch_size: int = 64
    workers: int | None = None
    progress: Progress = lambda total: nullcontext(lambda done: None)


def add(store: GalleryStore, listing: Listing, model: VectorModel, reading: Reading = Reading()) -> Changes:
    """Embed the images that are new or changed since they were embedded; no row is taken out but theirs.

    Several processes may add at once: each skips what another has committed.

    Raises:
        EmbeddingInterrupted: Ctrl-C; what was embedded is kept.
        EngineError: the gallery cannot be written; what was committed is kept.
        UsageError: the gallery is of another model, a column does not fit, or a pattern matches no image at all.
        TiprError: the model's vectors are unusable.
    """
    inventory = _prepared(store, listing, model, reading)
    return _Run(store, inventory, inventory.compare(store), model, reading).run()


def sync(
    store: GalleryStore, listing: Listing, model: VectorModel, reading: Reading = Reading(), *, drop_many: bool = False
) -> Changes:
    """As `add`, and take out the rows of files that are no more in the listed folder.

    A file that moved takes its vector along, and one whose time changed keeps it, by the hash of its content. What
    could not be looked at, below an unreadable folder, is not taken to be gone; nor is what came, or was added anew by
    another process, since the folder was listed.

    Args:
        drop_many: without it, a folder that lost more than half of its images is refused: it may not be mounted.

    Raises:
        UsageError: the folder lost that many, or as `add`. As `add` otherwise.
    """
    inventory = _prepared(store, listing, model, reading)
    comparison = inventory.compare(store)
    if not drop_many:
        refuse_great_loss(listing, comparison)
    changes = _Run(store, inventory, comparison, model, reading).run()
    changes.removed += store.remove_unchanged(still_gone(comparison))
    return changes


def describe_again(
    store: GalleryStore, listing: Listing, reading: Reading, columns: Collection[str] | None = None
) -> int:
    """Tell the columns of the listed images anew that have a row which is up to date; how many there are.

    Their vectors stay. Raises as `add`.

    Args:
        columns: which ones; None means all that the describer can tell anew.
    """
    store.add_columns(reading.describer.types)
    inventory = Inventory(listing)
    places = np.setdiff1d(np.arange(len(listing.images)), inventory.compare(store).wanted)
    images = listing.images.take(places)
    with reading.progress(len(images)) as advance:
        for start in range(0, len(images), ROWS_AT_ONCE):
            some = images[start : start + ROWS_AT_ONCE]
            facts = reading.describer.facts(list(some), listing.root, inventory.root)
            store.revise(facts if columns is None else facts.select([KEY, *columns]))
            advance(len(some))
    return len(images)


def check_patterns(describer: Describer, keys: Iterable[str], *, new: bool) -> list[Unmatched]:
    """The patterns that tell nothing of some of these paths.

    Raises:
        UsageError: one matches no image at all of a new folder, which is a mistake.
    """
    unmatched = describer.unmatched(keys)
    for one in unmatched:
        if one.count == one.of and new:
            raise UsageError(
                str(one), where=f"--{one.pattern.fact}-from", remedy="It is compared with the end of each path."
            )
    return unmatched


def _prepared(store: GalleryStore, listing: Listing, model: VectorModel, reading: Reading) -> Inventory:
    store.check_model(model)
    store.add_columns(reading.describer.types)
    store.refresh()
    return Inventory(listing)


class _Run:
    """One run of bringing a gallery up to date."""

    def __init__(
        self, store: GalleryStore, inventory: Inventory, comparison: Comparison, model: VectorModel, reading: Reading
    ):
        listing, wanted = inventory.listing, comparison.wanted
        self.store = store
        self.inventory = inventory
        self.comparison = comparison
        self.model = model
        self.reading = reading
        self.total = len(wanted)
        self.work = Work(listing.images, wanted)
        self.writer = RowWriter(store, inventory.root, reading.describer)
        self.failed: list[Unreadable] = []
        self.changes = Changes(len(listing.images), unchanged=len(listing.images) - self.total)
        self.next_look = 0.0

    def run(self) -> Changes:
        wanted = self.inventory.keys(self.comparison.wanted)
        # The first images that a watch takes, or those of a list, may well be odd ones.
        new = self.inventory.listing.whole and not self.comparison.rows
        self.changes.unmatched = check_patterns(self.reading.describer, wanted, new=new)
        try:
            with self.reading.progress(self.total) as advance:
                self._embed(self.work, advance, self.comparison.reusable)
                self.writer.commit()
                self._embed(iter(self.writer.left_over), advance)
        except KeyboardInterrupt as interrupt:
            self.writer.commit()
            raise EmbeddingInterrupted(self.writer.written.rows, self.total) from interrupt
        finally:
            self.writer.commit()
        return self._finished()

    def _embed(
        self, images: Iterable[ImageFile], advance: Callable[[int], Any], reusable: DigestSet | None = None
    ) -> None:
        """Embed the images, or take what can be reused, into the writer."""
        batches = embed_images(
            self.inventory.listing.root,
            images,
            self.model,
            batch_size=self.reading.batch_size,
            workers=self.reading.workers,
            known=reusable,
            read_time=self.reading.describer.read_time,
        )
        with closing(batches):
            for batch in batches:
                self.failed += batch.unreadable
                committed = self.writer.add(batch)
                advance(len(batch))
                if committed and self.writer.crossed:
                    advance(self._leave_to_others())

    def _leave_to_others(self) -> int:
        """Skip what other processes committed meanwhile, and go on elsewhere than where they are; how many it was.

        Looking takes no more than a tenth of the time.
        """
        begun = time.monotonic()
        if begun < self.next_look:
            return 0
        skipped = self.work.keep(self.inventory.compare(self.store).wanted)
        self.work.go_elsewhere()
        self.changes.elsewhere += skipped
        self.next_look = time.monotonic() + 9 * (time.monotonic() - begun)
        return skipped

    def _finished(self) -> Changes:
        """The changes, once the rows of files that are damaged now are out, unless others have renewed them."""
        changes, written = self.changes, self.writer.written
        changes.added, changes.updated, changes.reused = written.inserted, written.updated, self.writer.reused
        changes.unreadable = [*self.inventory.listing.unreadable, *self.failed]
        damaged = [key_of(self.inventory.root, one.path) for one in self.failed if one.damaged]
        stale = self.comparison.stale
        of_them = pc.is_in(stale[KEY], pa.array(damaged, pa.string()))
        changes.removed = self.store.remove_unchanged(stale.filter(of_them).select(STAMP))
        return changes

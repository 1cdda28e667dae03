"""Where a gallery's images come from: what it remembers of each folder, and what is under way there.

So a folder is told apart from its cameras once: later commands describe its images as the first one said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.filling.adding import Changes, Progress, Reading, add, describe_again, sync
from tiprctl.gallery.filling.embedding import content_hash
from tiprctl.gallery.filling.inputs import TABLES
from tiprctl.gallery.filling.listing import Listing
from tiprctl.gallery.filling.metadata import EXIF, Describer, MetadataTable
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.keeping.places import parents
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.keeping.upkeep import settled
from tiprctl.vector_model import VectorModel

_SETTING = "origin:"
"""What the names of settings begin with that tell of a folder or list."""


@dataclass(frozen=True)
class Origin:
    """How the images of a folder or a list are found and described.

    Attributes:
        name: its absolute path.
        camera_from, time_from: patterns, or `exif`; None tells nothing.
        metadata: the CSV file with further columns, absolute.
        metadata_root: the folder that its relative paths are below; so the folders of that one can be named alone.
        metadata_hash: of the content of that file as it was last read, or of a list that has such columns itself.
        follow_links: whether links out of the folder are followed.
    """

    name: str
    camera_from: str | None = None
    time_from: str | None = None
    metadata: str | None = None
    metadata_root: str | None = None
    metadata_hash: str | None = None
    follow_links: bool = False

    def describer(
        self, table: MetadataTable | None = None, types: Mapping[str, pa.DataType] | None = None
    ) -> Describer:
        """What tells the columns of its images.

        Args:
            table: that of a list; a file of metadata goes before it.
            types: of the user's columns that the gallery has.

        Raises:
            UsageError: a pattern is none, or a column has the name of one of ours.
            InputError: the file is damaged, or has values that the gallery's types cannot tell.
        """
        camera = PathPattern.parse(self.camera_from, "camera") if self.camera_from else None
        time = self.time_from
        if time and time != EXIF:
            time = PathPattern.parse(time, "time")
        if self.metadata:
            table = MetadataTable.read(Path(self.metadata), self.metadata_root or self.name)
        if table:
            table.fit(types or {}, Path(self.metadata or self.name))
        return Describer(camera, time, table)

    def with_own_table(self, *, named: bool) -> Origin:
        """The same for a list that has columns itself: it takes none from the table of a folder above.

        Args:
            named: whether a table was named for the list.

        Raises:
            UsageError: one was.
        """
        if self.metadata is None:
            return self
        if named:
            raise UsageError(
                "The list has columns itself", where=self.name, remedy="Leave out --metadata, or the list's columns."
            )
        return replace(self, metadata=None, metadata_root=None).as_read()

    def as_read(self) -> Origin:
        """The same, with the hash of the table as it is now; raises InputError where it cannot be read."""
        if self.metadata is None:
            return replace(self, metadata_hash=_hash_of_list(Path(self.name)))
        try:
            return replace(self, metadata_hash=content_hash(Path(self.metadata).read_bytes()))
        except OSError as error:
            raise InputError(
                f"The table of metadata cannot be read: {error.strerror}",
                where=self.metadata,
                remedy="Name it with --metadata, or give --metadata none to go on without.",
            ) from error

    def tells_as(self, other: Origin) -> bool:
        """Whether both describe images alike, but for what their tables hold."""
        return replace(self, metadata_hash=other.metadata_hash) == other


@dataclass(frozen=True)
class Remembered:
    """What a gallery remembers of an origin.

    Attributes:
        origin: as the last command described it.
        unfinished: the command that has begun there and has not come to its end, such as `add`.
        outdated: rows were described otherwise before, and are not all described anew.
    """

    origin: Origin
    unfinished: str | None = None
    outdated: bool = False


def _hash_of_list(place: Path) -> str | None:
    """Of a list that may have columns; it is read elsewhere, and what is wrong with it told there."""
    with suppress(OSError):
        return content_hash(place.read_bytes()) if place.suffix.lower() in TABLES else None
    return None


def recall(settings: Mapping[str, str]) -> dict[str, Remembered]:
    """All that a gallery's settings remember, by the origins' names; what cannot be read is left out."""
    found = {}
    for name, value in settings.items():
        if name.startswith(_SETTING):
            with suppress(ValueError, KeyError, TypeError):
                parts = json.loads(value)
                origin = Origin(**parts.pop("origin"))
                found[origin.name] = Remembered(origin, **parts)
    return found


def recall_for(name: str, settings: Mapping[str, str]) -> Remembered | None:
    """What is remembered of a folder or list, or of the nearest folder above it."""
    known = recall(settings)
    for folder in (name, *parents(name)):
        if folder in known:
            return replace(known[folder], origin=replace(known[folder].origin, name=name))
    return None


def superseded(store: GalleryStore, origin: Origin) -> list[str]:
    """The folders and lists below an origin that are forgotten when its rows are described anew, theirs among them."""
    if not begin(store, origin, "").outdated:
        return []
    return [name for name in recall(store.settings()) if origin.name in parents(name)]


def remember(store: GalleryStore, what: Remembered) -> None:
    """Keep it in the gallery, unless it is kept already."""
    name, value = _SETTING + what.origin.name, json.dumps(asdict(what), sort_keys=True)
    if store.settings().get(name) != value:
        # Another process may be remembering the same at this moment.
        settled(store, lambda: store.set_settings({name: value}))


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
        As `add` and `sync`.
    """
    begun = begin(store, origin, "sync" if drop else "add")
    watched = replace(reading, progress=_remembering(store, begun, reading.progress))
    if drop:
        changes = sync(store, listing, model, watched, drop_many=drop_many)
    else:
        changes = add(store, listing, model, watched)
    end(store, begun, origin, listing, reading, changes)
    return changes


def begin(store: GalleryStore, origin: Origin, command: str) -> Remembered:
    """What is to be remembered of an origin until the command there has come to its end.

    Rows of a folder that is told of for the first time were described otherwise, if what is told are patterns.
    Its table counts as the one that was read before, so that a command which ends early has not told a new one.
    """
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

    Of a table that is new, only its columns are told. A list may have one for rows that another origin describes.

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
        settled(store, lambda: store.drop_settings([_SETTING + name for name in forgotten]))
    remember(store, Remembered(origin))
    return True


def _remembering(store: GalleryStore, begun: Remembered, progress: Progress) -> Progress:
    """A progress that first remembers that work begins, where there is any."""

    @contextmanager
    def wrapped(total: int):
        if total:
            remember(store, begun)
        with progress(total) as advance:
            yield advance

    return wrapped

"""Where a gallery's images come from: what it remembers of each folder, and what is under way there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.filling.embedding import content_hash
from tiprctl.gallery.filling.inputs import TABLES
from tiprctl.gallery.filling.metadata import EXIF, Describer, MetadataTable
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.keeping.places import parents
from tiprctl.gallery.keeping.store import GalleryStore

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
        camera = PathPattern.parse(self.camera_from, "camera") if self.camera_from is not None else None
        time = self.time_from
        if time is not None and time != EXIF:
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


def remember(store: GalleryStore, what: Remembered) -> None:
    """Keep it in the gallery, unless it is kept already."""
    name, value = _SETTING + what.origin.name, json.dumps(asdict(what), sort_keys=True)
    if store.settings().get(name) != value:
        store.set_settings({name: value})


def forget(store: GalleryStore, names: Sequence[str]) -> None:
    """Forget the origins of these names."""
    store.drop_settings([_SETTING + name for name in names])

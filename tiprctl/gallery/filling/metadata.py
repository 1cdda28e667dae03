"""What is known of a crop beside its picture: camera and time by its path or EXIF, further columns from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from tiprctl.errors import ImageError, InputError
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.embedding import ReadImage
from tiprctl.gallery.filling.listing import ImageFile
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.keeping.places import key_of
from tiprctl.gallery.keeping.schema import KEY, OWN_COLUMNS, check_columns
from tiprctl.images import exif_time, read_content

EXIF = "exif"
"""The word for times from the pictures themselves."""


class MetadataTable:
    """The columns of the user, a row a path.

    Args:
        paths: absolute, or below `root`.
        columns: all the others.
    """

    def __init__(self, paths: Sequence[str], columns: pa.Table, root: str):
        self._rows = columns.cast(pa.schema([pa.field(one.name, plain_type(one.type)) for one in columns.schema]))
        self._paths = [key_of(root, path) for path in paths]
        self._places = DigestSet(self._paths)

    @classmethod
    def read(cls, file: Path, root: str) -> MetadataTable:
        """The table in a CSV file: a column `path`, else the first one, tells whose the others are.

        Raises:
            InputError: it cannot be read, or has a path twice. UsageError: a column cannot have that name.
        """
        table = read_csv(file)
        name = path_column(table, file)
        paths = table[name].cast(pa.string()).to_pylist()
        metadata = cls([path or "" for path in paths], table.drop_columns([name]), root)
        metadata.refuse_doubles(file)
        return metadata

    @property
    def types(self) -> dict[str, pa.DataType]:
        return {field.name: field.type for field in self._rows.schema}

    def rows(self, keys: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """The columns of these paths, null where the table has none."""
        places = self._places.find(keys)
        chosen = self._rows.take(pa.array(places, mask=places < 0))
        return dict(zip(chosen.column_names, chosen.columns))

    def fit(self, types: Mapping[str, pa.DataType], file: Path) -> None:
        """Take the types that a gallery has of columns of these names: numbers as other numbers, anything as text.

        Raises:
            InputError: a value cannot be told so.
        """
        for place, field in enumerate(self._rows.schema):
            kind = types.get(field.name, field.type)
            if kind != field.type:
                fitting = _fitting(self._rows[field.name], kind, field.name, file)
                self._rows = self._rows.set_column(place, pa.field(field.name, kind), fitting)

    def beside(self, listed: DigestSet) -> list[str]:
        """The paths of the table that are not listed."""
        return [path for path, known in zip(self._paths, listed.contains(self._paths)) if not known]

    def refuse_doubles(self, file: Path) -> None:
        """Raise an InputError where a path has two rows."""
        if len(set(self._paths)) == len(self._paths):
            return
        seen: set[str] = set()
        double = next(path for path in self._paths if path in seen or seen.add(path))
        raise InputError(f"A path has two rows: {double}", where=file, remedy="Leave one row for each path.")


@dataclass(frozen=True)
class Unmatched:
    """A pattern that tells nothing of some paths: the first of them, and how many there are of how many."""

    pattern: PathPattern
    path: str
    count: int
    of: int

    def __str__(self) -> str:
        others = f" nor {self.count - 1:,} others of {self.of:,}" if self.count > 1 else f", one of {self.of:,}"
        return f"The pattern {self.pattern.text!r} does not match {self.path}{others}"


@dataclass(frozen=True)
class Describer:
    """Tells the columns of crops, but for the vector.

    Attributes:
        camera: the pattern that tells cameras; without it they are null.
        time: the pattern that tells times, or `EXIF`. Without it, and where it tells none, a crop's time is its file's.
        table: the user's columns.
    """

    camera: PathPattern | None = None
    time: PathPattern | str | None = None
    table: MetadataTable | None = None

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The user's columns."""
        return self.table.types if self.table else {}

    @property
    def read_time(self) -> Callable[[bytes], datetime | None] | None:
        """What tells a time from a file's content."""
        return exif_time if self.time == EXIF else None

    def columns(self, images: Sequence[ReadImage], root: str) -> dict[str, pa.Array | pa.ChunkedArray]:
        """The columns of crops below `root`."""
        keys = [key_of(root, image.file.path) for image in images]
        values = {
            KEY: keys,
            "hash": [image.hash for image in images],
            "size": [image.file.size for image in images],
            "mtime_ns": [image.file.mtime_ns for image in images],
            "time": [self._time(key, image) for key, image in zip(keys, images)],
            "camera": [self.camera.read(key) if self.camera else None for key in keys],
        }
        own = {name: pa.array(values[name], kind) for name, kind in OWN_COLUMNS.items()}
        return {**own, **(self.table.rows(keys) if self.table else {})}

    def facts(self, images: Sequence[ImageFile], folder: Path, root: str) -> pa.Table:
        """The columns of images in a folder that may be told anew though their content is the same.

        Where times are read from the images, one that cannot be read is left out: its row stays as it is.
        """
        read = [ReadImage(image, "") for image in images]
        if self.read_time:
            read = [one for image in images if (one := self._timed(image, folder)) is not None]
        columns = self.columns(read, root)
        return pa.table({name: column for name, column in columns.items() if name not in ("hash", "size", "mtime_ns")})

    def unmatched(self, keys: Iterable[str]) -> list[Unmatched]:
        """The patterns that tell nothing of some of these paths."""
        patterns = [one for one in (self.camera, self.time) if isinstance(one, PathPattern)]
        missed, first, total = [0] * len(patterns), [""] * len(patterns), 0
        for key in keys if patterns else ():
            total += 1
            for place, pattern in enumerate(patterns):
                if pattern.read(key) is None:
                    first[place] = first[place] or key
                    missed[place] += 1
        told = zip(patterns, first, missed)
        return [Unmatched(pattern, path, count, total) for pattern, path, count in told if count]

    def _timed(self, image: ImageFile, folder: Path) -> ReadImage | None:
        try:
            return ReadImage(image, "", self.read_time(read_content(folder / image.path)))
        except ImageError:
            return None

    def _time(self, key: str, image: ReadImage) -> datetime | None:
        told = self.time.read(key) if isinstance(self.time, PathPattern) else image.taken
        return told or _local_time(image.file.mtime_ns)


def _local_time(mtime_ns: int) -> datetime | None:
    """A file's time on the wall clock here; None where the clock that gave it was so wrong that no such day exists."""
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9)
    except (OverflowError, ValueError, OSError):
        return None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, however they are packed; text for a column without a single value."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    texts = (pa.types.is_null, pa.types.is_large_string, pa.types.is_string_view)
    return pa.string() if any(is_text(kind) for is_text in texts) else kind


def _fitting(values: pa.ChunkedArray, kind: pa.DataType, name: str, file: Path) -> pa.ChunkedArray:
    # Arrow would make days of whole numbers, and numbers of days.
    alike = any(both(values.type) and both(kind) for both in (_is_number, pa.types.is_temporal))
    try:
        if alike or pa.types.is_string(kind) or values.null_count == len(values):
            return values.cast(kind)
        reason = f"its values are of type {values.type}"
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
    raise InputError(
        f"The column {name!r} is of type {kind} in the gallery: {reason}",
        where=file,
        remedy="Rename the column, or write its values in the gallery's type.",
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def read_csv(file: Path) -> pa.Table:
    """A CSV file with a heading, its columns typed by what they hold; raises InputError."""
    from pyarrow import csv

    try:
        return csv.read_csv(file)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise InputError(
            f"The table cannot be read: {reason}", where=file, remedy="Write it as CSV in UTF-8, with a heading."
        ) from error


def path_column(table: pa.Table, file: Path) -> str:
    """The name of the column `path`, however it is capitalised; else of the first.

    Raises:
        UsageError: another column of the file has a name that a gallery cannot have.
    """
    names = table.column_names
    chosen = next((place for place, name in enumerate(names) if name.lower() == KEY), 0)
    check_columns(names[:chosen] + names[chosen + 1 :], file)
    return names[chosen]

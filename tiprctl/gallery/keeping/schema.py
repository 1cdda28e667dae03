"""What a gallery holds: a row a crop, and the model whose vectors they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.keeping.places import absolute
from tiprctl.vector_model import VectorModel

FORMAT = 1
METADATA = b"tiprctl"
"""The key of the schema's metadata under which a gallery says what it is, as JSON."""
KEY, VECTOR = "path", "vector"
OWN_COLUMNS = {
    KEY: pa.string(),
    "hash": pa.string(),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    "time": pa.timestamp("us"),
    "camera": pa.string(),
}
"""The columns of every gallery, beside the vector:

- `path`: where the crop is, absolute with forward slashes, or a URI; no two rows have the same.
- `hash`: of the file's content, BLAKE2b of 128 bits, hexadecimal.
- `size`: of the file, bytes. `mtime_ns`: its time of change, nanoseconds since 1970.
- `time`: when the crop was taken, the wall clock where it was; the file's time of change where nothing tells.
- `camera`: which one took it, null where nothing tells.

The user's columns follow.
"""
STAMP = [KEY, "size", "mtime_ns"]
"""What tells whether a row is of a file as it is."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model whose vectors a gallery holds.

    Attributes:
        fingerprint: tells the same vectors from others; see `VectorModel.fingerprint`.
        width: of the vectors.
        precision: in which the first rows were computed; others are near enough to be compared.
        description: which model it is, for people.
        source: how to name it again: a run's folder or a checkpoint, absolute, or a tag.
    """

    fingerprint: str
    width: int
    precision: str
    description: str
    source: str

    @classmethod
    def of(cls, model: VectorModel) -> ModelIdentity:
        # Absolute, since a gallery is asked from other folders than it was made in.
        return cls(model.fingerprint, model.width, model.precision, model.description, absolute(model.source))


def new_schema(model: ModelIdentity, columns: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """The schema of a gallery of this model's vectors, with the user's columns.

    Raises:
        UsageError: a column of the user cannot have that name.
    """
    columns = columns or {}
    check_columns(list(columns))
    key = {"lance-schema:unenforced-primary-key": "true"}
    fields = [
        pa.field(name, kind, nullable=name != KEY, metadata=key if name == KEY else None)
        for name, kind in {**OWN_COLUMNS, **columns}.items()
    ]
    vector = pa.field(VECTOR, pa.list_(pa.float32(), model.width), nullable=False)
    about = json.dumps({"format": FORMAT, "model": asdict(model)})
    return pa.schema([*fields, vector], metadata={METADATA: about})


def check_columns(names: Sequence[str], file: Path | None = None) -> None:
    """Refuse names of the user's columns that a gallery cannot have; raises UsageError, which names the file if given.

    Expressions know no capitals in names, dots lead to fields within a column, and backticks end a name.
    """
    met: set[str] = set()
    for name in names:
        if name.lower() in (*OWN_COLUMNS, VECTOR) or name.startswith("_"):
            why = "the gallery keeps that name to itself"
            remedy = f"Rename it; taken are {', '.join((*OWN_COLUMNS, VECTOR))} and names that begin with _."
        elif not name.strip():
            why, remedy = "it has no name", "Give each column a heading."
        elif "." in name or "`" in name:
            why, remedy = "expressions could not name it", "Rename it, without dots and backticks."
        elif name.lower() in met:
            why, remedy = "there is another of that name", "Rename one of them; capitals make no difference."
        else:
            met.add(name.lower())
            continue
        raise UsageError(f"The column {name!r} cannot be added: {why}", where=file, remedy=remedy)


def read_identity(schema: pa.Schema, uri: str) -> ModelIdentity:
    """The model of a gallery, by its schema.

    Raises:
        InputError: it is no gallery, or one of a newer format.
    """
    try:
        about = json.loads((schema.metadata or {})[METADATA])
        written = int(about["format"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            "This Lance dataset is not a gallery of tiprctl", where=uri, remedy="Make one: tiprctl index add DIR."
        ) from error
    if written > FORMAT:
        raise InputError(
            f"The gallery was made by a newer tiprctl: its format is {written}, this program's {FORMAT}",
            where=uri,
            remedy="Upgrade tiprctl: pip install --upgrade tiprctl.",
        )
    try:
        return ModelIdentity(**about["model"])
    except (KeyError, TypeError) as error:
        raise InputError(
            "The gallery does not tell the model of its vectors", where=uri, remedy="Index its images again."
        ) from error


def user_columns(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The columns of a gallery that the user added, by name."""
    return {field.name: field.type for field in schema if field.name not in (*OWN_COLUMNS, VECTOR)}


def fill_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows in the order and types of `schema`, with nulls where they lack a column."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)

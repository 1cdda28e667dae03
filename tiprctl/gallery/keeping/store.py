"""A gallery on disk or in an object store: one Lance dataset, each change of it a transaction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.keeping.datasets import create, exists, missing
from tiprctl.gallery.keeping.engine import UNREADABLE, WRITABLE, faults, lance
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.gallery.keeping.schema import (
    KEY,
    VECTOR,
    ModelIdentity,
    check_columns,
    fill_columns,
    new_schema,
    read_identity,
    user_columns,
)
from tiprctl.gallery.keeping.settling import settled
from tiprctl.vector_model import VectorModel

if TYPE_CHECKING:
    from lance import LanceDataset
    from lance.dataset import MergeInsertBuilder

T = TypeVar("T")
SETTING = "tiprctl."
"""What the names of our settings in a dataset's configuration begin with."""
_READ_AHEAD = 1 << 25
"""Bytes that a scan reads ahead at most. With Lance's own bounds it holds a gigabyte and is no faster."""
_PATIENCE, _ATTEMPTS = timedelta(minutes=2), 1000
"""How long, and how often, a change is tried again while others change the same rows."""


@dataclass(frozen=True)
class Written:
    """What a commit did: rows that were new, and rows that replaced another of the same path."""

    inserted: int
    updated: int

    @property
    def rows(self) -> int:
        return self.inserted + self.updated


class GalleryStore:
    """The rows of a gallery, as `schema.OWN_COLUMNS` says.

    A store sees the version that it was opened at, or that its own last change made; `refresh` moves on to the newest.
    Several processes may write at once: Lance's transactions keep every row, and paths stay unique.
    """

    def __init__(self, dataset: LanceDataset, uri: str):
        self.dataset = dataset
        self.uri = uri
        self.identity = read_identity(dataset.schema, uri)

    @classmethod
    def open(cls, uri: str | Path) -> GalleryStore:
        """The gallery at a folder or a URI (`s3://...`).

        Raises:
            InputError: there is none, it is damaged, no gallery, or made by a newer program.
        """
        uri = str(uri)
        if not exists(uri):
            raise missing(uri)
        with faults(uri, UNREADABLE):
            return cls(lance().dataset(uri), uri)

    @classmethod
    def create(
        cls, uri: str | Path, model: ModelIdentity, columns: Mapping[str, pa.DataType] | None = None
    ) -> GalleryStore:
        """An empty gallery; where there already is one, or another process is quicker, that one.

        Raises:
            UsageError: a column cannot have that name, the gallery holds the vectors of another model, or there is
                something else in its place.
            InputError: it cannot be written.
        """
        create(str(uri), new_schema(model, columns))
        store = cls.open(uri)
        store.check_model(model)
        store.add_columns(columns or {})
        return store

    @classmethod
    def in_memory(cls, model: ModelIdentity, columns: Mapping[str, pa.DataType] | None = None) -> GalleryStore:
        """An empty gallery that ends with the process."""
        uri = "memory://gallery"
        with faults(uri, UNREADABLE):
            return cls(lance().write_dataset(new_schema(model, columns).empty_table(), uri), uri)

    def __len__(self) -> int:
        return self.count()

    @property
    def place(self) -> str:
        """The URI, or the absolute path: how processes with other working folders find the gallery."""
        return self.uri if is_remote(self.uri) else os.path.abspath(self.uri)

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    @property
    def user_types(self) -> dict[str, pa.DataType]:
        """The types of the user's columns, by name."""
        return user_columns(self.schema)

    @property
    def columns(self) -> list[str]:
        """The columns that an expression can name: all but the vector."""
        return [name for name in self.schema.names if name != VECTOR]

    def refresh(self) -> None:
        """Move on to the newest version."""
        with faults(self.uri, UNREADABLE):
            self.dataset.checkout_latest()

    def check_model(self, model: VectorModel | ModelIdentity) -> None:
        """Refuse a model whose vectors cannot be compared with those of the gallery.

        Raises:
            UsageError: it is another one.
        """
        if model.fingerprint != self.identity.fingerprint or model.width != self.identity.width:
            raise UsageError(
                f"The gallery was indexed with another model: {self.identity.description}, not {model.description}",
                where=self.uri,
                remedy=f"Name that one (--model {self.identity.source}), or index the images again in a new gallery.",
            )

    def count(self, where: str | None = None) -> int:
        """How many rows there are, or of which the expression holds."""
        with faults(self.uri, UNREADABLE):
            return self.dataset.count_rows(where)

    def has_below(self, folder: str) -> bool:
        """Whether there is a row below a folder or URI."""
        top = f"{folder.rstrip('/')}/"
        return any(pc.any(pc.starts_with(batch[KEY], top)).as_py() for batch in self.scan([KEY]))

    def scan(
        self,
        columns: Sequence[str],
        where: str | None = None,
        *,
        batch_rows: int = 8192,
        scalar_indexes: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """The rows, batch by batch, with their `_rowid`; `scalar_indexes` are what the filter is answered from."""
        with faults(self.uri, UNREADABLE):
            yield from self.dataset.scanner(
                columns=list(columns),
                filter=where,
                batch_size=batch_rows,
                batch_readahead=2,
                fragment_readahead=1,
                io_buffer_size=_READ_AHEAD,
                use_scalar_index=scalar_indexes,
                with_row_id=True,
            ).to_batches()

    def take(self, row_ids: Iterable[int], columns: Sequence[str]) -> pa.Table:
        """The rows of these `_rowid`s, with them, in any order."""
        listed = ", ".join(str(int(row_id)) for row_id in row_ids)
        with faults(self.uri, UNREADABLE):
            scanner = self.dataset.scanner(
                columns=list(columns), filter=f"_rowid IN ({listed})" if listed else "false", with_row_id=True
            )
            return scanner.to_table()

    def put(self, rows: pa.Table) -> Written:
        """Add rows, each in place of the one of the same path, where there is one.

        The camera and the user's columns, where `rows` lack them, stay as they were; new rows have null there.

        Raises:
            InputError: a path is there twice. EngineError: the gallery cannot be written. Nothing of `rows` was.
        """
        if not len(rows):
            return Written(0, 0)
        _refuse_doubles(rows[KEY], self.uri)
        untold = {"camera", *self.user_types}.difference(rows.column_names)
        told = pa.schema([field for field in self.schema if field.name not in untold])
        done = self._merge(
            KEY,
            fill_columns(rows, told),
            lambda merge: merge.when_matched_update_all().when_not_matched_insert_all(),
        )
        return Written(done["num_inserted_rows"], done["num_updated_rows"])

    def revise(self, rows: pa.Table) -> int:
        """Give other values to the columns of rows that there are, by their paths; how many there were."""
        if not len(rows):
            return 0
        fields = [self.schema.field(name) for name in rows.column_names]
        done = self._merge(
            KEY,
            rows.cast(pa.schema(fields)),
            # The other columns, vectors among them, and their indexes stay as they are.
            lambda merge: merge.when_matched_update_all().write_mode("rewrite_columns"),
        )
        return done["num_updated_rows"]

    def _merge(
        self, on: str | Sequence[str], rows: pa.Table, change: Callable[[MergeInsertBuilder], MergeInsertBuilder]
    ) -> Mapping[str, int]:
        """Change the rows that agree with `rows` in the columns `on`, or add those; what Lance counted.

        Lance is to scan for them: by an index of the path it would let two writers at once add the same path, and
        rewrite whole columns for a row.
        """

        def merge() -> Mapping[str, int]:
            begun = self.dataset.merge_insert(on).use_index(False)
            return change(begun.retry_timeout(_PATIENCE).conflict_retries(_ATTEMPTS)).execute(rows)

        return self._changed(merge)

    def _changed(self, change: Callable[[], T]) -> T:
        """What a change returns, made to the newest version."""

        def made() -> T:
            with faults(self.uri, WRITABLE):
                return change()

        return settled(self, made)

    def vectors(self, hashes: Iterable[str]) -> dict[str, np.ndarray]:
        """The vectors of the contents that have a row, by their hashes (hexadecimal)."""
        listed = ", ".join(f"'{bytes.fromhex(one).hex()}'" for one in hashes)
        found: dict[str, np.ndarray] = {}
        for batch in self.scan(["hash", VECTOR], f"hash IN ({listed})") if listed else ():
            matrix = batch[VECTOR].flatten().to_numpy().reshape(len(batch), -1)
            found.update(zip(batch["hash"].to_pylist(), matrix))
        return found

    def remove(self, paths: Iterable[str]) -> int:
        """Take out the rows of these paths; how many there were."""
        keys = pa.table({KEY: pa.array(paths, pa.string())})
        if not len(keys):
            return 0
        return self._merge(KEY, keys, lambda merge: merge.when_matched_delete())["num_deleted_rows"]

    def remove_unchanged(self, rows: pa.Table) -> int:
        """Take out the rows that are as these say, which others may have renewed meanwhile; how many there were.

        Args:
            rows: what is compared: the path, and columns beside it, such as the size and the time of the file.
        """
        if not len(rows):
            return 0
        return self._merge(rows.column_names, rows, lambda merge: merge.when_matched_delete())["num_deleted_rows"]

    def add_columns(self, columns: Mapping[str, pa.DataType]) -> None:
        """Add the user's columns that the gallery has not, null in all rows.

        Raises:
            UsageError: a column cannot have that name, or the gallery has it with another type.
        """

        def add() -> None:
            # Another process may have added the same at this moment.
            if new := self._lacking(columns):
                self.dataset.add_columns(new)

        if self._lacking(columns):
            self._changed(add)

    def _lacking(self, columns: Mapping[str, pa.DataType]) -> list[pa.Field]:
        """Those of the user's columns that the gallery has not; raises as `add_columns`."""
        known = self.user_types
        check_columns([*known, *(name for name in columns if name not in known)])
        for name, kind in columns.items():
            if known.get(name, kind) != kind:
                raise UsageError(
                    f"The column {name!r} is of type {known[name]} in the gallery, not {kind}",
                    where=self.uri,
                    remedy="Rename the column, or write its values in the gallery's type.",
                )
        return [pa.field(name, kind) for name, kind in columns.items() if name not in known]

    def settings(self) -> dict[str, str]:
        """What the gallery remembers of its own upkeep, by name."""
        with faults(self.uri, UNREADABLE):
            config = self.dataset.config()
        return {name.removeprefix(SETTING): value for name, value in config.items() if name.startswith(SETTING)}

    def set_settings(self, values: Mapping[str, str]) -> None:
        """Remember these; others stay."""
        config = {SETTING + name: value for name, value in values.items()}
        self._changed(lambda: self.dataset.update_config(config))

    def drop_settings(self, names: Sequence[str]) -> None:
        """Forget these."""
        if names:
            self._changed(lambda: self.dataset.delete_config_keys([SETTING + name for name in names]))


def _refuse_doubles(paths: pa.ChunkedArray, uri: str) -> None:
    """Lance would write both, and refuse every later change of theirs."""
    distinct = paths.value_counts()
    if len(distinct) < len(paths):
        double = next(one["values"] for one in distinct.to_pylist() if one["counts"] > 1)
        raise InputError(f"An image is to have two rows: {double}", where=uri, remedy="Name it once.")

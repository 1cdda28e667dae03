"""What keeps a gallery quick over the years: few files, indexes of what filters ask for, no versions of long ago."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa

from tiprctl.gallery.keeping.engine import UNREADABLE, WRITABLE, faults
from tiprctl.gallery.keeping.schema import KEY, user_columns
from tiprctl.gallery.keeping.store import GalleryStore

_KEPT = timedelta(hours=1)
"""How long an old version stays for who reads it."""
_FILE_ROWS = 1 << 20
"""How many rows Lance keeps in a data file."""
_SPARE = 32
"""How many files more than the rows need, and versions of long ago, are let be: joining them rewrites rows."""


def untidy(store: GalleryStore) -> str | None:
    """Why files should be joined or versions removed, a clause for people; None where they need not be."""
    with faults(store.uri, UNREADABLE):
        files, rows = len(store.dataset.get_fragments()), len(store)
        if files - -(-rows // _FILE_ROWS) > _SPARE:
            return f"its {rows:,} rows lie in {files:,} files"
        old = sum(version["timestamp"] < datetime.now() - _KEPT for version in store.dataset.versions()[:-1])
    return f"it keeps {old:,} versions of long ago" if old > _SPARE else None


def unindexed_columns(store: GalleryStore) -> dict[str, int]:
    """The columns that filters are to be answered from, with how many rows the index of each lacks, if any."""
    rows = len(store)
    with faults(store.uri, WRITABLE):
        covered = {index.field_names[0]: index.num_rows_indexed for index in store.dataset.describe_indices()}
    lacking = {column: rows - covered.get(column, 0) for column in _scalar_indexes(store.schema)}
    return {column: count for column, count in lacking.items() if count > 0}


def compact(store: GalleryStore) -> int:
    """Join small files and leave out the rows that were removed; how many files became fewer.

    Lance takes the indexes along.
    """
    with faults(store.uri, WRITABLE):
        # However few they are: who removes a crop wants its vector gone from the disk.
        done = store.dataset.optimize.compact_files(materialize_deletions_threshold=0.0)
    return done.fragments_removed - done.fragments_added


def index_scalars(store: GalleryStore) -> None:
    """Build the indexes that filters are answered from, in place of those that there are."""
    for column, kind in _scalar_indexes(store.schema).items():
        with faults(store.uri, WRITABLE):
            store.dataset.create_scalar_index(column, kind, replace=True)


def _scalar_indexes(schema: pa.Schema) -> dict[str, str]:
    """Which kind of index each column gets; a bitmap for each value where the values are few."""
    indexes = {KEY: "BTREE", "hash": "BTREE", "time": "BTREE", "camera": "BITMAP"}
    for name, kind in user_columns(schema).items():
        if not pa.types.is_nested(kind) and not pa.types.is_null(kind):
            indexes[name] = "BITMAP" if pa.types.is_boolean(kind) else "BTREE"
    return indexes


def drop_indexes(store: GalleryStore) -> None:
    """Do without any index."""
    with faults(store.uri, WRITABLE):
        for index in store.dataset.describe_indices():
            store.dataset.drop_index(index.name)


def forget_old_versions(store: GalleryStore) -> int:
    """Remove what only versions older than an hour need; how many bytes.

    Versions that seem to come from the future, because the clock was set back since, stay until it has passed them.
    """
    with faults(store.uri, WRITABLE):
        return store.dataset.cleanup_old_versions(older_than=_KEPT, error_if_tagged_old_versions=False).bytes_removed

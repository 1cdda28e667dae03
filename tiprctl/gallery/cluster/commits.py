"""Rows that others wrote to files become part of the gallery, in one transaction and each path once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiprctl.gallery.cluster.sources import delete_files
from tiprctl.gallery.cluster.stages import unreadable_of, write_fragments
from tiprctl.gallery.filling.adding import Changes
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.keeping.engine import EngineError, faults, lance
from tiprctl.gallery.keeping.schema import KEY
from tiprctl.gallery.keeping.store import GalleryStore, Written

if TYPE_CHECKING:
    from lance.fragment import FragmentMetadata

_SECONDS_BETWEEN_COMMITS = 30.0
_TRIES = 100
"""Each lost try is another writer's commit, so that only a gallery in constant change takes more than a few."""
_REMEDY = "Give the same command again: what was committed is kept."


class Committer:
    """Commits written fragments to a gallery whose present paths are known to be other than theirs.

    The rows go in by Lance's operation Merge, which replaces the list of fragments. Lance refuses it when rows were
    changed since the version that it names. Append, and Update without keys, would go in beside another writer's rows
    of the same paths. So what is committed was compared with exactly the version that it is added to; and other
    writers, who use `merge_insert`, find our rows and start again.

    Args:
        store: at the version with whose paths the images were compared before they were embedded.
        untold: columns that the written rows say nothing of: a row that is replaced keeps its own.
    """

    def __init__(self, store: GalleryStore, untold: Collection[str] = ()):
        self.store = store
        self._untold = untold
        self._own = _fragment_ids(store)
        self._others: dict[int, DigestSet] = {}

    def commit(self, written: Sequence[Mapping[str, Any]]) -> Written:
        """Commit rows of `WRITTEN`, each of an image that is new.

        Images that another writer added in the meantime are left out, and their files deleted.

        Raises:
            EngineError: the gallery cannot be written; nothing of these was.
        """
        fragments = _fragments(written)
        paths = pa.array([path for row in written for path in row["paths"]], pa.string())
        for _ in range(_TRIES):
            if not fragments:
                return Written(0, 0)
            with faults(self.store.uri, _REMEDY):
                self.store.refresh()
                taken = self._taken(paths)
                if len(taken):
                    fragments = self._without(fragments, taken)
                    paths = paths.filter(pc.invert(pc.is_in(paths, taken)))
                if fragments and self._merged(fragments):
                    return Written(len(paths), 0)
        raise EngineError("Others change the gallery all the time", where=self.store.uri, remedy=_REMEDY)

    def replace(self, written: Sequence[Mapping[str, Any]]) -> Written:
        """Put the rows of `WRITTEN` in the place of those of the same paths, where there still are such.

        Their files are read and deleted, since Lance's Merge adds rows, but takes none out.

        Raises:
            EngineError: the gallery cannot be written; what was committed is kept.
        """
        done = Written(0, 0)
        for fragment in _fragments(written):
            with faults(self.store.uri, _REMEDY):
                rows = self._read(fragment)
            put = self.store.put(rows.drop_columns(list(self._untold)))
            done = Written(done.inserted + put.inserted, done.updated + put.updated)
            delete_files(self._folder, [file["path"] for file in fragment["files"]])
        return done

    def _taken(self, paths: pa.Array) -> pa.Array:
        """Which of the paths are in fragments that others added since the comparison; each of these is read once."""
        dataset = self.store.dataset
        present = {each.fragment_id: each for each in dataset.get_fragments() if each.fragment_id not in self._own}
        self._others = {which: paths for which, paths in self._others.items() if which in present}
        for which in present.keys() - self._others.keys():
            found = dataset.scanner(columns=[KEY], fragments=[present[which]]).to_table()[KEY]
            self._others[which] = DigestSet(found.to_pylist())
        keys = paths.to_pylist()
        taken = np.zeros(len(keys), bool)
        for others in self._others.values():
            taken |= others.contains(keys)
        return paths.filter(pa.array(taken))

    def _merged(self, fragments: Iterable[dict]) -> bool:
        """Add the fragments to the version that the store is at; False where another writer was quicker."""
        from lance.commit import CommitConflictError
        from lance.fragment import FragmentMetadata

        dataset, engine = self.store.dataset, lance()
        present: list[FragmentMetadata] = [fragment.metadata for fragment in dataset.get_fragments()]
        new = [FragmentMetadata.from_json(json.dumps(fragment)) for fragment in fragments]
        operation = engine.LanceOperation.Merge(present + new, dataset.lance_schema)
        try:
            merged = engine.LanceDataset.commit(dataset, operation, read_version=dataset.version, max_retries=0)
        except CommitConflictError:
            return False
        before = {fragment.id for fragment in present}
        self._own |= {fragment.fragment_id for fragment in merged.get_fragments()} - before
        self.store.refresh()
        return True

    def _without(self, fragments: Iterable[dict], taken: pa.Array) -> list[dict]:
        """The fragments without the rows of these paths: files that hold any are written again."""
        kept: list[dict] = []
        for fragment in fragments:
            rows = self._read(fragment)
            others = rows.filter(pc.invert(pc.is_in(rows[KEY], taken)))
            if len(others) == len(rows):
                kept.append(fragment)
                continue
            kept += write_fragments(self.store.uri, others)
            delete_files(self._folder, [file["path"] for file in fragment["files"]])
        return kept

    @property
    def _folder(self) -> str:
        return f"{self.store.uri}/data"

    def _read(self, fragment: Mapping[str, Any]) -> pa.Table:
        """The rows of a fragment that is not committed, which is one file."""
        from lance.file import LanceFileReader

        (file,) = fragment["files"]
        return LanceFileReader(f"{self._folder}/{file['path']}").read_all().to_table()


class Pending:
    """What was written and is not committed.

    Args:
        commit: commits rows of `WRITTEN`.
        changes: is told what became of them.
    """

    def __init__(self, commit: Callable[[Sequence[Mapping[str, Any]]], Written], changes: Changes):
        self._commit = commit
        self._changes = changes
        self._written: list[Mapping[str, Any]] = []
        self._last = time.monotonic()

    def add(self, written: Mapping[str, Any]) -> None:
        """Take a row of `WRITTEN`, and commit what there is where the last commit was a while ago."""
        self._written.append(written)
        self._changes.unreadable += unreadable_of(written)
        if time.monotonic() - self._last > _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self) -> None:
        """Commit what there is; it is not tried again should that fail."""
        written, self._written = self._written, []
        done = self._commit(written)
        self._changes.added += done.inserted
        self._changes.updated += done.updated
        self._changes.elsewhere += sum(len(row["paths"]) for row in written) - done.rows
        self._last = time.monotonic()


def _fragments(written: Iterable[Mapping[str, Any]]) -> list[dict]:
    """Lance's descriptions of the files that rows of `WRITTEN` are about."""
    return [each for row in written for each in json.loads(row["fragments"])]


def _fragment_ids(store: GalleryStore) -> set[int]:
    return {fragment.fragment_id for fragment in store.dataset.get_fragments()}

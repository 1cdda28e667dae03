"""The pruned training captions of a data set, made once and kept in a file beside its manifest.

SEN trains on a caption's nouns, adjectives and pronouns in place of the caption now and then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiprctl.data.manifest import Manifest
from tiprctl.data.tagging import classify, find_tagger, prune
from tiprctl.errors import InputError
from tiprctl.files import atomic_path, check_writable
from tiprctl.interrupt import stop_signal
from tiprctl.meter import ResumedMeter
from tiprctl.worker_pool import process_map

FILE_NAME = "captions_pruned.parquet"
PARTIAL_NAME = "captions_pruned.partial.parquet"
"""What an unfinished run has tagged."""

SCHEMA = pa.schema([("pruned", pa.string()), ("classes", pa.string())])
SAVE_EVERY = 2000
"""Captions between two saves: all that a killed run loses."""

_METADATA = b"tiprctl"
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)
"""What reading a damaged file raises."""
_CHUNK = 64
"""Captions that a process takes at a time."""


@dataclass(frozen=True)
class Origin:
    """What the file depends on: the tagger by name and version, and the manifest's fingerprint."""

    tagger: str
    version: str
    fingerprint: str


@dataclass(frozen=True)
class PrunedCaptions:
    """The pruned form of each training caption in order, and the classes of the tokens of the whole one (`tagging`)."""

    origin: Origin
    pruned: list[str]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.pruned)


def prune_captions(
    manifest: Manifest,
    tagger: str,
    *,
    workers: int = 1,
    progress: ResumedMeter = lambda total, done: nullcontext(lambda count: None),
) -> PrunedCaptions:
    """Prune the training captions and write `<root>/captions_pruned.parquet`, unless this is done.

    What a run that was stopped has saved is taken up. A file of another tagger, or of another manifest, counts for
    nothing and stays until the new one is whole.

    Args:
        workers: processes that tag.
        progress: opened with the number of captions, and of those done by former runs, where there is work left;
            told how many more are done.

    Raises:
        UsageError: there is no such tagger, or it is not installed.
        InputError: there is no training split, or the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; what was tagged is saved.
    """
    captions = manifest.split("train").captions
    origin = Origin(tagger, find_tagger(tagger).version, manifest.fingerprint)
    target, partial_file = manifest.root / FILE_NAME, manifest.root / PARTIAL_NAME
    done = _made(target, origin, captions)
    if len(done) < len(captions):
        check_writable(target)
        done = _made(partial_file, origin, captions)
        with progress(len(captions), len(done)) as advance:
            _tag_rest(done, captions, partial_file, workers, advance)
        _write(done, target)
        partial_file.unlink(missing_ok=True)
    return done


def read_pruned(manifest: Manifest) -> PrunedCaptions:
    """The pruned training captions of a data set.

    Raises:
        InputError: they were not made, or of another manifest, or their file is damaged.
    """
    read_origin(manifest)
    file = manifest.root / FILE_NAME
    pruned = _read(file)
    captions = manifest.split("train").captions
    if len(pruned) != len(captions) or not _agree(captions, pruned):
        raise _damaged(file)
    return pruned


def read_origin(manifest: Manifest) -> Origin:
    """What the pruned training captions of a data set depend on.

    Raises:
        InputError: they were not made, or of another manifest, or their file is damaged.
    """
    file = manifest.root / FILE_NAME
    command = f"`tiprctl augment {manifest.root}`"
    if not file.is_file():
        remedy = f"Tag them with {command}: sen prunes by the tags, scvd makes its phrases of them."
        raise InputError("The training captions are not tagged yet", where=file, remedy=remedy)
    try:
        origin = _origin(pq.read_schema(file))
    except _UNREADABLE as error:
        raise _damaged(file) from error
    if origin.fingerprint != manifest.fingerprint:
        what = "The tagged captions are those of another manifest than the data set has now"
        raise InputError(what, where=file, remedy=f"Tag them again with {command}.")
    return origin


def _tag_rest(
    done: PrunedCaptions, captions: list[str], file: Path, workers: int, advance: Callable[[int], None]
) -> None:
    """Extend `done` to all `captions`; saved to `file` now and then, and when Ctrl-C ends it."""
    rest = captions[len(done) :]
    with stop_signal() as stopped, process_map(workers, chunk=_CHUNK) as over_all:
        for caption, classes in zip(rest, over_all(partial(classify, tagger=done.origin.tagger), rest)):
            done.pruned.append(prune(caption, classes))
            done.classes.append(classes)
            advance(1)
            if stopped or len(done) % SAVE_EVERY == 0:
                _write(done, file)
            if stopped:
                raise KeyboardInterrupt


def _made(file: Path, origin: Origin, captions: list[str]) -> PrunedCaptions:
    """What `file` holds of these captions' pruned forms: nothing, where it is damaged or of another origin."""
    nothing = PrunedCaptions(origin, [], [])
    try:
        found = _read(file)
    except InputError:
        return nothing
    return found if found.origin == origin and _agree(captions, found) else nothing


def _write(captions: PrunedCaptions, file: Path) -> None:
    table = pa.table({"pruned": captions.pruned, "classes": captions.classes}, schema=SCHEMA)
    with atomic_path(file) as temporary:
        about = {_METADATA: json.dumps(asdict(captions.origin))}
        pq.write_table(table.replace_schema_metadata(about), temporary, compression="zstd")


def _read(file: Path) -> PrunedCaptions:
    try:
        table = pq.read_table(file, columns=SCHEMA.names)
        origin = _origin(table.schema)
        rows = table.cast(SCHEMA).to_pydict()
    except _UNREADABLE as error:
        raise _damaged(file) from error
    return PrunedCaptions(origin, **rows)


def _origin(schema: pa.Schema) -> Origin:
    return Origin(**json.loads(schema.metadata[_METADATA]))


def _agree(captions: list[str], found: PrunedCaptions) -> bool:
    """Whether the pruned forms are those that the classes make of the first captions."""
    try:
        return found.pruned == [prune(*each) for each in zip(captions, found.classes)]
    except ValueError:
        return False


def _damaged(file: Path) -> InputError:
    remedy = f"Tag them again with `tiprctl augment {file.parent}`."
    return InputError("The file of tagged captions is damaged", where=file, remedy=remedy)

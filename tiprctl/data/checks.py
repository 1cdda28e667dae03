"""What can be wrong with a data set on disk: every record looked at, every image decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tiprctl.data.records import Record, SplitSize
from tiprctl.errors import ImageError
from tiprctl.images import open_image


class Fault(Enum):
    """A kind of fault; its value is how it is called, its plural with an s."""

    MISSING = "missing image"
    UNDECODABLE = "undecodable image"
    EMPTY = "empty caption"
    DUPLICATE = "duplicate path"
    SHARED = "shared identity"


UNUSABLE = (Fault.MISSING, Fault.UNDECODABLE)
"""The faults that leave an annotated image without a picture."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: of which kind, in which split, of which image path or identity, and what is known of it."""

    fault: Fault
    split: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Report:
    """The sizes of the splits as annotated, and what is wrong with them."""

    sizes: dict[str, SplitSize]
    findings: tuple[Finding, ...]

    @cached_property
    def counts(self) -> Counter[tuple[str, Fault]]:
        """How many findings each split has of each fault."""
        return Counter((finding.split, finding.fault) for finding in self.findings)

    def of(self, *faults: Fault) -> list[Finding]:
        """The findings of some kinds of fault."""
        return [finding for finding in self.findings if finding.fault in faults]


def check(
    root: Path, records: Sequence[Record], *, workers: int = 1, on_image: Callable[[int], None] = lambda count: None
) -> Report:
    """Look at every record and decode every image once.

    Args:
        root: the data set's folder.
        workers: threads that decode; Pillow's decoders leave the interpreter to the others meanwhile.
        on_image: told how many more images are done.
    """
    unusable = find_unusable(root, {record.path for record in records}, workers=workers, on_image=on_image)
    findings = [
        *(_unusable(record, *unusable[record.path]) for record in records if record.path in unusable),
        *_empty_captions(records),
        *_duplicate_paths(records),
        *_shared_identities(records),
    ]
    return Report(split_sizes(records), tuple(findings))


def split_sizes(records: Iterable[Record]) -> dict[str, SplitSize]:
    """Identities, images (records) and captions of each split, in order of first appearance."""
    splits: dict[str, list[Record]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    return {
        split: SplitSize(
            len({record.pid for record in members}), len(members), sum(len(record.captions) for record in members)
        )
        for split, members in splits.items()
    }


def differs_from_published(sizes: Mapping[str, SplitSize], published: Mapping[str, SplitSize]) -> list[str]:
    """One sentence for each split whose size is not the published one; nothing where none is published."""
    nothing = SplitSize(0, 0, 0)
    return [
        f"{split} has {_size(sizes.get(split, nothing))}; published: {_size(published.get(split, nothing))}"
        for split in dict.fromkeys((*published, *sizes))
        if published and sizes.get(split, nothing) != published.get(split, nothing)
    ]


def find_unusable(
    root: Path, paths: Iterable[str], *, workers: int, on_image: Callable[[int], None]
) -> dict[str, tuple[Fault, str]]:
    """The images that are missing or cannot be decoded, with what is known of it."""
    paths = sorted(paths)
    found = {}
    with ThreadPool(max(1, workers)) as pool:
        for path, trouble in zip(paths, pool.imap(lambda path: _trouble(root / path), paths, chunksize=16)):
            if trouble is not None:
                found[path] = trouble
            on_image(1)
    return found


def _trouble(path: Path) -> tuple[Fault, str] | None:
    if not path.is_file():
        return Fault.MISSING, "there is no such file"
    try:
        open_image(path)
    except ImageError as error:
        return Fault.UNDECODABLE, error.what
    return None


def _unusable(record: Record, fault: Fault, detail: str) -> Finding:
    return Finding(fault, record.split, record.path, detail)


def _empty_captions(records: Iterable[Record]) -> Iterable[Finding]:
    for record in records:
        if not record.captions:
            yield Finding(Fault.EMPTY, record.split, record.path, "the image has no caption at all")
        for number, caption in enumerate(record.captions, start=1):
            if not caption.strip():
                yield Finding(Fault.EMPTY, record.split, record.path, f"caption {number} of {len(record.captions)}")


def _duplicate_paths(records: Iterable[Record]) -> Iterable[Finding]:
    first: dict[str, Record] = {}
    for record in records:
        earlier = first.setdefault(record.path, record)
        if earlier is not record:
            detail = f"in {earlier.split} as identity {earlier.pid}, again in {record.split} as identity {record.pid}"
            yield Finding(Fault.DUPLICATE, record.split, record.path, detail)


def _shared_identities(records: Iterable[Record]) -> Iterable[Finding]:
    """An identity of an earlier split that shows up in a later one: what is learnt there is measured here."""
    splits: dict[int, dict[str, None]] = {}
    for record in records:
        splits.setdefault(record.pid, {})[record.split] = None
    for pid, (first, *others) in splits.items():
        for split in others:
            yield Finding(Fault.SHARED, split, f"identity {pid}", f"also in {first}")


def _size(size: SplitSize) -> str:
    return f"{size.identities:,} identities, {size.images:,} images, {size.captions:,} captions"

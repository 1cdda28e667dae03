"""Annotation records: what every data set's reader turns its file into, and how JSON annotations are validated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tiprctl.errors import InputError

SPLITS = ("train", "val", "test")

_JSON_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object", float: "a fraction"}

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON escapes can spell it, but no UTF-8 file can hold it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image: its split, identity, path relative to the data set's root (posix), and captions."""

    split: str
    pid: int
    path: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SplitSize:
    """How many identities, images and captions a split has."""

    identities: int
    images: int
    captions: int


@dataclass(frozen=True)
class DataSet:
    """What there is to know of a data set before a byte of it is read.

    Args:
        name: as typed on the command line.
        folder: its usual folder's name; None for a data set that has none.
        annotations: names that its annotation file goes by, the usual one first.
        read: turns the annotation file into records.
        source: where to get it, one clause without a final full stop.
        published: the published size of each split; empty where there is none to compare with.
    """

    name: str
    folder: str | None
    annotations: tuple[str, ...]
    read: Callable[[Path], list[Record]]
    source: str
    published: Mapping[str, SplitSize] = field(default_factory=dict)


class Fields:
    """The validated fields of one JSON object; its errors name the file and the object's place in it.

    Args:
        values: what the JSON held.
        file: the annotation file.
        place: how a reader of the file finds the object, such as "Record 17 (counted from 0)".

    Raises:
        InputError: `values` is not an object.
    """

    def __init__(self, values: Any, file: Path, place: str):
        self.file, self.place = file, place
        if not isinstance(values, dict):
            raise self.error(f"is {_kind(values)}, not an object")
        self.values: dict[str, Any] = values

    def error(self, what: str) -> InputError:
        """An error about this object: `what` continues the sentence that its place begins."""
        return InputError(f"{self.place} {what}", where=self.file, remedy="Mend the file, or copy it from its source.")

    def take(self, key: str, kind: type) -> Any:
        """The value of `key`, which must be there and be of the JSON type `kind` (a boolean is no whole number)."""
        if key not in self.values:
            raise self.error(f'has no "{key}"; its keys are {", ".join(self.values) or "none"}')
        value = self.values[key]
        self._require(value, kind, f'as "{key}"')
        return value

    def record(self, path_key: str) -> Record:
        """The record of a published data set: `split`, `id`, `captions`, and an image path relative to `imgs/`."""
        return Record(self.split(), self.pid("id"), self.path(path_key, "imgs"), self.captions())

    def split(self) -> str:
        """The split's name: train, val or test."""
        split = self.take("split", str)
        if split not in SPLITS:
            raise self.error(f'has "{split}" as "split" where one of {", ".join(SPLITS)} belongs')
        return split

    def pid(self, key: str) -> int:
        """The identity under `key`, a whole number of at most 64 bits."""
        pid = self.take(key, int)
        if not -(2**63) <= pid < 2**63:
            raise self.error(f'has a number as "{key}" that is too large for an identity')
        return pid

    def path(self, key: str, below: str = "") -> str:
        """The path under `key`, relative to the root, with the folder `below` put before it.

        Raises:
            InputError: the path is absolute or climbs with `..`: nothing outside the data set is ever read.
        """
        path = self.take(key, str)
        if not path or leaves_root(path):
            raise self.error(f'has "{path}" as "{key}", which leaves the data set\'s folder')
        return PurePosixPath(below, path).as_posix()

    def captions(self) -> tuple[str, ...]:
        """The list of captions, each a text."""
        captions = self.take("captions", list)
        for caption in captions:
            self._require(caption, str, 'among its "captions"')
        return tuple(captions)

    def _require(self, value: Any, kind: type, role: str) -> None:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f"has {_kind(value)} {role} where {_JSON_NAMES[kind]} belongs")
        if kind is str and _LONE_SURROGATE.search(value):
            raise self.error(f"has broken text {role}: half of a two-part character")


def leaves_root(path: str) -> bool:
    """Whether a relative path is none: absolute, with a drive letter, climbing with `..`, or holding a NUL.

    Judged by Windows' rules too, whose separators are both slashes, so that the answer is the same everywhere.
    """
    parts = PureWindowsPath(path)
    return bool(parts.anchor) or ".." in parts.parts or "\0" in path


def read_objects(file: Path) -> Iterator[Fields]:
    """The objects of an annotation file that is one JSON list.

    Raises:
        InputError: the file is missing, not UTF-8, not JSON, not a list, or one of its elements is not an object.
    """
    remedy = "It may be cut short: copy it again from its source."
    objects = parse_json(read_utf8(file), file, "The file", remedy=remedy)
    if not isinstance(objects, list):
        remedy = "This does not look like the annotation file; check its name."
        raise InputError(f"The file holds {_kind(objects)}, not a list of records", where=file, remedy=remedy)
    for index, values in enumerate(objects):
        yield Fields(values, file, f"Record {index} (counted from 0)")


def read_utf8(file: Path) -> str:
    """The text of a file in UTF-8, with or without byte-order mark.

    Raises:
        InputError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "Save it as UTF-8, or copy it again from its source."
        raise InputError(f"The file is not UTF-8: bad byte at {error.start:,}", where=file, remedy=remedy) from error
    except OSError as error:
        raise InputError(f"Cannot read the file: {error.strerror}", where=file, remedy="Check the path.") from error


def parse_json(text: str, file: Path, place: str, *, remedy: str) -> Any:
    """The value of a JSON text that stands at `place` in `file`.

    Raises:
        InputError: it is not JSON, or more than Python's parser takes on: very deeply nested, numbers of many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        what = f"{place} is not JSON: {error.msg}, {line}column {error.colno}"
        raise InputError(what, where=file, remedy=remedy) from error
    except RecursionError as error:
        raise InputError(f"{place} is too deeply nested", where=file, remedy=remedy) from error
    except ValueError as error:
        raise InputError(f"{place} has a number of too many digits", where=file, remedy=remedy) from error


def _kind(value: Any) -> str:
    """The JSON type of a value, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _JSON_NAMES[type(value)]

"""Users' own images: a table of captions, CSV with a heading or JSON lines, beside the images or anywhere else.

Columns: `path` (relative to the data set's root) and `caption`, one row a caption; `pid` (a whole number: the person
shown) and `split` (train, val or test) may be left out. Without `pid` each image counts as a person of its own;
without `split` everything is `test`. JSON lines give a `pid` in every row or in none. Other columns are ignored.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiprctl.data.records import DataSet, Fields, Record, parse_json, read_utf8
from tiprctl.errors import InputError

REQUIRED = ("path", "caption")
COLUMNS = (*REQUIRED, "pid", "split")

_JSON_REMEDY = f"Give one JSON object a line with {', '.join(COLUMNS)}, or name a table in CSV `.csv`."


def read(file: Path) -> list[Record]:
    """The records of a caption table, one an image: rows of the same path, identity and split are joined.

    Raises:
        InputError: the file cannot be read, lacks a column, numbers only some of its persons, or a line of it is
            malformed.
    """
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _json_rows(file)
    captions: dict[tuple[str, int, str], list[str]] = {}
    numbers: dict[str, int] = {}
    numbered: bool | None = None
    for row in rows:
        path = row.path("path")
        if numbered not in (None, "pid" in row.values):
            # Numbers of our own would fall among the given ones and make one person of two.
            raise row.error(
                f'has {"no" if numbered else "a"} "pid", unlike the rows before it: give all of them or none'
            )
        numbered = "pid" in row.values
        pid = row.pid("pid") if numbered else numbers.setdefault(path, len(numbers))
        split = row.split() if "split" in row.values else "test"
        captions.setdefault((path, pid, split), []).append(row.take("caption", str))
    return [Record(split, pid, path, tuple(texts)) for (path, pid, split), texts in captions.items()]


def _csv_rows(file: Path) -> Iterator[Fields]:
    reader = csv.DictReader(io.StringIO(read_utf8(file), newline=""), strict=True)
    try:
        _require_columns(reader.fieldnames or (), file)
        for values in reader:
            yield _csv_row(values, file, f"Line {reader.line_num}")
    except csv.Error as error:
        remedy = "Put a caption that holds commas or quotes in double quotes, its own quotes doubled."
        raise InputError(f"Line {reader.reader.line_num} is not CSV: {error}", where=file, remedy=remedy) from error


def _csv_row(values: dict[str | None, Any], file: Path, place: str) -> Fields:
    """One row, its `pid` made a number; a caption with a bare comma shows as a row that is too long."""
    if None in values or None in values.values():
        raise InputError(
            f"{place} has {'more' if None in values else 'fewer'} fields than the heading",
            where=file,
            remedy="Put a caption that holds commas in double quotes.",
        )
    row = Fields({key: values[key] for key in COLUMNS if key in values}, file, place)
    if "pid" in values:
        try:
            row.values["pid"] = int(values["pid"])
        except ValueError as error:
            raise row.error(f'has "{values["pid"]:.30}" as "pid" where a whole number belongs') from error
    return row


def _json_rows(file: Path) -> Iterator[Fields]:
    for number, line in enumerate(io.StringIO(read_utf8(file)), start=1):
        if line.strip():
            place = f"Line {number}"
            yield Fields(parse_json(line, file, place, remedy=_JSON_REMEDY), file, place)


def _require_columns(found: Any, file: Path) -> None:
    missing = [column for column in REQUIRED if column not in found]
    if missing:
        raise InputError(
            f"The table has no column {' and no column '.join(missing)}; it has {', '.join(found) or 'none'}",
            where=file,
            remedy=f"Its first line must name the columns: {','.join(COLUMNS)} (the last two may be left out).",
        )


FOLDER = DataSet(
    name="folder",
    folder=None,
    annotations=("captions.csv", "captions.jsonl"),
    read=read,
    source="your own images",
)

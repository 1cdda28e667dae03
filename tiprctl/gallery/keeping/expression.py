"""What users ask of a gallery's columns (`--where`): the engine's expressions, in which strings can be times."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import TYPE_CHECKING

import pyarrow as pa

from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.engine import EngineError, ObstacleError, brief, faults
from tiprctl.gallery.keeping.schema import KEY

if TYPE_CHECKING:
    from tiprctl.gallery.keeping.store import GalleryStore

EXAMPLE = "camera = 'cam_a' and time > '2026-11-01 08:30'"
_TOKEN = re.compile(
    r"""(?P<string>'(?:[^']|'')*' | "[^"]*")
    | (?P<name>[^\W\d]\w* | `[^`]*`)
    | (?P<space>\s+ | --[^\n]* | /\*.*?\*/)
    | (?P<other><=|>=|<>|!=|.)""",
    re.VERBOSE | re.DOTALL,
)
_COMPARING = {"=", "<", ">", "<=", ">=", "<>", "!=", "in", "between", "not", "and", "(", ","}
"""What may stand between a column and the values that it is compared with."""
_FLAT = frozenset(",.0123456789")
_MOST_WORDS = 300
"""The engine reads nested terms by recursion; a chain of some hundreds more (size + size + …) overruns its stack."""
_MINUTES = re.compile(r"(['\"]\d{4}-\d\d-\d\d[ T]\d\d:\d\d)(['\"])")


def compiled(store: GalleryStore, where: str) -> str:
    """The expression as the engine reads it; it goes to the engine's parser and nowhere else.

    The parser stops at the end of the first expression and ignores the rest. In parentheses the rest is an error.

    Raises:
        UsageError: it is too long, would be read otherwise than it looks, or the engine cannot make sense of it; one
            line of its message, the columns and an example.
    """
    _refuse_long(where)
    _refuse_unbalanced(where)
    _refuse_quoted_columns(where, store.columns)
    expression = f"({_with_times(where, _times(store.schema))}\n)"
    try:
        with faults(store.uri, ""):
            store.dataset.scanner(columns=[], filter=expression, with_row_id=True).explain_plan()
    except EngineError as error:
        raise _unreadable(store, where, error) from error
    return expression


@contextmanager
def answering(store: GalleryStore, where: str | None) -> Iterator[None]:
    """Within the block, rows are read of which the user's expression holds, after `compiled` has accepted it.

    Some expressions fail at the rows, as a division by zero does: then nothing is wrong with the gallery.

    Raises:
        UsageError: reading fails by the expression. EngineError: it fails without it too.
    """
    try:
        yield
    except ObstacleError:
        raise
    except EngineError as error:
        if where is None or not _is_at_fault(store, compiled(store, where)):
            raise
        raise _unreadable(store, where, error) from error


def matching(store: GalleryStore, columns: Sequence[str], where: str | None) -> Iterator[pa.RecordBatch]:
    """The rows of which the user's expression holds, as `GalleryStore.scan` gives them; errors as of `answering`."""
    with answering(store, where):
        yield from store.scan(columns, None if where is None else compiled(store, where))


def _is_at_fault(store: GalleryStore, expression: str) -> bool:
    """Whether all that an expression can name can be read, but not with it."""
    return _fails(store.scan([KEY], expression, scalar_indexes=False)) and not _fails(store.scan(store.columns))


def _fails(batches: Iterator[pa.RecordBatch]) -> bool:
    try:
        for _ in batches:
            pass
    except EngineError:
        return True
    return False


def _unreadable(store: GalleryStore, where: str, error: EngineError) -> UsageError:
    return UsageError(
        f"The expression {shorten(where, 100)!r} cannot be read: {brief(error.__cause__ or error)}",
        remedy=f"The columns are {', '.join(store.columns)}; an example: {EXAMPLE!r}.",
    )


def _refuse_long(where: str) -> None:
    """Refuse what might end the process; values count nothing, since a list of them is not nested."""
    words = sum(token.lastgroup in ("name", "other") and token.group() not in _FLAT for token in _TOKEN.finditer(where))
    if words > _MOST_WORDS:
        raise UsageError(
            f"The expression is too long: {words:,} names and operators, of which it may have {_MOST_WORDS}",
            where="--where",
            remedy="Compare with many values by a list: camera in ('a', 'b'); or ask in several queries.",
        )


def _refuse_unbalanced(where: str) -> None:
    """Refuse what would close the parentheses that `compiled` puts around it, or leave its own open."""
    depth = least = 0
    for token in _TOKEN.finditer(where):
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        least = min(least, depth)
    if depth or least:
        raise UsageError(
            f"The parentheses of the expression {shorten(where, 100)!r} do not match",
            where="--where",
            remedy=f"Close each that is opened, and no other: {'(' + EXAMPLE + ')'!r}.",
        )


def _refuse_quoted_columns(where: str, columns: Collection[str]) -> None:
    """Refuse the name of a column in double quotes, in which the engine sees a text where SQL sees the column."""
    names = {name.lower() for name in columns}
    for token in _TOKEN.finditer(where):
        name = token.group()[1:-1]
        if token.group().startswith('"') and name.lower() in names:
            raise UsageError(
                f"{token.group()} in double quotes is a text, not the column {name}",
                where="--where",
                remedy=f"Write the column as {name} or `{name}`, and a text in single quotes: {name!r}.",
            )


def _times(schema: pa.Schema) -> set[str]:
    return {field.name.lower() for field in schema if pa.types.is_timestamp(field.type)}


def _with_times(where: str, columns: Collection[str]) -> str:
    """The expression with the word `timestamp` before each string that a column of times is compared with.

    The engine compares times with no strings, and reads no time without seconds.
    """
    return "".join(_typed(_TOKEN.finditer(where), columns))


def _typed(tokens: Iterator[re.Match[str]], columns: Collection[str]) -> Iterator[str]:
    compared = False
    for token in tokens:
        text = token.group()
        if token.lastgroup == "string" and compared:
            yield "timestamp " + _MINUTES.sub(r"\1:00\2", text)
            continue
        if token.lastgroup != "space":
            named = token.lastgroup == "name" and text.strip("`").lower() in columns
            compared = named or (compared and text.lower() in _COMPARING)
        yield text

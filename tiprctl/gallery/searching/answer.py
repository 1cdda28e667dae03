"""What a gallery answers: the best crops for each query, filtered, near-duplicates folded."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.schema import KEY, user_columns
from tiprctl.gallery.searching.finding import Found, find
from tiprctl.gallery.searching.similar import fold

if TYPE_CHECKING:
    from tiprctl.gallery.keeping.store import GalleryStore

_FURTHER = 4
"""How many times the wanted number of crops is looked at first, and how many times more where duplicates fill them."""
_MOST = 16_384
"""Up to how many crops are looked at then: their vectors are in memory."""
_CUT = "Near-duplicates fill the first {:,} crops; those further down were not looked at."


@dataclass(frozen=True)
class Request:
    """Which crops are wanted of each query.

    Attributes:
        top: how many.
        where: an expression over the columns, which the gallery's engine reads.
        min_score: the least cosine.
        exclude: paths, or patterns of them, as `finding.find` takes them.
        similar: the cosine of two crops from which the worse is folded into the better; None folds nothing.
    """

    top: int
    where: str | None = None
    min_score: float | None = None
    exclude: tuple[str, ...] = ()
    similar: float | None = None


@dataclass(frozen=True)
class Hit:
    """A crop that was found.

    Attributes:
        path: as the gallery has it.
        score: its cosine with the query.
        camera, time: null where they are not known; the time as `--where` reads it, 2026-11-01 08:30:00.
        columns: the user's, by name, as JSON can hold them.
        similar: the paths of the crops that were folded into it, best first.
    """

    path: str
    score: float
    camera: str | None
    time: str | None
    columns: dict[str, Any]
    similar: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was found for one query.

    Attributes:
        hits: best first; equal scores in the order of paths.
        note: what the user should know of the gallery, if anything.
    """

    hits: list[Hit]
    note: str | None = None


def answer(store: GalleryStore, queries: np.ndarray, request: Request) -> list[Answer]:
    """The best crops for each of `queries` `(Q, D)`, float32 of unit length.

    Raises:
        UsageError: the engine cannot read the expression. EngineError: the gallery cannot be read.
    """
    if request.similar is not None:
        return _distinct(store, queries, request)
    users = user_columns(store.schema)
    return [
        _answer(found, [[row] for row in range(len(found))], users)
        for found in _find(store, queries, request, request.top)
    ]


def patterns(given: str) -> tuple[str, ...]:
    """What a user's path, or pattern of paths, means to `finding.find`: it, and all below it.

    One that begins with a point is meant from the working folder. Since a folder's name may hold what stands for others
    in patterns, `[old]`, all below the folder of that very name is among them.

    Raises:
        UsageError: it is empty.
    """
    if not given.strip():
        raise UsageError(
            "The pattern is empty", where="--exclude", remedy="Name a path, a folder or a pattern: '*/cam_b/*'."
        )
    folder, name = os.path.split(given.rstrip("/"))
    whole = (Path(folder).resolve() / name).as_posix() if given.startswith(".") else given.rstrip("/")
    return tuple(dict.fromkeys((whole, f"{whole}/*", f"{escape(whole)}/*")))


def _find(store: GalleryStore, queries: np.ndarray, request: Request, top: int) -> list[Found]:
    return find(store, queries, top, where=request.where, min_score=request.min_score, exclude=request.exclude)


def _distinct(store: GalleryStore, queries: np.ndarray, request: Request) -> list[Answer]:
    """The best crops of each query with near-duplicates folded, as many as are wanted where there are so many."""
    users = user_columns(store.schema)
    answers = [Answer([]) for _ in queries]
    pending, looked_at = list(range(len(queries))), request.top * _FURTHER
    most = max(_MOST, looked_at)
    while pending:
        short = []
        for number, found in zip(pending, _find(store, queries[pending], request, looked_at)):
            groups = fold(found.vectors, request.similar)
            answers[number] = _answer(found, groups[: request.top], users)
            if len(groups) < request.top and len(found) == looked_at:
                short.append(number)
        if looked_at == most:
            return [replace(one, note=_CUT.format(most)) if row in short else one for row, one in enumerate(answers)]
        pending, looked_at = short, min(looked_at * _FURTHER, most)
    return answers


def _answer(found: Found, groups: Sequence[Sequence[int]], users: Collection[str]) -> Answer:
    """The best crop of each group of rows, and the others' paths."""
    rows = found.rows.to_pylist()
    hits = [
        Hit(
            path=rows[best][KEY],
            score=float(found.scores[best]),
            camera=rows[best]["camera"],
            time=_plain(rows[best]["time"]),
            columns={name: _plain(value) for name, value in rows[best].items() if name in users},
            similar=tuple(rows[other][KEY] for other in others),
        )
        for best, *others in groups
    ]
    return Answer(hits, found.note)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; times as `--where` reads them."""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)

"""The forms in which `tiprctl query` gives its hits: a table, paths, JSON, CSV, a contact sheet, pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tiprctl.cli import render
from tiprctl.errors import ImageError, UsageError
from tiprctl.files import check_writable, write_text

if TYPE_CHECKING:
    from tiprctl.gallery.searching.answer import Hit
    from tiprctl.reranking import Reranking

STDOUT = "-"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheets compute cells that begin so."""
_SHOWN = 50
"""Pictures in the terminal; more are the business of a contact sheet."""

Result = dict[str, Any]
"""A query and its hits, as the JSON document has them."""


def check_forms(*, json: bool, plain: bool, csv: str | None) -> None:
    """Refuse two forms on stdout at once, and a CSV file that cannot be written.

    Raises:
        UsageError, InputError.
    """
    asked = [name for name, given in (("--json", json), ("--plain", plain), ("--csv -", csv == STDOUT)) if given]
    if len(asked) > 1:
        raise UsageError("Two forms of output at once", where=" ".join(asked), remedy="Choose one of them.")
    if csv is not None and csv != STDOUT:
        check_writable(csv)


def check_pictures() -> None:
    """Refuse to show pictures without the library that does; raises UsageError."""
    from importlib.util import find_spec

    if find_spec("textual_image") is None:
        raise UsageError(
            "Showing crops in the terminal takes the package textual-image",
            where="--show",
            remedy="Install it: pip install 'tiprctl[terminal]'; or use --open or --sheet FILE.",
        )


def check_sheet(target: Path, crops: int) -> None:
    """Refuse a contact sheet of more crops than it can hold, or that cannot be written; raises as its module."""
    from tiprctl.gallery.sheet import check_sheet

    check_sheet(target, crops)


def result(
    query: str, hits: Sequence[Hit], *, shown: Callable[[str], str], grouped: bool, reranking: Reranking | None
) -> Result:
    """A query and its hits by rank, their paths as they are `shown`; those whose scores are not cosines are marked."""
    return {
        "query": query,
        "hits": [
            {
                "rank": rank,
                "score": float(hit.score),
                "path": shown(hit.path),
                "camera": hit.camera,
                "time": hit.time,
                **({"columns": hit.columns} if hit.columns else {}),
                **({"similar": list(map(shown, hit.similar))} if grouped else {}),
                **(reranking.mark(rank) if reranking else {}),
            }
            for rank, hit in enumerate(hits, 1)
        ],
    }


def print_paths(results: Sequence[Result]) -> None:
    """Bare paths, one a line; tells of those that take more."""
    paths = [hit["path"] for result in results for hit in result["hits"]]
    for path in paths:
        render.result_line(path)
    if any("\n" in path for path in paths):
        render.warning("Some of the paths contain line breaks; --json keeps them apart.")


def print_tables(results: Sequence[Result], *, times: bool) -> None:
    """A table a query that has hits; with cameras where there are any, with the crops' times if they are to be told."""
    for result in filter(itemgetter("hits"), results):
        hits = result["hits"]
        further = [name for name in ("camera", "time", "similar") if any(hit.get(name) for hit in hits)]
        if not times and "time" in further:
            further.remove("time")
        columns = [("rank", "right"), ("score", "right"), "path", *further]
        again, others = ([hit for hit in hits if hit.get("reranked", False) is wanted] for wanted in (True, False))
        table = render.table(result["query"], columns, _cells(again, further))
        render.extend_table(table, None, _cells(others, further))
        render.result_table(table)


def write_csv(results: Sequence[Result], target: str) -> None:
    """A line a hit, below a line of names, in a file or (`-`) on stdout.

    A user's column that is named as one of the answer's is headed `columns.NAME`, which is where the JSON has it.
    """
    own = ["query", "rank", "score", "path", "camera", "time"]
    hits = [{"query": result["query"], **hit} for result in results for hit in result["hits"]]
    users = list(dict.fromkeys(name for hit in hits for name in hit.get("columns", {})))
    similar = ["similar"] if any("similar" in hit for hit in hits) else []
    headings = [f"columns.{name}" if name in (*own, "similar") else _harmless(name) for name in users]
    table: list[list[Any]] = [[*own, *similar, *headings]]
    for hit in hits:
        cells = [_harmless_path(hit["path"]) if name == "path" else _harmless(hit[name]) for name in own]
        folded = [len(hit["similar"]) for _ in similar]
        table.append([*cells, *folded, *(_harmless(hit.get("columns", {}).get(name)) for name in users)])
    text = io.StringIO(newline="")
    # Of the characters that break a line, the writer by itself quotes only its own.
    broken = any("\r" in cell for row in table for cell in row if isinstance(cell, str))
    quoting = csv.QUOTE_ALL if broken else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(table)
    if target == STDOUT:
        render.result_text(text.getvalue())
    else:
        write_text(target, text.getvalue())
        render.note(f"CSV: {target}")


def write_sheet(results: Sequence[Result], target: Path, *, show: bool) -> None:
    """The contact sheet of the hits, a PNG file; `show` opens it in the system's viewer."""
    from tiprctl.gallery.sheet import Block, Crop, write_sheet

    blocks = [
        Block(result["query"], [Crop(hit["path"], hit["rank"], hit["score"]) for hit in result["hits"]])
        for result in results
    ]
    write_sheet(target, blocks, _warn_of_unreadable)
    render.note(f"Contact sheet: {target}")
    if show and typer.launch(str(target)) != 0:
        render.warning(f"No viewer could be opened; the contact sheet is {target}")


def show_pictures(results: Sequence[Result]) -> None:
    """The crops in the terminal, each with rank and score; where it can show none, a note says why."""
    reason = render.why_no_pictures()
    if reason is not None:
        render.warning(f"No crops are shown, since {reason}; --sheet FILE writes them to a picture.")
        return
    render.result_pictures(_pictures(results))
    if sum(len(result["hits"]) for result in results) > _SHOWN:
        render.note(f"Only the first {_SHOWN} crops are shown; --sheet FILE has all.")


def _pictures(results: Sequence[Result]) -> Iterator[tuple[Any, str]]:
    from tiprctl.gallery.sheet import open_crop

    shown = [hit for result in results for hit in result["hits"]][:_SHOWN]
    for hit in shown:
        try:
            yield open_crop(hit["path"]), f"{hit['rank']}  {hit['score']:.3f}"
        except ImageError as error:
            _warn_of_unreadable(error)


def _warn_of_unreadable(error: ImageError) -> None:
    render.warning(f"{error.what}: {error.where}")


def _cells(hits: Sequence[dict[str, Any]], further: Sequence[str]) -> list[tuple[Any, ...]]:
    return [(hit["rank"], f"{hit['score']:.3f}", hit["path"], *(_cell(hit, name) for name in further)) for hit in hits]


def _cell(hit: dict[str, Any], name: str) -> str:
    if name == "similar":
        return f"+{len(hit[name])}" if hit[name] else ""
    return hit[name] or ""


def _harmless(value: Any) -> Any:
    """A cell that a spreadsheet takes for the text it is: an apostrophe goes before what would be a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _harmless_path(path: str) -> str:
    """As `_harmless`, but the path stays that of the file."""
    return f"./{path}" if path.startswith(_FORMULA) else path

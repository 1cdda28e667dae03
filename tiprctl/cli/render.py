"""Everything that is printed: results on stdout, progress, notes and errors on stderr. The only importer of rich."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tiprctl.errors import TiprError
from tiprctl.job import tell_once

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)
_verbosity = 0

UNFOLDED = 500
"""Columns off a terminal: more than any row needs."""
PICTURE = 12
"""Columns that a picture takes in the terminal."""


class _Notes(logging.Handler):
    """Tells what is logged as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def set_verbosity(level: int) -> None:
    """-1 quiet, 0 normal, 1 verbose: then what the library logs is told as notes."""
    global _verbosity
    _verbosity = level
    library = logging.getLogger("tiprctl")
    library.handlers[:] = [_Notes()] if level > 0 else []
    library.setLevel(logging.INFO if level > 0 else logging.NOTSET)


def mute() -> None:
    """Print nothing more, but for the last word of a job: in one of several processes the first speaks for all."""
    _err.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def last_word(say: Callable[[], object]) -> None:
    """Say on stderr why the program ends, also when muted; in a job of several processes only the first one does."""

    def aloud() -> None:
        _err.quiet = False
        say()

    tell_once(aloud)


def last_error(problem: TiprError) -> None:
    """Tell an error as the last word."""
    last_word(lambda: error(problem))


def visible(text: str) -> str:
    """The text with control characters spelt out, but for line breaks: a file's name must not command the terminal."""
    if text.isprintable():
        return text
    spelt = (one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)
    return "".join(spelt)


def note(text: str) -> None:
    """A remark on stderr; silent under `--quiet`."""
    if _verbosity >= 0:
        _err.print(visible(text), style="dim", markup=False, soft_wrap=True)


def heading(text: str) -> None:
    """What comes next, on stderr, with room above it."""
    if _verbosity >= 0:
        _err.print(f"\n{text}", style="bold", markup=False, soft_wrap=True)


def warning(text: str) -> None:
    """Something the user should know of though the work goes on."""
    _err.print(f"[yellow]warning[/]: {escape(visible(text))}", soft_wrap=True)


def error(error: TiprError) -> None:
    """One to three lines on stderr: what, where, remedy."""
    _err.print(f"[bold red]error[/]: {escape(visible(error.what))}", soft_wrap=True)
    for line in (error.where, error.remedy):
        if line:
            _err.print(f"  {visible(line)}", markup=False, soft_wrap=True)
    if _verbosity > 0:
        _err.print_exception()


def fault(fault: BaseException) -> None:
    """An unexpected fault: one line, with the traceback under `--verbose`."""
    _err.print(f"[bold red]unexpected fault[/]: {escape(f'{type(fault).__name__}: {fault}')}", soft_wrap=True)
    if _verbosity > 0:
        _err.print_exception()
    else:
        _err.print("  Run it again with -v for the traceback, and please report it.", soft_wrap=True)


def result_line(text: str) -> None:
    """One bare line of result on stdout, never wrapped or coloured; as it is into a pipe, `visible` on a terminal."""
    print(visible(text) if sys.stdout.isatty() else text)


def result_text(text: str) -> None:
    """A whole document on stdout, byte by byte."""
    sys.stdout.write(text)


def result_json(document: Any) -> None:
    """The result as one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def result_table(table: Table) -> None:
    """The result as a table on stdout; off a terminal as wide as it needs, so that no path is folded."""
    console = _out if _out.is_terminal else Console(highlight=False, width=UNFOLDED)
    console.print(table)


def table(title: str | None, columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[Any]]) -> Table:
    """A table; a column is its heading, or (heading, "right"|"left")."""
    built = Table(title=title and _cell(title), title_justify="left", header_style="bold")
    for column in columns:
        heading, justify = (column, "left") if isinstance(column, str) else column
        built.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        built.add_row(*map(_cell, row))
    return built


def _cell(value: Any) -> str:
    """A value as it stands in a table: neither its brackets nor its control characters mean anything."""
    return escape(visible(str(value)).replace("\n", "\\n"))


def extend_table(table: Table, heading: str | None, rows: Iterable[Sequence[Any]]) -> None:
    """Add a section of further rows, under a heading or below a line alone; nothing where there are none."""
    rows = list(rows)
    if rows:
        table.add_section()
    if rows and heading:
        table.add_row(f"[dim]{escape(heading)}[/]")
    for row in rows:
        table.add_row(*map(_cell, row))


def why_no_pictures() -> str | None:
    """Why stdout can show no picture; None where it can."""
    if not _out.is_terminal:
        return "the output goes to no terminal"
    if _sizeless():
        return "the terminal does not tell its size"
    return "the terminal shows no colours" if _out.no_color or _out.color_system is None else None


def _sizeless() -> bool:
    with suppress(OSError, ValueError):
        return 0 in os.get_terminal_size(sys.__stdout__.fileno())
    return False


def result_pictures(pictures: Iterable[tuple[Any, str]]) -> None:
    """Pictures (of Pillow) side by side on stdout, each with its caption below, as finely as the terminal can."""
    # It asks the terminal what it can show as soon as it is imported.
    from textual_image.renderable import Image

    cells = [Group(Image(picture, width=PICTURE, height="auto"), _cell(caption)) for picture, caption in pictures]
    across = max(1, _out.width // (PICTURE + 2))
    grid = Table.grid(padding=(0, 2, 1, 0))
    for start in range(0, len(cells), across):
        grid.add_row(*cells[start : start + across])
    _out.print(grid)


def row(cells: Iterable[str], widths: Iterable[int]) -> None:
    """One row of a table that grows while work goes on, on stderr; the cells end where their columns do."""
    if _verbosity >= 0:
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        _err.print(line, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, total: int | None, unit: str, done: int = 0, *, told: bool = False) -> Iterator[Any]:
    """A bar on stderr with rate and remaining time; yields `advance(n=1)`.

    Off a terminal nothing is animated; of long work that would otherwise be silent it is `told` that it begins.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = _verbosity < 0 or not _err.is_terminal
    if told and not _err.is_terminal:
        note(f"{description} …")
    with Progress(*columns, console=_err, disable=hidden, transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done, rate="")

        def advance(n: int = 1) -> None:
            bar.advance(task, n)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s" if speed else "")

        yield advance

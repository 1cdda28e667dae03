"""What the benchmarks share: a process of its own for each variant, time and peak memory, the machine, a table."""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tiprctl.cores import cores

console = Console(highlight=False)
errors = Console(highlight=False, stderr=True)


@dataclass(frozen=True)
class Measurement:
    """One run: seconds, peak memory in bytes above what was held before it, and what it returned."""

    seconds: float
    peak: int
    result: Any


class Variant:
    """A contestant in a process of its own, so that its memory is its own; several can be timed in turn.

    Args:
        prepare: builds the inputs once, in the new process; both functions are importable by name.
        run: the work that is measured; called with the inputs and the arguments of `measure`.
        threads: threads the numerical libraries may use.
    """

    def __init__(self, prepare: Callable[[], Any], run: Callable[..., Any], *, threads: int):
        self._run = run
        self._process = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(prepare, threads),
        )

    def measure(self, *args: Any) -> Measurement:
        return self._process.submit(_measure, self._run, args).result()

    def close(self) -> None:
        self._process.shutdown()


_inputs: Any = None


def _start(prepare: Callable[[], Any], threads: int) -> None:
    global _inputs
    import torch

    torch.set_num_threads(threads)
    _inputs = prepare()


def _measure(run: Callable[..., Any], args: Sequence[Any]) -> Measurement:
    _reset_peak()
    held = _peak_memory()
    start = time.perf_counter()
    result = run(_inputs, *args)
    seconds = time.perf_counter() - start
    return Measurement(seconds, max(0, _peak_memory() - held), result)


def _reset_peak() -> None:
    """Bring the peak down to what is held now. Only Linux can; elsewhere an earlier peak may hide part of a run's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """The largest resident size of this process in bytes, since the last reset where there is one."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def machine(threads: int, packages: Sequence[str] = ("torch", "numpy")) -> str:
    """One line on where the figures were measured."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{_processor()}, {cores()} cores, {threads} used; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """A table whose first column names the contestants and whose others hold figures; `notes` stand beneath."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)


def verdict(shortfalls: Sequence[str], *, enforced: bool) -> int:
    """Say what falls short of a goal; the exit code: 1 when goals are enforced and any is missed."""
    for shortfall in shortfalls:
        errors.print(shortfall, style="bold red" if enforced else "yellow", markup=False, soft_wrap=True)
    return 1 if shortfalls and enforced else 0

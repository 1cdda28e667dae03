"""What the benchmarks share: their options, the machine and its ceiling, the report, a process for each variant."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tiprctl.cores import cores

console = Console(highlight=False)
errors = Console(highlight=False, stderr=True)

WIDEST = 200  # columns of characters
CEILING_SIZE = 2048
"""Rows and columns of the matrices whose product is taken for the most that a machine can do."""


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
    reset_peak()
    held = peak_memory()
    start = time.perf_counter()
    result = run(_inputs, *args)
    seconds = time.perf_counter() - start
    return Measurement(seconds, max(0, peak_memory() - held), result)


def reset_peak() -> None:
    """Bring the peak down to what is held now. Only Linux can; elsewhere an earlier peak may hide part of a run's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident size of this process in bytes, since the last reset where there is one."""
    import torch

    from tiprctl import execution

    return execution.peak_memory(torch.device("cpu")) or 0


@dataclass(frozen=True)
class Machine:
    """Where figures were measured.

    `cores` are those that the process may use, `threads` those that the work was given; `gpu` is None where none was
    used. `ceiling` is the rate of a product of two square matrices of 2048 rows in each precision, in GFLOP/s.
    """

    processor: str
    cores: int
    threads: int
    gpu: str | None
    python: str
    versions: Mapping[str, str]
    ceiling: Mapping[str, float]

    def lines(self) -> list[str]:
        """The same for people."""
        device = self.gpu or f"{self.processor}, {_counted(self.threads, 'thread')} on {_counted(self.cores, 'core')}"
        versions = ", ".join(f"{package} {number}" for package, number in self.versions.items())
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.ceiling.items())
        return [
            f"{device}; Python {self.python}, {versions}",
            f"Ceiling, a product of {CEILING_SIZE} x {CEILING_SIZE} matrices, in GFLOP/s: {rates}",
        ]


def survey(threads: int, *, device: str = "cpu", packages: Sequence[str] = ("torch", "numpy")) -> Machine:
    """Describe the machine and measure its ceiling on `device` (`cpu`, `cuda`), with `threads` threads."""
    import torch

    kind = torch.device(device)
    with _threads(threads):
        rates = ceiling(device)
    return Machine(
        processor=_processor(),
        cores=cores(),
        threads=threads,
        gpu=torch.cuda.get_device_name(kind) if kind.type == "cuda" else None,
        python=platform.python_version(),
        versions={package: version(package) for package in packages},
        ceiling=rates,
    )


def ceiling(device: str = "cpu") -> dict[str, float]:
    """GFLOP/s of a product of two matrices of 2048 x 2048 by precision, the fastest of several."""
    import torch

    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if torch.device(device).type != "cuda":
        return {name: _matmul_rate(device, dtype) for name, dtype in types.items()}
    with _float32_matmul("highest"):
        rates = {name: _matmul_rate(device, dtype) for name, dtype in (types | {"fp16": torch.float16}).items()}
    with _float32_matmul("high"):
        return rates | {"tf32": _matmul_rate(device, torch.float32)}


def _matmul_rate(device: str, dtype: Any) -> float:
    import torch

    left, right = torch.randn(2, CEILING_SIZE, CEILING_SIZE, device=device).to(dtype)
    # A product takes a GPU less than a millisecond: of many together its clock tells the time.
    rounds, together = (10, 50) if left.is_cuda else (4, 1)

    def products() -> None:
        for _ in range(together):
            left @ right

    fastest = min(timed(products, device) for _ in range(rounds))
    return 2 * CEILING_SIZE**3 * together / fastest / 1e9


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds that `work` takes, until the device is done with it."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait until a CUDA device is done with what it was given; nothing on the CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _float32_matmul(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@dataclass(frozen=True)
class Report:
    """What a benchmark found: a table for people and the figures behind it for machines.

    The first column names the contestants, the others hold figures; `notes` stand beneath the table. `figures` are
    JSON-able, in plain units: seconds, bytes, GFLOP/s, shares from 0 to 1.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Mapping[str, Any]
    notes: Sequence[str] = ()


def publish(report: Report, machine: Machine, *, as_json: bool) -> None:
    """Print a report with the machine that it was measured on: a table, or one JSON document."""
    if as_json:
        print(json.dumps({"title": report.title, **report.figures, "machine": asdict(machine)}))
        return
    show(report)
    for note in machine.lines():
        console.print(note, markup=False, soft_wrap=True)


def show(report: Report) -> None:
    """Print a report's table and its notes."""
    table = Table(title=report.title, title_justify="left", header_style="bold")
    for position, column in enumerate(report.columns):
        table.add_column(column, justify="right" if position else "left")
    for row in report.rows:
        table.add_row(*row)
    # Not narrower than it needs, whatever it is printed on: figures that are wrapped cannot be compared.
    needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    Console(highlight=False, width=max(console.width, needed)).print(table)
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)


def parser(description: str, *, quick: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `quick` says what the short form leaves out."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return made


def share_of_ceiling(seconds: float, flops: float, gflops_per_second: float) -> float:
    """The share of the ceiling at which `flops` floating-point operations were done in `seconds`, from 0 to 1."""
    return flops / seconds / 1e9 / gflops_per_second


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def verdict(shortfalls: Sequence[str], *, enforced: bool) -> int:
    """Say what falls short of a goal; the exit code: 1 when goals are enforced and any is missed."""
    for shortfall in shortfalls:
        errors.print(shortfall, style="bold red" if enforced else "yellow", markup=False, soft_wrap=True)
    return 1 if shortfalls and enforced else 0

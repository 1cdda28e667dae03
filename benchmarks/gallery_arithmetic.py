"""What a gallery of 100 million and of a billion crops takes: computed from what is measured up to a million.

python benchmarks/gallery.py --json > gallery.json
python benchmarks/indexing.py --json > indexing.json
python benchmarks/gallery_arithmetic.py gallery.json indexing.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _crops import BLOCK, Crops
from _report import Report, parser, publish, survey

from tiprctl.gallery.cluster.commits import Committer
from tiprctl.gallery.cluster.rows import STAMP_BYTES
from tiprctl.gallery.cluster.stages import DAMAGED, REASON, Write
from tiprctl.gallery.filling.digests import BYTES
from tiprctl.gallery.keeping.schema import OWN_COLUMNS, ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore

WIDTH = 512
ROWS = (1_000_000, 100_000_000, 1_000_000_000)
FRAGMENT = 8192
"""Rows of a file that a cluster's task writes."""
HOURS = 3600
PLACE_BYTES = 4
"""Of a path among those that the driver of a job knows, beside its digest and the stamp of its file."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a gallery on disk: of a row without its index, and of a file's entry in the list that each commit writes."""

    row: float
    fragment: float


@dataclass(frozen=True)
class Measured:
    """What the measurements tell of a row.

    Attributes:
        index: bytes in the vector index.
        build: seconds to build the indexes, at `rows`.
        rows: of the largest gallery that was measured.
        search: seconds that a row adds to a search, and `start` those that each takes.
        embed: images a second of the whole machine, with `model`.
        cores: of that machine.
    """

    index: float
    build: float
    rows: int
    search: float
    start: float
    embed: float
    model: str
    cores: int


@dataclass(frozen=True)
class Assumed:
    """What is not measured here: the rate of one GPU in images a second, and prices in a currency."""

    gpu: float
    core_hour: float
    gpu_hour: float
    gigabyte_month: float


@dataclass(frozen=True)
class Needs:
    """Of a gallery of `rows`: bytes, seconds, hours, and money."""

    rows: int
    vectors: float
    index: float
    driver: float
    entries: float
    core_hours: float
    gpu_hours: float
    build_hours: tuple[float, float]
    search_seconds: float
    embed_cost: tuple[float, float]
    month_cost: float


def measure_sizes(fragments: int) -> Sizes:
    """Write galleries as a cluster does, and weigh their files."""
    with tempfile.TemporaryDirectory() as folder:
        vectors = Crops(WIDTH).block(0, BLOCK)
        store = _store(f"{folder}/rows.lance")
        Committer(store).commit([_write(store, vectors[at : at + FRAGMENT], at) for at in range(0, BLOCK, FRAGMENT)])
        row = _bytes(Path(store.uri, "data")) / BLOCK
        store = _store(f"{folder}/fragments.lance")
        before = _newest_manifest(store)
        Committer(store).commit([_write(store, vectors[at : at + 1], at) for at in range(fragments)])
        return Sizes(row, (_newest_manifest(store) - before) / fragments)


def read_measured(gallery: Mapping[str, Any], indexing: Mapping[str, Any]) -> Measured:
    """The measurements, from the documents of gallery.py and indexing.py.

    Raises:
        SystemExit: they hold no two galleries that were searched through the index.
    """
    searched = [(each, each["searched"][0]) for each in gallery["galleries"]]
    indexed = sorted((each["rows"], one["median"], each) for each, one in searched if not one["exact"])
    if len(indexed) < 2:
        raise SystemExit("gallery.json needs two galleries that are searched through the index: 100,000 and 1,000,000.")
    (few, quick, _), (many, slow, largest) = indexed[0], indexed[-1]
    per_row = max(slow - quick, 0) / (many - few)
    rates = max(indexing["rates"], key=lambda one: one["model"] != "built-in")
    return Measured(
        index=largest["index_bytes"] / many,
        build=largest["optimise_seconds"],
        rows=many,
        search=per_row,
        start=max(quick - per_row * few, 0),
        embed=float(np.median(rates["add"])),
        model=rates["model"],
        cores=indexing["machine"]["threads"],
    )


def needs(rows: int, sizes: Sizes, measured: Measured, assumed: Assumed) -> Needs:
    """The arithmetic. Dividing the rows among sqrt(rows) partitions takes from `rows` to `rows` ** 1.5 comparisons, as
    it is done by way of a graph or by comparing all centroids; the truth lies between."""
    vectors, index = rows * sizes.row, rows * measured.index
    times = rows / measured.rows
    core_hours = rows / measured.embed * measured.cores / HOURS
    gpu_hours = rows / assumed.gpu / HOURS
    return Needs(
        rows,
        vectors,
        index,
        driver=rows * (BYTES + PLACE_BYTES + STAMP_BYTES),
        entries=math.ceil(rows / FRAGMENT) * sizes.fragment,
        core_hours=core_hours,
        gpu_hours=gpu_hours,
        build_hours=(measured.build * times / HOURS, measured.build * times**1.5 / HOURS),
        search_seconds=measured.start + rows * measured.search,
        embed_cost=(core_hours * assumed.core_hour, gpu_hours * assumed.gpu_hour),
        month_cost=(vectors + index) / 1e9 * assumed.gigabyte_month,
    )


def table(found: Sequence[Needs]) -> list[tuple[str, ...]]:
    """The rows of the report: a quantity each, by the size of the gallery."""
    return [
        ("vectors and columns on disk", *(gigabytes(each.vectors) for each in found)),
        ("vector index on disk, and in memory to be quick", *(gigabytes(each.index) for each in found)),
        ("known rows, in the driver's memory", *(gigabytes(each.driver) for each in found)),
        ("list of files, written by each commit", *(gigabytes(each.entries) for each in found)),
        ("embedding, core hours", *(f"{each.core_hours:,.0f}" for each in found)),
        ("embedding, GPU hours (assumed rate)", *(f"{each.gpu_hours:,.1f}" for each in found)),
        (
            "cost of either (assumed prices)",
            *(" / ".join(f"{cost:,.0f}" for cost in each.embed_cost) for each in found),
        ),
        ("index build, core hours", *(" to ".join(f"{hours:,.2f}" for hours in each.build_hours) for each in found)),
        ("a search on one core, seconds", *(f"{each.search_seconds:,.3f}" for each in found)),
        ("storage a month (assumed price)", *(f"{each.month_cost:,.2f}" for each in found)),
    ]


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def notes(sizes: Sizes, measured: Measured, assumed: Assumed) -> list[str]:
    return [
        f"Measured: {sizes.row:,.0f} bytes a row of width {WIDTH}, {sizes.fragment:,.0f} a file of {FRAGMENT:,} rows in "
        f"the list; {measured.index:,.0f} bytes a row of the index, built over {measured.rows:,} rows in "
        f"{measured.build:,.0f} s; a search {1e3 * measured.start:.1f} ms and {1e9 * measured.search:.1f} ns a row.",
        f"Measured: {measured.embed:,.1f} images a second of {measured.model} on {measured.cores} cores.",
        f"Assumed: {assumed.gpu:,.0f} images a second on a GPU; {assumed.core_hour:g} for a core hour, "
        f"{assumed.gpu_hour:g} for a GPU hour, {assumed.gigabyte_month:g} for a gigabyte a month.",
        f"All beyond {measured.rows:,} rows is extrapolated.",
    ]


def _store(uri: str) -> GalleryStore:
    identity = ModelIdentity("synthetic", WIDTH, "float32", "synthetic vectors", "benchmarks/gallery_arithmetic.py")
    return GalleryStore.create(uri, identity)


def _write(store: GalleryStore, vectors: np.ndarray, first: int) -> dict[str, Any]:
    """What a worker says that wrote these rows, with paths, hashes and times as crops have them."""
    count, digits = len(vectors), np.random.default_rng(first)
    values = {
        "path": [f"s3://archive/cam_{at % 64:02}/2026-11-01/{at:010}.jpg" for at in range(first, first + count)],
        "hash": [digits.bytes(16).hex() for _ in range(count)],
        "size": digits.integers(2_000, 9_000, count),
        "mtime_ns": 1_795_000_000_000_000_000 + digits.integers(0, 10**13, count),
        "time": 1_795_000_000_000_000 + digits.integers(0, 10**10, count),
        "camera": [f"cam_{at % 64:02}" for at in range(first, first + count)],
    }
    columns = {name: pa.array(values[name]).cast(kind) for name, kind in OWN_COLUMNS.items()}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    batch = pa.table(columns | {REASON: pa.nulls(count, pa.string()), DAMAGED: pa.nulls(count, pa.bool_())})
    (row,) = Write(store.uri, store.schema)(batch).to_pylist()
    return row


def _newest_manifest(store: GalleryStore) -> int:
    """The size of the newest list of files; Lance names it so that it is the first."""
    return min(Path(store.uri, "_versions").glob("*.manifest")).stat().st_size


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="a few files instead of 64")
    known.add_argument("gallery", type=Path, help="what gallery.py --json printed")
    known.add_argument("indexing", type=Path, help="what indexing.py --json printed")
    known.add_argument("--gpu", type=float, default=2000.0, help="images a second that a GPU embeds: an assumption")
    known.add_argument("--core-hour", type=float, default=0.04, help="price, an assumption")
    known.add_argument("--gpu-hour", type=float, default=2.5, help="price, an assumption")
    known.add_argument("--gigabyte-month", type=float, default=0.023, help="price, an assumption")
    return known.parse_args()


def main() -> None:
    asked = options()
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in (asked.gallery, asked.indexing)]
    measured = read_measured(*documents)
    assumed = Assumed(asked.gpu, asked.core_hour, asked.gpu_hour, asked.gigabyte_month)
    sizes = measure_sizes(fragments=4 if asked.quick else 64)
    found = [needs(rows, sizes, measured, assumed) for rows in ROWS]
    report = Report(
        "A gallery by its number of crops",
        ("", *(f"{rows:,}" for rows in ROWS)),
        table(found),
        {
            "needs": [asdict(each) for each in found],
            "sizes": asdict(sizes),
            "measured": asdict(measured),
            "assumed": asdict(assumed),
        },
        notes(sizes, measured, assumed),
    )
    publish(report, survey(measured.cores, packages=("pylance", "pyarrow", "numpy")), as_json=asked.json)


if __name__ == "__main__":
    main()

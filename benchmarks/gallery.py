"""Recall and time of `tiprctl.gallery.searching.finding` by the size of the gallery and by what a filter leaves of it.

python benchmarks/gallery.py                        # from 10,000 to 1,000,000 rows: minutes
python benchmarks/gallery.py --rows 100000
python benchmarks/gallery.py --quick                # 10,000 and 60,000 rows of width 128, seconds

Each search is timed in the way that tiprctl takes, exactly or through the index, and in the other one, which shows
where the one becomes quicker than the other. So an index is built for every gallery here, for the small ones too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _crops import BLOCK, Crops
from _report import Report, errors, megabytes, parser, publish, survey, verdict

from tiprctl.cli.index_session import PROBES
from tiprctl.gallery.keeping.engine import lance
from tiprctl.gallery.keeping.schema import KEY, VECTOR, ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import finding, optimising
from tiprctl.gallery.searching.finding import find
from tiprctl.gallery.searching.vector_index import LEAST_RECALL, read_tuning

TOP = 10
WAYS = {"exact": sys.maxsize, "index": 0}
"""Up to how many rows all are compared, for each way to be taken always."""
FEW = 5
"""Queries of each kind in the way that is not taken, of which some take seconds."""
FIRST = 3
"""Processes whose first search is timed."""
SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001}
"""Of the rows that each camera took; the rest is another's."""
SELECTED = "hundredth"
"""The camera by whose rows it is told what a row takes that a filter leaves."""


@dataclass(frozen=True)
class Case:
    """A gallery of `rows` vectors of `width`, in a folder, asked with `queries` texts and as many images."""

    rows: int
    width: int
    queries: int
    folder: str

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK)

    def parts(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number of the first row, vectors and cameras, block by block."""
        crops = Crops(self.width)
        for block in range(self.blocks):
            first = block * BLOCK
            vectors = crops.block(block, min(BLOCK, self.rows - first))
            yield first, vectors, cameras(block, len(vectors))

    def asked(self) -> dict[str, np.ndarray]:
        crops = Crops(self.width)
        return {"texts": crops.texts(self.blocks, self.queries), "images": crops.images(self.blocks, self.queries)}

    def probes(self) -> np.ndarray:
        """As many texts as the command has, none of them asked afterwards."""
        return Crops(self.width).texts(self.blocks, len(PROBES), draw=1)


@dataclass(frozen=True)
class Made:
    """Seconds to append the rows and to optimise the gallery, what its vector index takes, bytes, and its searching."""

    append_seconds: float
    optimise_seconds: float
    index_bytes: int
    probed_share: float
    refine: int


@dataclass(frozen=True)
class Searched:
    """Of queries with one filter: the share that they found of the ten best rows, and seconds a query.

    Attributes:
        taken: whether this is the way that tiprctl takes.
    """

    filter: str
    exact: bool
    taken: bool
    recall: Mapping[str, float]
    median: float
    p95: float


def cameras(block: int, rows: int) -> np.ndarray:
    drawn = np.random.default_rng([7, block]).random(rows)
    bounds = np.cumsum(list(SHARES.values()))
    return np.array([*SHARES, "rest"])[np.searchsorted(bounds, drawn, side="right")]


def path(row: int) -> str:
    return f"/crops/{row:09d}.jpg"


def make(case: Case) -> Made:
    import pyarrow as pa

    model = ModelIdentity("synthetic", case.width, "float32", "synthetic vectors", "benchmarks/gallery.py")
    store = GalleryStore.create(case.folder, model)
    spent = 0.0
    for first, vectors, taken_by in case.parts():
        paths = [path(row) for row in range(first, first + len(vectors))]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), case.width)
        rows = pa.table({KEY: paths, "camera": taken_by, "vector": column})
        spent += seconds(lambda rows=rows: store.put(rows))
    optimising.EXACT_ROWS = 0
    optimised = seconds(lambda: optimising.optimise(store, probes=case.probes()))
    size = next(one.total_size_bytes for one in store.dataset.describe_indices() if one.field_names == [VECTOR])
    tuning = read_tuning(store)
    return Made(spent, optimised, size, tuning.share, tuning.refine)


def truth(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of the `TOP` best rows for each query `(Q, TOP)`, in any order, by filter and by kind of query.

    All vectors are compared, without tiprctl.
    """
    asked = case.asked()
    queries = np.concatenate(list(asked.values()))
    best = {name: (np.empty((len(queries), 0)), np.empty((len(queries), 0), int)) for name in ("", *SHARES)}
    for first, vectors, taken_by in case.parts():
        scores = queries @ vectors.T
        for name, (known, numbers) in best.items():
            mine = np.flatnonzero(taken_by == name) if name else np.arange(len(vectors))
            known = np.concatenate([known, scores[:, mine]], axis=1)
            numbers = np.concatenate([numbers, np.broadcast_to(first + mine, (len(queries), len(mine)))], axis=1)
            chosen = np.argpartition(-known, min(TOP, known.shape[1]) - 1, axis=1)[:, :TOP]
            best[name] = np.take_along_axis(known, chosen, 1), np.take_along_axis(numbers, chosen, 1)
    return {name: dict(zip(asked, np.split(numbers, len(asked)))) for name, (_, numbers) in best.items()}


@contextmanager
def always(way: str) -> Iterator[None]:
    """Within the block every search is done in this way, where it can be."""
    taken = finding.EXACT_ROWS, finding._SELECTED_ROWS
    finding.EXACT_ROWS = finding._SELECTED_ROWS = WAYS[way]
    try:
        yield
    finally:
        finding.EXACT_ROWS, finding._SELECTED_ROWS = taken


def first_search(case: Case, way: str) -> float:
    """Seconds from opening the gallery to its first answer, in a process that has searched nothing."""
    query = case.asked()["texts"][:1]
    lance()
    with always(way):
        return seconds(lambda: find(GalleryStore.open(case.folder), query, TOP))


def search(case: Case, best: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[list[Searched], int]:
    """Every filter, with the true best rows of `truth`; and the most memory of the process, bytes.

    The way that is not taken comes last, since it may take more memory.
    """
    store = GalleryStore.open(case.folder)
    asked = case.asked()
    taken = [search_filtered(store, asked, name, rows) for name, rows in best.items()]
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    few = {kind: queries[:FEW] for kind, queries in asked.items()}
    found = []
    for one in taken:
        found.append(one)
        with always("index" if one.exact else "exact"):
            other = search_filtered(store, few, one.filter, best[one.filter])
        # The index does not rank as few rows as some filters leave.
        if other.exact != one.exact:
            found.append(replace(other, taken=False))
    return found, memory


def search_filtered(
    store: GalleryStore, asked: Mapping[str, np.ndarray], name: str, best: Mapping[str, np.ndarray]
) -> Searched:
    where = f"camera = '{name}'" if name else None
    find(store, asked["texts"][:1], TOP, where=where)
    recall, spent, exact = {}, [], True
    for kind, queries in asked.items():
        hits = 0
        rows_of_all = best[kind][: len(queries)]
        for query, rows in zip(queries, rows_of_all):
            start = time.perf_counter()
            found = find(store, query[None], TOP, where=where)[0]
            spent.append(time.perf_counter() - start)
            hits += len({path(row) for row in rows}.intersection(found.rows[KEY].to_pylist()))
            exact = found.exact
        recall[kind] = hits / rows_of_all.size
    return Searched(name, exact, True, recall, float(np.median(spent)), float(np.quantile(spent, 0.95)))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alone(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns in a new process, so that its memory and its caches are its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *args).result()


def measure(case: Case) -> tuple[list[tuple[str, ...]], str, dict[str, Any]]:
    """The table's rows, a note and the figures of one gallery."""
    made = alone(make, case)
    best = alone(truth, case)
    first = {way: median(alone(first_search, case, way) for _ in range(FIRST)) for way in WAYS}
    searched, memory = alone(search, case, best)
    note = (
        f"{case.rows:,} rows: appended in {made.append_seconds:.1f} s, optimised in {made.optimise_seconds:.1f} s; "
        f"index of {made.index_bytes / case.rows:.0f} bytes a row, of which {made.probed_share:.0%} are probed and "
        f"{made.refine} times the wanted rows compared exactly; a process that has searched holds {megabytes(memory)}"
    )
    selected = next(one.median for one in searched if one.exact and one.filter == SELECTED)
    note += f"; each of {SHARES[SELECTED] * case.rows:,.0f} rows that a filter leaves takes "
    note += f"{1e6 * selected / (SHARES[SELECTED] * case.rows):.0f} microseconds to compare"
    figures = {**asdict(made), "rows": case.rows, "first_search": first, "memory": memory}
    table = [line(case, one, first) for one in searched]
    return table, note, {**figures, "searched": [asdict(one) for one in searched]}


def line(case: Case, one: Searched, first: Mapping[str, float]) -> tuple[str, ...]:
    """A row of the table."""
    way = "exact" if one.exact else "index"
    return (
        f"{case.rows:,}",
        f"{SHARES[one.filter]:.1%}" if one.filter else "none",
        way if one.taken else f"({way})",
        *(f"{recall:.3f}" for recall in one.recall.values()),
        f"{1000 * one.median:.1f}",
        f"{1000 * one.p95:.1f}",
        "" if one.filter else f"{1000 * first[way]:.0f}",
    )


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="10,000 and 60,000 rows of width 128; the goal is not enforced")
    known.add_argument("--rows", type=int, nargs="+", default=[10_000, 25_000, 50_000, 100_000, 200_000, 1_000_000])
    known.add_argument("--dim", type=int, default=512, help="width of the vectors")
    known.add_argument("--queries", type=int, default=100, help="texts, and as many images")
    known.add_argument("--threads", type=int, default=1)
    known.add_argument("--folder", type=Path, help="where the galleries are made; they are removed afterwards")
    chosen = known.parse_args()
    if chosen.quick:
        chosen.rows, chosen.dim, chosen.queries = [10_000, 60_000], 128, 20
    if min(chosen.dim, chosen.queries, chosen.threads) < 1 or min(chosen.rows) < 1000 * TOP:
        known.error(f"every number is at least 1, and the rows at least {1000 * TOP}")
    return chosen


def main() -> int:
    chosen = options()
    for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LANCE_CPU_THREADS"):
        os.environ[library] = str(chosen.threads)  # read by the processes that are started
    rows, notes, galleries = [], [], []
    for count in chosen.rows:
        with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="gallery-") as folder:
            errors.print(f"{count:,} rows", markup=False)
            table, note, figures = measure(Case(count, chosen.dim, chosen.queries, f"{folder}/gallery.lance"))
        rows += table
        notes.append(note)
        galleries.append(figures)
    report = Report(
        f"The {TOP} best of a gallery of width {chosen.dim}, {chosen.queries} texts and {chosen.queries} images",
        ("rows", "filter leaves", "way", "recall@10 of texts", "of images", "median ms", "p95 ms", "first ms"),
        rows,
        {"galleries": galleries},
        [
            *notes,
            "In brackets: the way that is not taken. First: the first search of a process, once Lance is imported.",
        ],
    )
    publish(report, survey(chosen.threads, packages=("pylance", "pyarrow", "numpy")), as_json=chosen.json)
    return verdict(shortfalls(galleries), enforced=not chosen.quick)


def shortfalls(galleries: list[dict[str, Any]]) -> list[str]:
    """What falls short of the goal, a sentence each."""
    return [
        f"recall@10 of {kind} is {recall:.3f} in {gallery['rows']:,} rows, filter {one['filter'] or 'none'}, "
        f"less than {LEAST_RECALL}"
        for gallery in galleries
        for one in gallery["searched"]
        if one["taken"]
        for kind, recall in one["recall"].items()
        if recall < LEAST_RECALL
    ]


if __name__ == "__main__":
    raise SystemExit(main())

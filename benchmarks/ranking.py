"""Time and memory of the retrieval figures: `tiprctl.metrics` against an argsort of the full similarity matrix.

python benchmarks/ranking.py              # ICFG-PEDES: 19,848 queries over 19,848 images, about 20 hits each
python benchmarks/ranking.py --quick      # a few seconds
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial

import torch
from _report import Measurement, Report, Variant, errors, megabytes, parser, publish, survey, verdict
from torch import Tensor

from tiprctl.metrics import RetrievalMetrics, retrieval_metrics

KS = (1, 5, 10)
LEAST_RATIO, MOST_MEMORY = 5, 1e9
"""How many times as fast as argsort, and in how many bytes beside the features."""

TOLERANCE = 0.01  # percentage points: a product summed in another order may swap two nearly equal scores


@dataclass(frozen=True)
class People:
    """Unit features of a synthetic test split: (Q, D) and (G, D), with their identities (Q,) and (G,)."""

    query_features: Tensor
    gallery_features: Tensor
    query_ids: Tensor
    gallery_ids: Tensor


def make_people(queries: int, gallery: int, width: int, ids: int) -> People:
    """Features scattered around one centre an identity, so widely that about half of the queries rank first."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(ids, width, generator=generator))

    def scattered(labels: Tensor) -> Tensor:
        features = torch.randn(len(labels), width, generator=generator).mul_(3 / width**0.5)
        features.add_(centres[labels])
        return features.div_(features.norm(dim=1, keepdim=True))

    query_ids = torch.randint(ids, (queries,), generator=generator)
    gallery_ids = torch.arange(gallery) % ids
    return People(scattered(query_ids), scattered(gallery_ids), query_ids, gallery_ids)


def by_chunks(people: People, queries: int) -> RetrievalMetrics:
    """Ours."""
    return retrieval_metrics(
        people.query_features[:queries], people.gallery_features, people.query_ids[:queries], people.gallery_ids, ks=KS
    )


def by_argsort(people: People, queries: int) -> RetrievalMetrics:
    """As published evaluations go about it: the whole matrix ordered, then every figure from the ordered matches."""
    similarity = people.query_features[:queries] @ people.gallery_features.T
    order = similarity.argsort(dim=1, descending=True)
    matches = people.gallery_ids[order] == people.query_ids[:queries, None]
    hits_so_far = matches.cumsum(dim=1)
    hits = hits_so_far[:, -1]
    places = torch.arange(1, matches.shape[1] + 1)
    last = hits_so_far.argmax(dim=1) + 1  # the first place at which all hits are counted
    average_precision = (hits_so_far / places * matches).sum(dim=1) / hits
    return RetrievalMetrics(
        recall={k: 100 * (hits_so_far[:, k - 1] > 0).float().mean().item() for k in KS},
        mean_ap=100 * average_precision.mean().item(),
        mean_inp=100 * (hits / last).mean().item(),
        queries=queries,
        unmatched=0,
    )


def agree(one: RetrievalMetrics, other: RetrievalMetrics) -> bool:
    pairs = [(one.recall[k], other.recall[k]) for k in KS]
    pairs += [(one.mean_ap, other.mean_ap), (one.mean_inp, other.mean_inp)]
    # A single query may fall on either side of k.
    return all(abs(a - b) <= max(TOLERANCE, 100 / one.queries) for a, b in pairs)


def best(runs: list[Measurement]) -> Measurement:
    """The fastest time and the largest peak of several runs of the same work."""
    return Measurement(min(run.seconds for run in runs), max(run.peak for run in runs), runs[0].result)


def row(name: str, run: Measurement, ratio: str = "") -> tuple[str, ...]:
    queries = run.result.queries
    per_query = f"{1000 * run.seconds / queries:.3f}"
    return name, f"{queries:,}", f"{run.seconds:.2f}", per_query, megabytes(run.peak), ratio


def as_figures(name: str, run: Measurement) -> dict[str, object]:
    return {"name": name, "seconds": run.seconds, "peak": run.peak, **asdict(run.result)}


def figures(metrics: RetrievalMetrics) -> str:
    recall = ", ".join(f"R@{k} {value:.2f}" for k, value in metrics.recall.items())
    return f"{recall}, mAP {metrics.mean_ap:.2f}, mINP {metrics.mean_inp:.2f}"


def shortfalls(ratio: float, peak: int) -> list[str]:
    """What falls short of the goals, a sentence each."""
    slow = f"tiprctl is {ratio:.1f} times as fast as argsort, less than {LEAST_RATIO}"
    large = f"tiprctl takes {megabytes(peak)} beside the features, more than {megabytes(MOST_MEMORY)}"
    return [*([slow] if ratio < LEAST_RATIO else []), *([large] if peak > MOST_MEMORY else [])]


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="1,000 queries, once; the goals are not enforced")
    known.add_argument("--queries", type=int, default=19_848)
    known.add_argument("--gallery", type=int, default=19_848)
    known.add_argument("--dim", type=int, default=512, help="width of the features")
    known.add_argument("--ids", type=int, default=1000, help="identities; gallery / ids hits a query")
    known.add_argument("--repeat", type=int, default=3, help="times each, in turn; the fastest counts")
    known.add_argument("--threads", type=int, default=1)
    known.add_argument(
        "--reference-queries",
        type=int,
        default=6000,
        help="queries on which the two are compared; the argsort version needs about 750 KB a query",
    )
    chosen = known.parse_args()
    if chosen.quick:
        chosen.queries, chosen.repeat = 1000, 1
    if min(chosen.ids, chosen.queries, chosen.repeat, chosen.threads, chosen.reference_queries) < 1:
        known.error("every number is at least 1")
    if chosen.gallery < max(chosen.ids, *KS):
        known.error("the gallery holds every identity at least once")
    return chosen


def main() -> int:
    chosen = options()
    compared = min(chosen.reference_queries, chosen.queries)
    prepare = partial(make_people, chosen.queries, chosen.gallery, chosen.dim, chosen.ids)
    with (
        closing(Variant(prepare, by_argsort, threads=chosen.threads)) as argsort,
        closing(Variant(prepare, by_chunks, threads=chosen.threads)) as ours,
    ):
        rounds = [(argsort.measure(compared), ours.measure(compared)) for _ in range(chosen.repeat)]
        theirs_part, ours_part = (best(list(runs)) for runs in zip(*rounds))

    ratio = theirs_part.seconds / ours_part.seconds
    peak = ours_part.peak
    rows = [row("argsort", theirs_part), row("tiprctl", ours_part, f"{ratio:.1f} x")]
    found = {"ratio": ratio, "runs": [as_figures("argsort", theirs_part), as_figures("tiprctl", ours_part)]}
    notes = [f"Figures of both: {figures(ours_part.result)}"]
    if compared < chosen.queries:
        # A fresh process: memory that an earlier run left with the allocator would hide some of this one's.
        with closing(Variant(prepare, by_chunks, threads=chosen.threads)) as ours:
            whole = best([ours.measure(chosen.queries) for _ in range(chosen.repeat)])
        rows.append(row("tiprctl", whole))
        found["runs"].append(as_figures("tiprctl", whole))
        peak = max(peak, whole.peak)
        scale = chosen.queries / compared
        notes.append(
            f"The argsort version was not run on all {chosen.queries:,} queries. In proportion it would take "
            f"{theirs_part.seconds * scale:.0f} s and {theirs_part.peak * scale / 1e9:.1f} GB."
        )
    if not agree(theirs_part.result, ours_part.result):
        errors.print(f"The figures differ: {figures(theirs_part.result)} by argsort,", style="bold red")
        errors.print(f"{figures(ours_part.result)} by tiprctl", style="bold red")
        return 1
    report = Report(
        f"Ranking {chosen.gallery:,} gallery items of width {chosen.dim}",
        ("", "queries", "seconds", "ms a query", "extra memory", "faster"),
        rows,
        found,
        notes,
    )
    publish(report, survey(chosen.threads), as_json=chosen.json)
    # Of so little work the fixed costs are the larger part.
    return verdict(shortfalls(ratio, peak), enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())

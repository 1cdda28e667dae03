"""`tiprctl eval`: the figures of runs and checkpoints, beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Device, Json, Rerank, Root, Workers
from tiprctl.cli.sentences import note_reranking
from tiprctl.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tiprctl.data.manifest import Manifest, Split
    from tiprctl.evaluation import EvaluationData, Measurement, Reranked, SplitFeatures
    from tiprctl.models.embedder import Embedder, ModelOrigin
    from tiprctl.sources import Preview


@dataclass(frozen=True)
class Asked:
    """The options that hold for every model."""

    data: list[str] | None
    root: Path | None
    split: str
    rerank: int | None
    workers: int | None
    device: torch.device
    save_ranks: Path | None


@dataclass(frozen=True)
class Task:
    """A model, by the name that the user gave it, and the data to measure it on."""

    model: str
    data: list[tuple[Manifest, Split]]


def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(help="Run folders, checkpoint files or tags.", show_default="runs/latest")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data set, repeatable.", show_default="the run's own")] = None,
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "test",
    rerank: Rerank = None,
    save_ranks: Annotated[
        Path | None, typer.Option(help="Write the first 10 ranks of each query here, one JSON line a query.")
    ] = None,
    json: Json = False,
    root: Root = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Measure R@1/5/10, mAP and mINP, both ways, in percent.

    \b
    tiprctl eval runs/latest
    tiprctl eval runs/a runs/b runs/c --data synth-pedes
    tiprctl eval runs/latest --split val --json
    tiprctl eval ViT-B-16/openai --data cuhk-pedes --save-ranks ranks.jsonl
    tiprctl eval runs/latest --rerank 50
    tiprctl eval best.pth --data cuhk-pedes      a checkpoint of IRRA's or SEN's code
    """
    from tiprctl.recipes import published_rows

    models = models or ["runs/latest"]
    if save_ranks is not None and (len(models) > 1 or len(data or []) > 1):
        raise UsageError(
            "Ranks are saved for one model and one data set", where="--save-ranks", remedy="Name one of each."
        )
    from tiprctl.process_group import joined

    with joined(device, render.last_error) as job:
        measured = list(_measured(models, Asked(data, root, split, rerank, workers, job.device, save_ranks)))

    from tiprctl.evaluation import rows, summaries

    results = [*(row for one in measured for row in rows(one)), *summaries(measured)]
    published = {one.title: published_rows(one.dataset) for one in measured}
    if json:
        asked = {"split": split} if rerank is None else {"split": split, "rerank": rerank}
        render.result_json({**asked, "results": results, "published": published})
        return
    for title, reported in published.items():
        _print_table(title, split, [row for row in results if row["data"] == title], reported)


def _measured(models: list[str], asked: Asked) -> Iterator[Measurement]:
    """Each model on each of its data sets; what cannot be found or written is said before the first is encoded."""
    from tiprctl.files import check_writable

    tasks = [_task(model, asked) for model in models]
    if asked.save_ranks is not None:
        check_writable(asked.save_ranks)
    prepared: dict[tuple[Any, ...], EvaluationData] = {}
    for task in tasks:
        yield from _measure(task, asked, prepared)


def _task(model: str, asked: Asked) -> Task:
    from tiprctl.sources import preview

    if asked.rerank is not None:
        from tiprctl.reranking import check_source

        check_source(model)
    data_sets = _data_sets(preview(model), asked)
    return Task(model, [(manifest, manifest.split(asked.split)) for manifest in data_sets])


def _data_sets(known: Preview, asked: Asked) -> list[Manifest]:
    """The data sets asked for; without any, those that the model learnt from: where they were, or else by name."""
    from tiprctl.data.manifest import FILE_NAME, find_manifest, read_manifest

    own = known.data_root
    if asked.data or asked.root or own is None or not (own / FILE_NAME).is_file():
        return [find_manifest(name, asked.root) for name in asked.data or [known.dataset]]
    return [read_manifest(own)]


def _measure(task: Task, asked: Asked, prepared: dict[tuple[Any, ...], EvaluationData]) -> Iterator[Measurement]:
    """One measurement for each data set; `prepared` keeps the data for models of the same input size."""
    from tiprctl.distributed import first_goes_ahead, first_makes, process
    from tiprctl.evaluation import EvaluationData, Measurement, score, top_hits
    from tiprctl.sources import load_embedder

    with first_goes_ahead():
        embedder = load_embedder(task.model, device=asked.device)
    render.note(f"Model: {embedder.description}")
    for manifest, split in task.data:
        _warn_of_other_data(task.model, embedder.origin, manifest)
        key = (manifest.fingerprint, split.name, embedder.image_size)
        if key not in prepared:
            prepared[key] = EvaluationData(split, embedder.image_size, workers=asked.workers)
            if remark := prepared[key].images.remark:
                render.warning(remark)
        data = prepared[key]
        with render.progress(f"Encoding {manifest.title}", data.items, "items") as advance:
            features = data.encode(embedder, advance)
        reranked = _rerank(embedder, data, features, asked.rerank) if asked.rerank else None
        if asked.save_ranks is not None and process() == 0:
            _save_ranks(asked.save_ranks, top_hits(features, data.split, reranked and reranked.reranking))
        about = (task.model, embedder.origin, manifest.dataset, manifest.title, manifest.fingerprint)
        yield Measurement(*about, first_makes(partial(score, features, data.split)), reranked)


def _rerank(embedder: Embedder, data: EvaluationData, features: SplitFeatures, first: int) -> Reranked:
    """The first images of each caption in their new order, and what is found so; what that cost is told."""
    from tiprctl.evaluation import rerank_shared, score_reranked

    reranking = rerank_shared(embedder, data, features, first, progress=render.progress)
    note_reranking(reranking, len(data.images))
    return score_reranked(features, data.split, reranking)


def _warn_of_other_data(model: str, origin: ModelOrigin, manifest: Manifest) -> None:
    """Warn where data of the kind that the model was trained on are not the same data."""
    known = origin.data_fingerprint
    if known and manifest.dataset == origin.dataset and manifest.fingerprint != known:
        render.warning(
            f"{model} was trained on other data: {origin.data_root} (fingerprint {known[:12]}), "
            f"measured is {manifest.root} (fingerprint {manifest.fingerprint[:12]})"
        )


def _print_table(title: str, split: str, own: list[dict[str, Any]], published: list[dict[str, Any]]) -> None:
    from tiprctl.recipes import FIGURES

    columns = ["model", "way", "chosen on", *((figure, "right") for figure in FIGURES)]
    table = render.table(
        f"{title}, {split} split, percent; t2i: a caption finds its images",
        columns,
        chain.from_iterable(map(_lines, own)),
    )
    render.extend_table(table, "published", chain.from_iterable(map(_lines, published)))
    render.result_table(table)
    unmatched = max((row.get("unmatched", 0) for row in own), default=0)
    if unmatched:
        render.warning(f"{unmatched} queries have no match in the gallery: misses in R@k, left out of mAP and mINP.")


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """A row's cells; below a mean, its standard deviation."""
    from tiprctl.evaluation import DIRECTIONS
    from tiprctl.recipes import FIGURES

    def cells(figures: dict[str, float | None]) -> list[str]:
        return ["–" if figures[name] is None else f"{figures[name]:.2f}" for name in FIGURES]

    way = DIRECTIONS[row["direction"]] + (f", {row['rerank']} re-ranked" if "rerank" in row else "")
    lines = [[row["model"], way, row["selected_on"], *cells(row)]]
    if "std" in row:
        lines.append(["± standard deviation", "", "", *cells(row["std"])])
    return lines


def _save_ranks(file: Path, hits: list[dict[str, Any]]) -> None:
    """One JSON line a caption."""
    from json import dumps

    from tiprctl.files import write_text

    write_text(file, "".join(dumps(line, ensure_ascii=False) + "\n" for line in hits))
    render.note(f"Ranks of {len(hits)} queries written to {file}")

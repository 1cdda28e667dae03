"""`tiprctl eval`: the figures of runs and checkpoints, beside the published ones."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Device, Json, Root, Workers
from tiprctl.errors import UsageError

if TYPE_CHECKING:
    from tiprctl.data.manifest import Manifest
    from tiprctl.evaluation import Evaluation, SplitFeatures
    from tiprctl.models.embedder import Origin

FIGURES = ("R@1", "R@5", "R@10", "mAP", "mINP")
DIRECTIONS = {"text_to_image": "t2i", "image_to_text": "i2t"}


def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(help="Run folders, checkpoint files or tags.", show_default="runs/latest")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data set, repeatable.", show_default="the run's own")] = None,
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "test",
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
    """
    from tiprctl.recipes import PUBLISHED

    models = models or ["runs/latest"]
    if save_ranks is not None and (len(models) > 1 or len(data or []) > 1):
        raise UsageError(
            "Ranks are saved for one model and one data set", where="--save-ranks", remedy="Name one of each."
        )
    rows = [row for model in models for row in _measure(model, data, root, split, device, workers, save_ranks)]
    datasets = list(dict.fromkeys(row["data"] for row in rows))
    if json:
        published = {name: [_published_row(row) for row in PUBLISHED.get(name, ())] for name in datasets}
        render.result_json({"split": split, "results": rows + _summaries(rows), "published": published})
        return
    for name in datasets:
        own = [row for row in rows if row["data"] == name]
        _print_table(name, split, [*own, *_summaries(own)], [_published_row(row) for row in PUBLISHED.get(name, ())])


def _measure(
    model: str,
    data: list[str] | None,
    root: Path | None,
    split: str,
    device: str | None,
    workers: int | None,
    save_ranks: Path | None,
) -> list[dict[str, Any]]:
    """One row for each data set and direction."""
    from tiprctl.checkpoint import load_embedder
    from tiprctl.data.manifest import find_manifest
    from tiprctl.evaluation import EvaluationData, score
    from tiprctl.precision import find_device

    embedder = load_embedder(model, device=find_device(device))
    render.note(f"Model: {embedder.description}")
    rows = []
    for name in data or [embedder.origin.dataset]:
        manifest = find_manifest(name, root)
        prepared = EvaluationData(manifest.split(split), embedder.image_size, workers=workers)
        with render.progress(f"Encoding {manifest.dataset}", prepared.items, "items") as advance:
            features = prepared.encode(embedder, advance)
        result = score(features, prepared.split)
        rows += _rows(model, embedder.origin, manifest.dataset, result)
        if save_ranks is not None:
            _save_ranks(save_ranks, manifest, split, features)
    return rows


def _rows(model: str, origin: Origin, dataset: str, result: Evaluation) -> list[dict[str, Any]]:
    rows = []
    for direction in DIRECTIONS:
        metrics = getattr(result, direction)
        row = {"model": model, "recipe": origin.recipe, "data": dataset}
        row |= {"direction": direction, "selected_on": origin.selected_on}
        row |= {f"R@{k}": round(value, 2) for k, value in metrics.recall.items()}
        row |= {"mAP": round(metrics.mean_ap, 2), "mINP": round(metrics.mean_inp, 2)}
        rows.append(row | {"queries": metrics.queries, "unmatched": metrics.unmatched})
    return rows


def _summaries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over several runs of one recipe on one data set, per direction."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["data"], row["direction"]), []).append(row)
    return [
        {
            "model": f"mean of {len(group)} {recipe} runs",
            "recipe": recipe,
            "data": dataset,
            "direction": direction,
            "selected_on": ", ".join(sorted({row["selected_on"] for row in group})),
            **{figure: round(mean(row[figure] for row in group), 2) for figure in FIGURES},
            "std": {figure: round(stdev(row[figure] for row in group), 2) for figure in FIGURES},
        }
        for (recipe, dataset, direction), group in groups.items()
        if len(group) > 1
    ]


def _published_row(row: Any) -> dict[str, Any]:
    figures = dict(zip(FIGURES, (*row.recall, row.mean_ap, row.mean_inp)))
    return {"model": row.method, "direction": "text_to_image", "selected_on": "test", **figures}


def _print_table(dataset: str, split: str, own: list[dict[str, Any]], published: list[dict[str, Any]]) -> None:
    columns = ["model", "way", "chosen on", *((figure, "right") for figure in FIGURES)]
    table = render.table(
        f"{dataset}, {split} split, percent; t2i: a caption finds its images", columns, map(_cells, own)
    )
    render.extend_table(table, "published", map(_cells, published))
    render.result_table(table)
    unmatched = max((row.get("unmatched", 0) for row in own), default=0)
    if unmatched:
        render.warning(f"{unmatched} queries have no match in the gallery: misses in R@k, left out of mAP and mINP.")


def _cells(row: dict[str, Any]) -> list[str]:
    spread = row.get("std", {})
    figures = [
        "–" if row[figure] is None else f"{row[figure]:.2f}" + (f" ± {spread[figure]:.2f}" if spread else "")
        for figure in FIGURES
    ]
    return [row["model"], DIRECTIONS[row["direction"]], row["selected_on"], *figures]


def _save_ranks(file: Path, manifest: Manifest, split: str, features: SplitFeatures) -> None:
    """One JSON line a caption: the caption, its identity, and the paths, identities and scores of the first ten."""
    from json import dumps

    from tiprctl.files import write_text
    from tiprctl.metrics import top_ranks

    part = manifest.split(split)
    indices, scores = top_ranks(features.text, features.image, 10)
    lines = []
    for caption, pid, row, row_scores in zip(part.captions, part.caption_pids, indices.tolist(), scores.tolist()):
        hits = [
            {"path": str(part.image_paths[i]), "pid": int(part.image_pids[i]), "score": round(score, 4)}
            for i, score in zip(row, row_scores)
        ]
        lines.append(dumps({"caption": caption, "pid": int(pid), "hits": hits}, ensure_ascii=False) + "\n")
    write_text(file, "".join(lines))
    render.note(f"Ranks of {len(lines)} queries written to {file}")

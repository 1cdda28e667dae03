"""`tiprctl eval`: the figures of runs and checkpoints, beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Device, Json, Root, Workers
from tiprctl.errors import UsageError

if TYPE_CHECKING:
    from tiprctl.data.manifest import Manifest
    from tiprctl.evaluation import Measurement
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
    measured = [one for model in models for one in _measure(model, data, root, split, device, workers, save_ranks)]

    from tiprctl.evaluation import rows, summaries

    results = [*(row for one in measured for row in rows(one)), *summaries(measured)]
    datasets = list(dict.fromkeys(row["data"] for row in results))
    published = {name: [_published_row(row) for row in PUBLISHED.get(name, ())] for name in datasets}
    if json:
        render.result_json({"split": split, "results": results, "published": published})
        return
    for name in datasets:
        _print_table(name, split, [row for row in results if row["data"] == name], published[name])


def _measure(
    model: str,
    data: list[str] | None,
    root: Path | None,
    split: str,
    device: str | None,
    workers: int | None,
    save_ranks: Path | None,
) -> list[Measurement]:
    """One measurement for each data set."""
    from tiprctl.evaluation import EvaluationData, Measurement, score, top_hits
    from tiprctl.precision import find_device
    from tiprctl.sources import load_embedder

    embedder = load_embedder(model, device=find_device(device))
    render.note(f"Model: {embedder.description}")
    measured = []
    for manifest in _data_sets(embedder.origin, data, root):
        _warn_of_other_data(model, embedder.origin, manifest)
        prepared = EvaluationData(manifest.split(split), embedder.image_size, workers=workers)
        with render.progress(f"Encoding {manifest.dataset}", prepared.items, "items") as advance:
            features = prepared.encode(embedder, advance)
        result = score(features, prepared.split)
        measured.append(Measurement(model, embedder.origin, manifest.dataset, manifest.fingerprint, result))
        if save_ranks is not None:
            _save_ranks(save_ranks, top_hits(features, prepared.split))
    return measured


def _data_sets(origin: Origin, data: list[str] | None, root: Path | None) -> list[Manifest]:
    """The data sets asked for; without any, the model's own: where it was, or else by its name."""
    from tiprctl.data.manifest import FILE_NAME, find_manifest, read_manifest

    if data or root or origin.data_root is None or not (origin.data_root / FILE_NAME).is_file():
        return [find_manifest(name, root) for name in data or [origin.dataset]]
    return [read_manifest(origin.data_root)]


def _warn_of_other_data(model: str, origin: Origin, manifest: Manifest) -> None:
    """Warn where data of the kind that the model was trained on are not the same data."""
    known = origin.data_fingerprint
    if known and manifest.dataset == origin.dataset and manifest.fingerprint != known:
        render.warning(
            f"{model} was trained on other data: {origin.data_root} (fingerprint {known[:12]}), "
            f"measured is {manifest.root} (fingerprint {manifest.fingerprint[:12]})"
        )


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


def _save_ranks(file: Path, hits: list[dict[str, Any]]) -> None:
    """One JSON line a caption."""
    from json import dumps

    from tiprctl.files import write_text

    write_text(file, "".join(dumps(line, ensure_ascii=False) + "\n" for line in hits))
    render.note(f"Ranks of {len(hits)} queries written to {file}")

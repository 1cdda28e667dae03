"""`tiprctl export`: write a model as ONNX, which queries start with at once and other programs can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Json

if TYPE_CHECKING:
    from tiprctl.exporting import Export
    from tiprctl.models.embedder import Embedder


def export(
    run: Annotated[
        str | None,
        typer.Argument(help="A run, a checkpoint, or a pretrained CLIP; without it, the newest finished run."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to.", show_default="export/ in the run; FILE.export beside a file; exports/TAG"
        ),
    ] = None,
    float16: Annotated[bool, typer.Option("--float16", help="Compute in float16: half the size, less exact.")] = False,
    json: Json = False,
) -> None:
    """Write a model as two ONNX graphs, checked against torch.

    \b
    tiprctl export runs/latest
    tiprctl export ViT-B-16/openai
    tiprctl export runs/latest --float16 --output deploy/

    Where an export lies in its own folder, `query` and `index` use it and start
    without torch. docs/deploy.md tells how other programs run it.
    """
    import torch

    from tiprctl.exporting import export_model
    from tiprctl.sources import load_embedder
    from tiprctl.vector_model import export_folder

    folder = output or export_folder(run)
    embedder = load_embedder(run, device=torch.device("cpu"))
    render.note(f"Model: {embedder.description}")
    written = export_model(embedder, folder, float16=float16, tell=render.note)
    _print(written, embedder, json)


def _print(written: Export, embedder: Embedder, json: bool) -> None:
    from tiprctl.files import spell_bytes

    if json:
        render.result_json(
            {
                "model": embedder.description,
                "fingerprint": embedder.fingerprint,
                "folder": str(written.folder),
                "precision": written.precision,
                "files": written.files,
                "differences": written.differences,
            }
        )
        return
    rows = [(name, spell_bytes(written.size(name)), f"{worst:.1e}") for name, worst in written.differences.items()]
    columns = ["graph", ("size", "right"), ("differs from torch by", "right")]
    render.result_table(render.table(f"{written.folder} ({written.precision})", columns, rows))

"""Drawing synth-pedes where it does not stand yet, and never over anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiprctl.data.catalog import data_home
from tiprctl.data.manifest import FILE_NAME
from tiprctl.data.records import DataSet
from tiprctl.data.synth_pedes import ANNOTATIONS, COMMANDS, Drawing
from tiprctl.data.synth_pedes.rendering import generate
from tiprctl.errors import InputError
from tiprctl.files import write_text

RECORD_FILE = "synth.json"
"""Beside the drawings: which arguments and version drew them, and whether they are complete."""


def drawing_folder(root: Path | None, dataset: DataSet) -> Path:
    """Where `dataset` stands or will stand: `root` when new, empty or drawn already; otherwise its folder in it."""
    if root is None:
        return data_home() / dataset.folder
    free = not root.is_dir() or not any(root.iterdir())
    return root if free or (root / RECORD_FILE).is_file() else root / dataset.folder


def draw(
    folder: Path, drawing: Drawing, *, force: bool, workers: int, on_image: Callable[[int], None] = lambda count: None
) -> bool:
    """Draw the data set into `folder` unless the same one stands there; tells whether anything was drawn.

    Args:
        force: draw again, also over a set drawn with other arguments.
        workers: processes that draw.
        on_image: told how many more images are done.

    Raises:
        InputError: other files, or a set drawn with other arguments, are in the way.
    """
    standing = _standing(folder)
    if standing == drawing.record and not force:
        return False
    if standing is not None and standing["complete"] and not force:
        command = COMMANDS[drawing.dataset.folder]
        raise InputError(
            f"Another synth-pedes stands here, drawn with {_arguments(standing)}",
            where=folder,
            remedy=f"Draw it anew with `{command} --root {folder} --force`, or choose another folder with --root.",
        )
    # A manifest of the old drawings, or a record that calls half a set complete, must not outlive an interruption.
    write_text(folder / RECORD_FILE, json.dumps({**drawing.record, "complete": False}))
    (folder / FILE_NAME).unlink(missing_ok=True)
    generate(folder, drawing, workers=workers, on_image=on_image)
    write_text(folder / RECORD_FILE, json.dumps(drawing.record))
    return True


def _standing(folder: Path) -> dict[str, Any] | None:
    """What the folder's record says; None for a folder without drawings."""
    file = folder / RECORD_FILE
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            remedy = "Choose a new or empty folder with --root."
            raise InputError("The folder holds files that are no synth-pedes", where=folder, remedy=remedy)
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        whole = record["complete"] is True and (folder / ANNOTATIONS).is_file()
        # Records of former versions, which drew nothing hard, do not say so.
        return {**record, "hard": record.get("hard", False), "complete": whole}
    except (ValueError, TypeError, KeyError) as error:
        remedy = "Remove the folder, then draw it again."
        raise InputError("The record of the drawings is damaged", where=file, remedy=remedy) from error


def _arguments(record: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items() if key != "complete")

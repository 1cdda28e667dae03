"""The data sets by name, and where on disk they lie. Imports neither torch nor pandas."""

from __future__ import annotations

import os
from pathlib import Path

from tiprctl.data.cuhk_pedes import CUHK_PEDES
from tiprctl.data.folder import FOLDER
from tiprctl.data.icfg_pedes import ICFG_PEDES
from tiprctl.data.records import DataSet
from tiprctl.data.rstpreid import RSTPREID
from tiprctl.data.synth_pedes import SYNTH_PEDES
from tiprctl.errors import InputError, unknown_name

DATA_SETS = {each.name: each for each in (SYNTH_PEDES, CUHK_PEDES, ICFG_PEDES, RSTPREID, FOLDER)}

ROOT_VARIABLE = "TIPRCTL_DATA"


def data_set(name: str) -> DataSet:
    """The data set of that name, in any case of letters.

    Raises:
        UsageError: there is none; the choices are listed.
    """
    if name.lower() not in DATA_SETS:
        raise unknown_name("data set", name, DATA_SETS)
    return DATA_SETS[name.lower()]


def data_home() -> Path:
    """The folder that holds the data sets when none is named: `$TIPRCTL_DATA`, else `./data`."""
    return Path(os.environ.get(ROOT_VARIABLE) or "data")


def locate(dataset: DataSet, root: Path | None, annotation: Path | None = None) -> tuple[Path, Path]:
    """The folder of a data set and its annotation file.

    Args:
        root: its folder, or a folder that holds it under its usual name, if it has one; default `data_home()`.
        annotation: the annotation file, where it is not in the folder under one of its usual names.

    Raises:
        InputError: there is no such folder or file; says where to get the set and how to lay it out.
    """
    given = data_home() if root is None else root
    if annotation is not None:
        if not annotation.is_file():
            raise InputError("There is no such annotation file", where=annotation, remedy="Check the path.")
        if not given.is_dir():
            raise _missing(dataset, given)
        return _child(given, dataset.folder) or given, annotation
    for folder in places(dataset, root):
        for name in dataset.annotations:
            if (folder / name).is_file():
                return folder, folder / name
    raise _missing(dataset, given)


def places(dataset: DataSet, root: Path | None) -> list[Path]:
    """The folders where a data set may lie: `root`, default `data_home()`, and the one of its usual name in there."""
    given = data_home() if root is None else root
    child = _child(given, dataset.folder)
    return [given] if child is None else [given, child]


def _child(folder: Path, name: str | None) -> Path | None:
    """The subfolder of that name, in any case of letters."""
    if name is None or not folder.is_dir():
        return None
    return next(
        (each for each in sorted(folder.iterdir()) if each.name.lower() == name.lower() and each.is_dir()), None
    )


def _missing(dataset: DataSet, given: Path) -> InputError:
    file = dataset.annotations[0]
    if dataset.folder is None:
        remedy = "Name the images' folder with --root and the table of captions with --captions."
        return InputError(f"There is no {file} with captions of your own images", where=given, remedy=remedy)
    folder = given if given.name.lower() == dataset.folder.lower() else given / dataset.folder
    return InputError(
        f"{dataset.name} is not there: no {file}",
        where=folder,
        remedy=f"Where to get it: {dataset.source}. Put {file} and imgs/ side by side in that folder, or name theirs "
        "with --root.",
    )

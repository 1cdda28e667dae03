"""Lance datasets by their places: whether one is there, and making one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.keeping.engine import WRITABLE, brief, faults, lance, signs
from tiprctl.gallery.keeping.places import is_remote

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def exists(uri: str | Path) -> bool:
    """Whether a Lance dataset is there.

    Raises:
        InputError: the object store cannot be reached.
    """
    uri = str(uri)
    if not is_remote(uri):
        return any(Path(uri).glob("_versions/*.manifest"))
    try:
        lance().dataset(uri)
    except (OSError, ValueError) as error:
        if "not found" in signs(error, uri).lower():
            return False
        raise InputError(
            f"The gallery cannot be reached: {brief(error)}", where=uri, remedy="Check the address and the credentials."
        ) from error
    return True


def create(uri: str, schema: pa.Schema) -> None:
    """An empty dataset, unless there already is one, or another process is quicker.

    Raises:
        UsageError: there is something else in its place. InputError: it cannot be written.
    """
    if not exists(uri):
        with faults(uri, WRITABLE):
            _create_local(Path(uri), schema) if not is_remote(uri) else _create_remote(uri, schema)


def missing(uri: str) -> InputError:
    """The error that there is no gallery."""
    if not is_remote(uri) and Path(uri).exists():
        return InputError("This is no gallery", where=uri, remedy="Name one that tiprctl index add has made.")
    return InputError("There is no gallery", where=uri, remedy=f"Make it: tiprctl index add DIR --gallery {uri}.")


def _create_local(folder: Path, schema: pa.Schema) -> None:
    """It is renamed into place, because two datasets that Lance creates at once in one place overwrite each other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
        lance().write_dataset(schema.empty_table(), f"{temporary}/dataset", mode="create")
        try:
            os.rename(f"{temporary}/dataset", folder)
        except OSError as error:
            if exists(folder):
                return
            if error.errno in _TAKEN:
                raise UsageError(
                    "There is something else in the gallery's place",
                    where=folder,
                    remedy="Name a new folder, as gallery.lance.",
                ) from error
            raise


def _create_remote(uri: str, schema: pa.Schema) -> None:
    try:
        lance().write_dataset(schema.empty_table(), uri, mode="create")
    except OSError:
        if not exists(uri):
            raise

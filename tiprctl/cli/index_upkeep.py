"""`tiprctl index status`, `remove` and `optimise`: look after an indexed gallery."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tiprctl.cli import render
from tiprctl.cli.index_session import GalleryName, rebuild
from tiprctl.cli.options import Device, Json
from tiprctl.errors import InputError, TiprError, UsageError
from tiprctl.files import spell_bytes

if TYPE_CHECKING:
    from tiprctl.gallery.keeping.removing import Chosen
    from tiprctl.gallery.keeping.store import GalleryStore
    from tiprctl.gallery.searching.vector_index import Tuning
    from tiprctl.gallery.status import Status
    from tiprctl.vector_model import VectorModel

CAMERAS = 8
"""How many cameras the table names; `--json` lists them all."""


def status(gallery: GalleryName, json: Json = False) -> None:
    """Tell what a gallery holds: rows, cameras, times, its model, its index, and what is unfinished.

    tiprctl index status --gallery gallery.lance
    tiprctl index status --gallery gallery.lance --json
    """
    from tiprctl.gallery.keeping.store import GalleryStore
    from tiprctl.gallery.status import read_status

    found = read_status(GalleryStore.open(gallery))
    if json:
        render.result_json(found.as_document())
    else:
        render.result_table(render.table(None, ["", gallery], _lines(found)))


def remove(
    gallery: GalleryName,
    paths: Annotated[list[str] | None, typer.Argument(help="Images, or folders with all that is below them.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Rows of which this holds, as in \"camera = 'cam_a'\".")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Take rows out of a gallery; the image files stay where they are.

    tiprctl index remove crops/cam_a crops/7.jpg --gallery gallery.lance
    tiprctl index remove --where "time < '2024-01-01'" --gallery gallery.lance

    Both together take out the rows below the paths of which the expression holds.
    It asks first; a script says --yes, unless it names each image itself.
    """
    from tiprctl.gallery.keeping.removing import remove_chosen, rows_of
    from tiprctl.gallery.keeping.store import GalleryStore

    if not paths and where is None:
        raise UsageError("Nothing is named that is to be removed", remedy="Name paths, or rows with --where.")
    store = GalleryStore.open(gallery)
    chosen = rows_of(store, paths or [], where)
    for path in chosen.missing:
        render.warning(f"No row to remove: {path}")
    for path in chosen.unmatched:
        render.warning(f"No row at or below {path} passes --where")
    if paths and set(paths) == set(chosen.missing):
        raise InputError(
            "There is no such row in the gallery", where=gallery, remedy="tiprctl index status tells more."
        )
    if chosen.keys and not yes:
        _confirm(chosen, len(store))
    removed = remove_chosen(store, chosen, paths or [], where)
    if json:
        document = {"gallery": gallery, "removed": removed, "rows": len(store)}
        render.result_json({**document, "missing": chosen.missing, "unmatched": chosen.unmatched})
    else:
        render.result_line(f"{gallery}: {removed:,} removed; {len(store):,} rows")


def _confirm(chosen: Chosen, rows: int) -> None:
    """Ask before the rows are removed.

    Raises:
        UsageError: nobody can be asked, and of some rows a folder or an expression was named.
    """
    if sys.stdin.isatty():
        typer.confirm(f"Remove {len(chosen.keys):,} of {rows:,} rows?", abort=True, err=True)
    elif chosen.unnamed:
        raise UsageError(
            f"{len(chosen.keys):,} of {rows:,} rows would be removed, and nobody can be asked",
            where="index remove",
            remedy="Add --yes.",
        )


def optimise(gallery: GalleryName, device: Device = None, json: Json = False) -> None:
    """Put a gallery in order: merge its files, rebuild its indexes, measure their recall, remove old versions.

    tiprctl index optimise --gallery gallery.lance

    Add and sync do this by themselves where it is time to.
    """
    from tiprctl.gallery.keeping.store import GalleryStore

    store = GalleryStore.open(gallery)
    done = rebuild(store, _own_model(store, device))
    if json:
        render.result_json({"gallery": gallery, **asdict(done)})
        return
    index = f"index {done.index}{_recall(done.tuning)}" if done.tuning else "searched exactly, no index"
    fewer = "1 file" if done.files_joined == 1 else f"{done.files_joined:,} files"
    freed = f"{fewer} fewer, {spell_bytes(done.bytes_freed)} freed"
    render.result_line(f"{gallery}: {done.rows:,} rows; {index}; {freed}")


def _own_model(store: GalleryStore, device: str | None) -> VectorModel | None:
    """The model that the gallery was indexed with; None, with a warning, where it is no more."""
    from tiprctl.cli.own_model import own_model
    from tiprctl.vector_model import load_vector_model

    try:
        return own_model(store.identity, partial(load_vector_model, device=device, tell=render.warning))
    except TiprError as error:
        render.warning(f"The recall for sentences is not measured: {error.what}")
        return None


def _lines(found: Status) -> list[tuple[str, str]]:
    """The rows of the table."""
    cameras = ", ".join(f"{name} ({count:,})" for name, count in list(found.cameras.items())[:CAMERAS])
    more = len(found.cameras) - CAMERAS
    lines = [
        ("rows", f"{found.rows:,}"),
        ("cameras", (cameras or "none") + (f" and {more:,} more" if more > 0 else "")),
        ("times", f"{found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M}" if found.first else "none"),
        ("columns", ", ".join(f"{name} ({kind})" for name, kind in found.columns.items()) or "none"),
        ("model", f"{found.model.description}; {found.model.width} numbers, {found.model.precision}"),
        ("index", _index(found)),
        ("versions", f"{found.versions:,}"),
        ("on disk", "not told of an object store" if found.bytes is None else spell_bytes(found.bytes)),
        *(("from", one.origin.name) for one in found.origins),
        *(("unfinished", one) for one in found.unfinished),
    ]
    return lines


def _index(found: Status) -> str:
    if found.indexed is None:
        return found.needs or "none needed: every row is compared"
    missing = f"{found.unindexed_share:.1%} of all rows are not in it" if found.unindexed_share else "no row is missing"
    state = f"{found.indexed:,} rows, {missing}{_recall(found.tuning)}"
    return f"{state}; to be brought up to date: {found.needs}" if found.needs else state


def _recall(tuning: Tuning | None) -> str:
    """What was measured of the index, to follow what else is told of it."""
    if tuning is None or tuning.recall is None:
        return ""
    return f", recall@10 {tuning.recall:.3f}" + ("" if tuning.suffices else ", too little: every row is compared")

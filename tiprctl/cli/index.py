"""`tiprctl index add`, `sync` and `watch`: bring an indexed gallery up to date with images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tiprctl.cli import render
from tiprctl.cli.index_session import GalleryName, IndexOptions, named, open_session, reading_of
from tiprctl.cli.options import Device, Json, Workers
from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.places import is_remote

Model = Annotated[
    str | None,
    typer.Option(
        help="A run, a checkpoint, an export or a pretrained CLIP.",
        show_default="the gallery's own, else the newest finished run",
    ),
]
CameraFrom = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="Take cameras from the paths, as in '{camera}/*'.", show_default="as before"),
]
TimeFrom = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN|exif",
        help="Take times from the paths, as in '*_{time:%Y%m%d_%H%M%S}*', or from the pictures: exif.",
        show_default="as before, else the files' times",
    ),
]
Metadata = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A CSV file of further columns, with a column path.", show_default="as before"),
]
FollowLinks = Annotated[
    bool | None,
    typer.Option(
        "--follow-links/--no-follow-links", help="Follow links out of the folder.", show_default="as before, else not"
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="How many images the model takes at once.")]


def add(
    source: Annotated[
        str, typer.Argument(metavar="DIR|LIST", callback=named, help="A folder, an image, or a list of images.")
    ],
    gallery: GalleryName,
    model: Model = None,
    camera_from: CameraFrom = None,
    time_from: TimeFrom = None,
    metadata: Metadata = None,
    follow_links: FollowLinks = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Embed in this process, or on a Ray cluster.")] = (
        "local"
    ),
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster, as auto or ray://…; needs --engine ray.")
    ] = None,
    device: Device = None,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Add images to a gallery: those that are new, or changed since they were added.

    tiprctl index add crops/ --gallery gallery.lance
    tiprctl index add crops/ --gallery gallery.lance --model runs/latest
    tiprctl index add crops/ --gallery gallery.lance --camera-from '{camera}/*'
    tiprctl index add crops/ --gallery gallery.lance --camera-from 'cam{camera}_*' --time-from '*_{time:%Y%m%d-%H%M%S}*'
    tiprctl index add crops/ --gallery gallery.lance --time-from exif --metadata shifts.csv
    tiprctl index add data/CUHK-PEDES/manifest.parquet --gallery gallery.lance

    A list is a .txt file with a path a line, or a .csv or .parquet file with a
    column path, whose other columns are added too.

    A pattern is compared with the end of each path, folder by folder: {camera}
    is the camera's name, {time:FORMAT} a time or a part of it, * anything
    within a folder, ? one character. What was said of a folder is remembered;
    none takes it back.

    An interrupted add goes on when the same command is given again.
    """
    if (address is not None and engine != "ray") or (is_remote(source) and engine != "ray"):
        where, what = ("--address", "A cluster") if address is not None else (source, "An object store")
        raise UsageError(f"{what} is for Ray alone", where=where, remedy="Add --engine ray.")
    options = IndexOptions(source, gallery, model, camera_from, time_from, metadata, follow_links, device)
    if engine == "ray":
        from tiprctl.cli.index_cluster import add_with_ray

        add_with_ray(options, address, batch_size, workers, json=json)
        return
    session = open_session(options)
    changes = session.bring(reading_of(batch_size, workers))
    session.finish(changes, json=json)


def sync(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", callback=named, help="The folder that the gallery is to match.")
    ],
    gallery: GalleryName,
    model: Model = None,
    camera_from: CameraFrom = None,
    time_from: TimeFrom = None,
    metadata: Metadata = None,
    follow_links: FollowLinks = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Drop images though they are most of the folder's.")] = False,
    device: Device = None,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Make a gallery match a folder: add what is new, embed again what changed, drop what was deleted.

    tiprctl index sync crops/ --gallery gallery.lance
    tiprctl index sync crops/ --gallery gallery.lance --yes

    A file that was moved or touched is not embedded again. Where more than half
    of the folder's images are no more, nothing is done without --yes: the folder
    may not be mounted.
    """
    options = IndexOptions(folder, gallery, model, camera_from, time_from, metadata, follow_links, device)
    _refuse_list(folder, "sync")
    session = open_session(options, allow_empty=True)
    changes = session.bring(reading_of(batch_size, workers), drop=True, drop_many=yes)
    session.finish(changes, json=json)


def watch(
    folder: Annotated[str, typer.Argument(metavar="DIR", callback=named, help="The folder that is filled.")],
    gallery: GalleryName,
    model: Model = None,
    camera_from: CameraFrom = None,
    time_from: TimeFrom = None,
    metadata: Metadata = None,
    follow_links: FollowLinks = None,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the folder.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="End after two looks.")] = False,
    device: Device = None,
    batch_size: BatchSize = 64,
    workers: Workers = None,
) -> None:
    """Add images to a gallery as they arrive in a folder, until Ctrl-C.

    tiprctl index watch crops/ --gallery gallery.lance
    tiprctl index watch /mnt/cameras --gallery gallery.lance --camera-from '{camera}/*' --every 60

    A file is added once two looks find it with the same size and time, so that
    half-written ones wait. Deleted files keep their rows: sync drops them.
    """
    from tiprctl.gallery.filling.walking import list_images
    from tiprctl.gallery.filling.watching import watch as look_again

    options = IndexOptions(folder, gallery, model, camera_from, time_from, metadata, follow_links, device)
    _refuse_list(folder, "watch")
    session = open_session(options, allow_empty=True, watching=True)
    follow = session.origin.follow_links
    reading = reading_of(batch_size, workers)
    render.note(f"Watching {folder} every {every:g} s; Ctrl-C ends it.")
    try:
        for changes in look_again(
            lambda: list_images(folder, follow_links=follow, allow_empty=True),
            lambda listing: session.bring(reading, listing=listing),
            every=every,
            once=once,
            tell=render.warning,
        ):
            if changes.added or changes.updated or changes.unreadable:
                session.finish(changes, json=False)
    except KeyboardInterrupt:
        render.note("No longer watching; what arrived until now is in the gallery.")


def _refuse_list(folder: str, command: str) -> None:
    if Path(folder).is_file():
        raise UsageError(
            f"tiprctl index {command} takes a folder", where=folder, remedy="Add files with tiprctl index add."
        )

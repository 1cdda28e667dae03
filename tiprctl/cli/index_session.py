"""What the commands of `tiprctl index` share: the gallery, its model, the images, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from tiprctl.gallery.filling.adding import Changes, Reading
    from tiprctl.gallery.filling.inputs import Input
    from tiprctl.gallery.filling.listing import Listing
    from tiprctl.gallery.filling.metadata import Describer, MetadataTable
    from tiprctl.gallery.filling.origins import Origin
    from tiprctl.gallery.keeping.store import GalleryStore
    from tiprctl.gallery.searching.optimising import Optimised
    from tiprctl.vector_model import VectorModel

NAMED = 3
"""How many skipped files are named in the warning; `--json` lists them all."""
NONE = "none"
"""What takes back a pattern or a table that the gallery remembers."""
PROBES = [
    f"{who} {wearing} {carrying}"
    for who in ("a man", "a woman", "a young man with short hair", "a woman with long hair", "an old person", "a girl")
    for wearing in ("in a black coat", "in a red jacket and jeans", "wearing a white shirt and shorts", "in a dress")
    for carrying in ("with a backpack", "carrying a handbag", "without a bag")
]
"""Descriptions by which the recall for sentences is measured: they lie elsewhere in the space than images."""


def named(value: str) -> str:
    """Refuse an empty name, as of a variable that is not set: it would mean the working folder."""
    if not value.strip():
        raise typer.BadParameter("It is empty: is a variable not set?")
    return value


GalleryName = Annotated[
    str, typer.Option("--gallery", callback=named, help="The gallery, as gallery.lance or s3://bucket/it.lance.")
]


@dataclass(frozen=True)
class IndexOptions:
    """What the commands have in common, as the user gave it."""

    source: str
    gallery: str
    model: str | None
    camera_from: str | None
    time_from: str | None
    metadata: Path | None
    follow_links: bool | None
    device: str | None


@dataclass
class Session:
    """A gallery with what is to come into it; the images are None where they are listed as they are taken."""

    store: GalleryStore
    model: VectorModel
    origin: Origin
    describer: Describer
    images: Input | None
    options: IndexOptions

    def bring(
        self, reading: Reading, *, listing: Listing | None = None, drop: bool = False, drop_many: bool = False
    ) -> Changes:
        """Bring the gallery up to date with the images, or with those of another listing of the same folder.

        Of another listing, what was said of the folder since the session began counts.
        """
        from tiprctl.gallery.filling.adding import EmbeddingInterrupted
        from tiprctl.gallery.filling.bringing import bring

        if listing is not None:
            self._describe_as_said_now()
        try:
            return bring(
                self.store,
                self.origin,
                listing or self.images.listing,
                self.model,
                replace(reading, describer=self.describer),
                drop=drop,
                drop_many=drop_many,
            )
        except EmbeddingInterrupted as interrupt:
            render.warning(f"{interrupt}; the same command goes on from there.")
            raise

    def _describe_as_said_now(self) -> None:
        """Take what other commands said of the folder, and the table of metadata, which may grow with the folder.

        Where it cannot be read, as while it is being written, it is told of and the former one is kept.
        """
        from tiprctl.gallery.filling.inputs import root_of

        try:
            self.store.refresh()
            root = root_of(Path(self.options.source))
            origin = describe_origin(self.options, self.store, self.origin.name, root)
            if origin != self.origin:
                self.origin, self.describer = origin, origin.describer(types=self.store.user_types)
        except (InputError, UsageError) as error:
            render.warning(f"The table of metadata is taken as it was before. {error.what}: {error.where}")

    def finish(self, changes: Changes, *, json: bool) -> None:
        """Tell what was done, and then, since a full disk may end that, rebuild the index where it is time to."""
        from tiprctl.gallery.searching.optimising import unindexed

        warn_of(changes)
        if json:
            document = {"gallery": self.store.uri, "model": self.model.description, "rows": len(self.store)}
            counts = {name: value for name, value in asdict(changes).items() if isinstance(value, int)}
            skipped = [asdict(one) for one in changes.unreadable]
            unmatched = [
                {"option": f"--{one.pattern.fact}-from", "path": one.path, "count": one.count}
                for one in changes.unmatched
            ]
            render.result_json(
                {
                    **document,
                    **counts,
                    "index_due": unindexed(self.store) is not None,
                    "skipped": skipped,
                    "unmatched": unmatched,
                }
            )
        else:
            render.result_line(f"{self.store.uri}: {spell(changes)}; {len(self.store):,} rows")
        keep_indexed(self.store, self.model)


def open_session(options: IndexOptions, *, allow_empty: bool = False, watching: bool = False) -> Session:
    """The gallery, made where there is none, the model and the images; tells which they are.

    Args:
        watching: whether the folder is being filled, so that what a pattern is for may come later.

    Raises:
        UsageError: the options do not fit the gallery. InputError: there are no images, or no model.
    """
    from tiprctl.gallery.filling.bringing import superseded
    from tiprctl.gallery.filling.inputs import name_of, read_input, root_of

    known, source = find_store(options), Path(options.source)
    origin = describe_origin(options, known, name_of(source), root_of(source))
    images = read_input(source, follow_links=origin.follow_links, allow_empty=allow_empty)
    if images.table:
        origin = origin.with_own_table(named=options.metadata is not None)
    describer = origin.describer(images.table, known.user_types if known else None)
    # A table that was named for a folder above has rows of images that are not below this one.
    if origin.metadata and origin.metadata_root == images.listing.root_key:
        warn_of_rows_beside(origin.metadata, describer.table, images.listing)
    model = load_model(options, known)
    # The images of a list, or the first that a watch takes, may well be odd ones.
    keys = images.listing.known_as if images.listing.whole and not watching else ()
    store = open_store(options, known, model, describer, keys)
    for name in superseded(store, origin):
        render.warning(f"What was said of {name} is forgotten: its images are described as those of {origin.name}.")
    render.note(f"Images: {len(images.listing.images):,} in {options.source}; gallery: {len(store):,} rows")
    return Session(store, model, origin, describer, images, options)


def find_store(options: IndexOptions) -> GalleryStore | None:
    """The gallery, where there is one."""
    from tiprctl.gallery.keeping.datasets import exists
    from tiprctl.gallery.keeping.store import GalleryStore

    return GalleryStore.open(options.gallery) if exists(options.gallery) else None


def open_store(
    options: IndexOptions, known: GalleryStore | None, model: VectorModel, describer: Describer, keys: Iterable[str]
) -> GalleryStore:
    """The gallery that is known, else a new one.

    Args:
        keys: paths of images that are to come into it, of which a pattern matches some, lest a mistake makes a gallery.

    Raises:
        UsageError: it is of another model, or a pattern matches none of them.
    """
    from tiprctl.gallery.filling.adding import check_patterns
    from tiprctl.gallery.keeping.schema import ModelIdentity
    from tiprctl.gallery.keeping.store import GalleryStore

    render.note(f"Model: {model.description}")
    if known is None:
        check_patterns(describer, keys, new=True)
        return GalleryStore.create(options.gallery, ModelIdentity.of(model), describer.types)
    known.check_model(model)
    return known


def describe_origin(options: IndexOptions, store: GalleryStore | None, name: str, root: str) -> Origin:
    """What the user says of the images, whose paths are below `root`; else what the gallery remembers."""
    from tiprctl.gallery.filling.origins import Origin, recall_for

    remembered = recall_for(name, store.settings()) if store else None
    origin = remembered.origin if remembered else Origin(name)
    said = {"camera_from": options.camera_from, "time_from": options.time_from}
    said["metadata"] = options.metadata and (NONE if str(options.metadata) == NONE else str(options.metadata.resolve()))
    if said["metadata"]:
        said["metadata_root"] = root
    changed = {option: None if value == NONE else value for option, value in said.items() if value is not None}
    if options.follow_links is not None:
        changed["follow_links"] = options.follow_links
    return replace(origin, **changed).as_read()


def load_model(options: IndexOptions, store: GalleryStore | None) -> VectorModel:
    """The model named, else the gallery's own, else, of a new gallery, that of the newest finished run."""
    from tiprctl.cli.own_model import own_model
    from tiprctl.vector_model import load_vector_model

    load = partial(load_vector_model, device=options.device, bulk=True, tell=render.warning)
    return load(options.model) if options.model or store is None else own_model(store.identity, load)


def warn_of_rows_beside(file: str, table: MetadataTable, listing: Listing) -> None:
    """Tell of rows of the table of metadata whose image is not there."""
    beside = table.beside(listing.keys)
    if beside:
        more = f" and {len(beside) - 1:,} more" if len(beside) > 1 else ""
        render.warning(f"{file} has rows of images that are not there: {beside[0]}{more}.")


def warn_of(changes: Changes) -> None:
    """Tell what was skipped and what no pattern matches."""
    if changes.unreadable:
        named = ", ".join(f"{one.path} ({one.reason})" for one in changes.unreadable[:NAMED])
        more = len(changes.unreadable) - NAMED
        render.warning(f"{len(changes.unreadable):,} skipped: {named}" + (f" and {more:,} more" if more > 0 else ""))
    for one in changes.unmatched:
        whose = "its" if one.count == 1 else "their"
        instead = "camera is null" if one.pattern.fact == "camera" else "time is the file's"
        render.warning(f"{one}: {whose} {instead}.")


def spell(changes: Changes) -> str:
    """The changes in a line."""
    parts = [f"{changes.added:,} added", f"{changes.updated:,} updated", f"{changes.removed:,} removed"]
    parts.append(f"{changes.unchanged:,} unchanged")
    for count, what in (
        (changes.reused, "not embedded again, since only their name or time changed"),
        (changes.elsewhere, "added by another process meanwhile"),
        (changes.described, "described anew"),
        (len(changes.unreadable), "skipped"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    return ", ".join(parts)


def keep_indexed(store: GalleryStore, model: VectorModel | None = None) -> bool:
    """Put the gallery in order where it is time to and others leave the time, and tell why; whether its index was
    rebuilt."""
    from tiprctl.gallery.keeping.engine import ConflictError
    from tiprctl.gallery.keeping.upkeep import untidy
    from tiprctl.gallery.searching.optimising import tidy, unindexed

    try:
        if reason := unindexed(store):
            render.note(f"Index: {reason}")
            rebuild(store, model)
            return True
        if reason := untidy(store):
            render.note(f"Upkeep: {reason}")
            tidy(store, lambda step: render.note(f"{step} …"))
    except ConflictError:
        render.warning("The gallery is put in order another time: other processes are writing it.")
    return False


def rebuild(store: GalleryStore, model: VectorModel | None) -> Optimised:
    """Put the gallery in order; the recall is measured for sentences too, where there is a model."""
    from tiprctl.gallery.searching.optimising import optimise as put_in_order

    probes = model.embed_texts(PROBES) if model else None
    return put_in_order(store, probes=probes, notes=lambda step: render.note(f"{step} …"))


def reading_of(batch_size: int, workers: int | None, describer: Describer | None = None) -> Reading:
    """How images are read, with a bar that shows how many a second."""
    from tiprctl.gallery.filling.adding import Reading
    from tiprctl.gallery.filling.metadata import Describer

    return Reading(describer or Describer(), batch_size, workers, _progress)


def _progress(total: int) -> Any:
    return render.progress("Embedding", total=total, unit="images")

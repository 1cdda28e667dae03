"""A gallery embedded by many machines: Ray Data hands out the images, workers write files, the driver commits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any, TypeVar

import pyarrow as pa

from tiprctl.errors import TiprError
from tiprctl.gallery.cluster.commits import Committer, Pending
from tiprctl.gallery.cluster.rows import KnownRows, Wanted
from tiprctl.gallery.cluster.session import actors_for, connected, told_by_worker
from tiprctl.gallery.cluster.stages import Decode, Embed, Write
from tiprctl.gallery.filling.adding import Changes, EmbeddingInterrupted, Reading
from tiprctl.gallery.filling.embedding import ReadImage
from tiprctl.gallery.filling.listing import ImageFile
from tiprctl.gallery.filling.metadata import Describer
from tiprctl.gallery.keeping.store import GalleryStore, Written
from tiprctl.vector_model import VectorModel

T = TypeVar("T")
_IMAGES_PER_ACTOR = 100_000
"""Of a round: Ray starts the workers anew for each, and the driver holds its paths."""
_SHARE_OF_CORE = 0.5
"""Of a task that reads and decodes, or writes: half of its time it waits for the disk or the network."""


@dataclass(frozen=True)
class Layout:
    """How the work is cut.

    Attributes:
        actors: processes that hold the model; None is one a GPU, or one a machine where there is none.
        block: images of a task that reads and decodes; their pixels travel together to the model.
        fragment: rows of a file that is written, but for the last ones.
    """

    actors: int | None = None
    block: int = 256
    fragment: int = 8192


def add_with_ray(
    store: GalleryStore,
    root: str,
    images: Iterable[ImageFile],
    load_model: Callable[[], VectorModel],
    image_size: tuple[int, int],
    reading: Reading | None = None,
    *,
    address: str | None = None,
    layout: Layout | None = None,
) -> Changes:
    """Embed on a Ray cluster the images that are new or changed since they were; only their rows are taken out.

    Rows are committed as they come: a job that ends early loses what was written since its last commit, and goes on
    from there when it is given again. A worker that dies is replaced, and its images are embedded again. No path is
    there twice, whoever else adds at the same time. Unlike `adding.add` it embeds a file anew whose time alone changed.

    Args:
        root: a folder that all machines see under this name, or a URI.
        images: below `root`; taken as they are needed, each path once.
        load_model: called once in each process that embeds.
        image_size: (H, W) of the pixels that the model takes.
        reading: its `workers` are not used, and its progress is begun anew for each round of images.
        address: of the cluster; None works on this machine.

    Raises:
        EmbeddingInterrupted: Ctrl-C; what was committed is kept.
        UsageError: Ray is missing, or its cluster is, or a worker loads another model than the gallery's.
        EngineError: the gallery cannot be written. TiprError: the workers failed.
    """
    reading = reading or Reading()
    store.add_columns(reading.describer.types)
    store.refresh()
    with connected(address) as ray:
        job = _Job(ray, store, root, reading, layout or Layout(), load_model, image_size)
        for chosen in _portions(job.wanted(images), job.round_images):
            job.run(chosen)
    return job.changes


class _Job:
    """Rounds of images through the cluster into one gallery."""

    def __init__(
        self,
        ray: ModuleType,
        store: GalleryStore,
        root: str,
        reading: Reading,
        layout: Layout,
        load_model: Callable[[], VectorModel],
        image_size: tuple[int, int],
    ):
        self.ray = ray
        self.root = root
        self.reading = reading
        self.layout = layout
        self.actors = actors_for(ray, layout.actors)
        self.round_images = _IMAGES_PER_ACTOR * self.actors.count
        self.decode = Decode(image_size, reading.describer.read_time)
        self.embedder = (store.place, load_model, reading.batch_size)
        self.write = Write(store.place, store.schema)
        # The committer counts on having been made at the version whose paths are known.
        told = {*reading.describer.types, *(["camera"] if reading.describer.camera else [])}
        self.committer = Committer(store, {"camera", *store.user_types} - told)
        self.known = KnownRows(store)
        self.changes = Changes(0)

    def wanted(self, images: Iterable[ImageFile]) -> Iterator[Wanted]:
        """Those of the images whose rows the gallery has not, or not as they are now."""
        for some in _portions(images, self.layout.block):
            wanted = self.known.wanted(self.root, some)
            self.changes.images += len(some)
            self.changes.unchanged += len(some) - len(wanted)
            yield from wanted

    def run(self, wanted: Sequence[Wanted]) -> None:
        """Embed these and commit their rows; the row of an image that is damaged now is taken out."""
        self._embed([one.image for one in wanted if one.row is None], self.committer.commit)
        changed = [one for one in wanted if one.row is not None]
        told = len(self.changes.unreadable)
        self._embed([one.image for one in changed], self.committer.replace)
        damaged = {one.path for one in self.changes.unreadable[told:] if one.damaged}
        stale = self.known.stale(self.root, changed, damaged)
        self.changes.removed += self.committer.store.remove_unchanged(stale)

    def _embed(self, images: Sequence[ImageFile], commit: Callable[[Sequence[Mapping[str, Any]]], Written]) -> None:
        """Embed these and commit their rows, the last ones however it ends."""
        if not images:
            return
        with self.reading.progress(len(images)) as advance:
            pending = Pending(commit, self.changes)
            try:
                for written in self._written(images):
                    pending.add(written)
                    advance(len(written["paths"]) + len(written["unreadable"]))
            except KeyboardInterrupt as interrupt:
                pending.commit()
                changes = self.changes
                raise EmbeddingInterrupted(changes.embedded, changes.images - changes.unchanged) from interrupt
            finally:
                pending.commit()

    def _written(self, images: Sequence[ImageFile]) -> Iterator[Mapping[str, Any]]:
        """Rows of `WRITTEN`, as the workers finish them, in any order."""
        blocks = [_rows(some, self.root, self.reading.describer) for some in _portions(images, self.layout.block)]
        arrow = {"batch_format": "pyarrow"}
        model = self.ray.data.ActorPoolStrategy(size=min(self.actors.count, len(blocks)))
        data = (
            self.ray.data.from_arrow(blocks)
            .map_batches(self.decode, batch_size=None, num_cpus=_SHARE_OF_CORE, **arrow)
            .map_batches(
                Embed,
                fn_constructor_args=self.embedder,
                batch_size=None,
                compute=model,
                num_cpus=self.actors.cpus,
                num_gpus=self.actors.gpus,
                **arrow,
            )
            .map_batches(self.write, batch_size=self.layout.fragment, num_cpus=_SHARE_OF_CORE, **arrow)
        )
        try:
            yield from data.iter_rows()
        except self.ray.exceptions.RayError as error:
            raise told_by_worker(error) or _failed(error) from error


def _rows(images: Sequence[ImageFile], root: str, describer: Describer) -> pa.Table:
    """What is known of images before they are read, in the gallery's columns."""
    columns = describer.columns([ReadImage(image, "") for image in images], root)
    return pa.table({name: column for name, column in columns.items() if name != "hash"})


def _portions(things: Iterable[T], size: int) -> Iterator[list[T]]:
    coming = iter(things)
    while portion := list(islice(coming, size)):
        yield portion


def _failed(error: BaseException) -> TiprError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return TiprError(
        f"The workers of the cluster failed: {lines[-1].strip()}",
        remedy="Ray's logs tell more (/tmp/ray/session_latest/logs). Give the same command again: it goes on.",
    )

"""What the workers of a cluster do with a batch of images: read and decode it, embed it, write it down.

Each stage takes a table and gives one, since so the batches travel between the machines. A batch is a table of rows of
the gallery as far as they are known without the images' content.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pyarrow as pa

from tiprctl.gallery.cluster.sources import read_image
from tiprctl.gallery.filling.embedding import Decoded, Decoder, embed_pixels
from tiprctl.gallery.filling.listing import Unreadable
from tiprctl.gallery.keeping.engine import WRITABLE, faults, lance
from tiprctl.gallery.keeping.schema import KEY, VECTOR, fill_columns
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.vector_model import VectorModel

PIXELS, REASON, DAMAGED = "_pixels", "_reason", "_damaged"
"""Columns of a batch on its way: the decoded image, why there is none, and whether its content is at fault."""
_UNREADABLE = [("path", pa.string()), ("reason", pa.string()), ("damaged", pa.bool_())]
WRITTEN = pa.schema(
    [
        ("fragments", pa.string()),
        ("paths", pa.list_(pa.string())),
        ("unreadable", pa.list_(pa.struct(_UNREADABLE))),
    ]
)
"""What comes of a batch: Lance's description of the files written, as JSON, the paths of their rows, the rest."""

_READERS = 8
"""Threads of a task that reads: an object store answers late, not slowly."""


@dataclass(frozen=True)
class Decode:
    """Reads each image once, hashes and decodes it.

    Attributes:
        size: (H, W) of the pixels to make.
        read_time: tells from a file's content when the picture was taken.
    """

    size: tuple[int, int]
    read_time: Callable[[bytes], datetime | None] | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        decoder = Decoder(read_image, self.size, self.read_time)
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(decoder, batch[KEY].to_pylist()))
        images = [each if isinstance(each, Decoded) else None for each in read]
        failures = [each if isinstance(each, Unreadable) else None for each in read]
        batch = batch.append_column("hash", pa.array([each and each.hash for each in images], pa.string()))
        batch = batch.append_column(PIXELS, pa.array([each and each.pixels.tobytes() for each in images], pa.binary()))
        batch = batch.append_column(REASON, pa.array([each and each.reason for each in failures], pa.string()))
        batch = batch.append_column(DAMAGED, pa.array([each and each.damaged for each in failures], pa.bool_()))
        if self.read_time is None:
            return batch
        told = batch["time"].to_pylist()
        times = [(each and each.taken) or time for each, time in zip(images, told)]
        return batch.set_column(batch.column_names.index("time"), "time", pa.array(times, pa.timestamp("us")))


class Embed:
    """Embeds decoded images; each process loads the model once, and makes sure that it is the gallery's.

    It is loaded with the first batch, since Ray keeps the errors of a batch whole, and of a constructor the text alone.

    Raises:
        UsageError: the model that this machine loads is not that of the gallery.
    """

    def __init__(self, uri: str, load_model: Callable[[], VectorModel], batch_size: int):
        self._uri = uri
        self._load_model = load_model
        self._batch_size = batch_size

    @cached_property
    def model(self) -> VectorModel:
        model = self._load_model()
        GalleryStore.open(self._uri).check_model(model)
        return model

    def __call__(self, batch: pa.Table) -> pa.Table:
        decoded = batch[PIXELS].combine_chunks().drop_null().to_pylist()
        vectors = np.concatenate(
            [np.empty((0, self.model.width), np.float32)]
            + [
                self._embed(decoded[start : start + self._batch_size])
                for start in range(0, len(decoded), self._batch_size)
            ]
        )
        column = _spread(vectors, batch[PIXELS].is_valid().to_numpy())
        return batch.drop_columns([PIXELS]).append_column(VECTOR, column)

    def _embed(self, images: list[bytes]) -> np.ndarray:
        pixels = np.frombuffer(b"".join(images), np.uint8).reshape(len(images), *self.model.image_size, 3)
        return embed_pixels(self.model, pixels)


@dataclass(frozen=True)
class Write:
    """Writes rows to files of the gallery, of which no reader knows before they are committed.

    Attributes:
        uri: of the gallery.
        schema: of the gallery.
    """

    uri: str
    schema: pa.Schema

    def __call__(self, batch: pa.Table) -> pa.Table:
        readable = batch[REASON].is_null()
        rows = fill_columns(batch.filter(readable), self.schema)
        fragments = write_fragments(self.uri, rows)
        unreadable = batch.filter(batch[REASON].is_valid()).select([KEY, REASON, DAMAGED])
        unreadable = unreadable.rename_columns([name for name, _ in _UNREADABLE])
        return pa.table(
            [[json.dumps(fragments)], [rows[KEY].to_pylist()], [unreadable.to_pylist()]],
            schema=WRITTEN,
        )


def write_fragments(uri: str, rows: pa.Table) -> list[dict]:
    """Write rows to files of the gallery; Lance's description of them, as data for JSON."""
    if not len(rows):
        return []
    with faults(uri, WRITABLE):
        lance()  # by way of the engine, which leaves out what it need not import
        from lance.fragment import write_fragments as write

        return [fragment.to_json() for fragment in write(rows, uri, schema=rows.schema)]


def unreadable_of(written: dict) -> list[Unreadable]:
    """What a row of `WRITTEN` tells of images that could not be read."""
    return [Unreadable(**each) for each in written["unreadable"]]


def _spread(vectors: np.ndarray, where: np.ndarray) -> pa.Array:
    """The vectors `(n, width)` as a column with a null wherever `where` is False."""
    spread = np.zeros((len(where), vectors.shape[1]), np.float32)
    spread[where] = vectors
    return pa.FixedSizeListArray.from_arrays(spread.ravel(), vectors.shape[1], mask=pa.array(~where))

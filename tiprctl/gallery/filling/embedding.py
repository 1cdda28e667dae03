"""From image files to vectors: read once, hashed and decoded in threads while the model works on full batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np

from tiprctl.cores import cores
from tiprctl.errors import ImageError, TiprError
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.filling.listing import ImageFile, Unreadable
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.images import load_pixels, read_content
from tiprctl.vector_model import VectorModel

HASH_BYTES = 16
GONE = "it was deleted after it had been listed"

_BATCHES_AHEAD = 2
"""How many batches are read and decoded while the model works on one; bounds the memory."""


@dataclass(frozen=True)
class ReadImage:
    """An image that was read: its content's hash (hexadecimal), and when it was taken, where its content tells."""

    file: ImageFile
    hash: str
    taken: datetime | None = None


@dataclass(frozen=True)
class EmbeddedBatch:
    """What came of some images.

    Attributes:
        images: those with vectors.
        vectors: float32 `(n, width)`, row by row, of unit length.
        reusable: those whose content is known, so that they were neither decoded nor embedded.
        unreadable: those that could not be read.
    """

    images: list[ReadImage]
    vectors: np.ndarray
    reusable: list[ReadImage] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    def __len__(self) -> int:
        """How many images it is about."""
        return len(self.images) + len(self.reusable) + len(self.unreadable)


def embed_images(
    root: Path,
    images: Iterable[ImageFile],
    model: VectorModel,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    known: DigestSet | None = None,
    read_time: Callable[[bytes], datetime | None] | None = None,
) -> Iterator[EmbeddedBatch]:
    """Embed images (paths below `root`) batch by batch, in their order; the next batches are decoded meanwhile.

    Batches are full whatever could not be read, but for the last one.

    Args:
        images: taken as they are needed, a few batches ahead.
        workers: threads that read and decode; None takes one a core.
        known: hashes of contents that need no vector.
        read_time: tells from a file's content when the picture was taken.

    Raises:
        TiprError: the model gives vectors of another shape, or not of unit length.
    """
    decoder = Decoder(read_content, model.image_size, read_time, known or DigestSet())
    pool = ThreadPoolExecutor(max(workers if workers is not None else cores(), 1))
    waiting: deque[Future[_Read | Unreadable]] = deque()
    coming = iter(images)
    batch = _Batch(batch_size, model)

    def top_up() -> None:
        missing = (_BATCHES_AHEAD + 1) * batch_size - len(waiting)
        waiting.extend(pool.submit(_read, decoder, root, image) for image in islice(coming, missing))

    try:
        top_up()
        while waiting:
            batch.add(waiting.popleft().result())
            if batch.full or not waiting:
                top_up()
            if batch.full or not waiting:
                yield batch.embed()
            elif batch.others >= batch_size:
                yield batch.take_others()
    finally:
        pool.shutdown(cancel_futures=True)


def embed_pixels(model: VectorModel, pixels: np.ndarray) -> np.ndarray:
    """The vectors float32 `(n, width)` of decoded images `(n, H, W, 3)`; n is not 0.

    Raises:
        TiprError: the model gives vectors of another shape, or not of unit length.
    """
    vectors = np.asarray(model.embed_images(pixels), dtype=np.float32)
    if vectors.shape != (len(pixels), model.width) or not have_unit_length(vectors):
        raise TiprError(
            f"The model gave vectors {vectors.shape} that are not {len(pixels)} unit vectors of width {model.width}",
            where=model.description,
            remedy="The checkpoint may be damaged or may have diverged in training: choose another with --model.",
        )
    return vectors


def have_unit_length(vectors: np.ndarray) -> bool:
    """Whether all rows of `(n, width)` are finite and of unit length, to float16 precision."""
    return bool(np.all(np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1) < 1e-2))


def content_hash(content: bytes) -> str:
    """BLAKE2b of 128 bits, hexadecimal."""
    return blake2b(content, digest_size=HASH_BYTES).hexdigest()


@dataclass(frozen=True)
class Decoded:
    """What an image's content tells: its hash, when it was taken, and, where needed, its pixels, uint8 `(H, W, 3)`."""

    hash: str
    taken: datetime | None
    pixels: np.ndarray | None


@dataclass(frozen=True)
class Decoder:
    """Reads an image once, hashes and decodes it; called in threads.

    Attributes:
        read: gives a file's content, or raises an ImageError.
        size: (H, W) of the pixels to make.
        read_time: tells from a file's content when the picture was taken.
        known: hashes of contents whose pixels are not needed.
    """

    read: Callable[[str | Path], bytes]
    size: tuple[int, int]
    read_time: Callable[[bytes], datetime | None] | None = None
    known: DigestSet = field(default_factory=DigestSet)

    def __call__(self, place: str | Path) -> Decoded | Unreadable:
        """What is at a path or URI, or why nothing is."""
        try:
            content = self.read(place)
        except ImageError as error:
            if not is_remote(place) and not os.path.lexists(place):
                return Unreadable(str(place), GONE)
            # What the system or the store refuses says nothing of the content.
            return Unreadable(str(place), error.what, damaged=not isinstance(error.__cause__, OSError))
        hashed, taken = content_hash(content), self.read_time(content) if self.read_time else None
        try:
            pixels = None if hashed in self.known else load_pixels(place, self.size, content=content)
        except ImageError as error:
            return Unreadable(str(place), error.what, damaged=True)
        return Decoded(hashed, taken, pixels)


@dataclass(frozen=True)
class _Read:
    """An image with its pixels, none where they are not needed."""

    image: ReadImage
    pixels: np.ndarray | None


def _read(decoder: Decoder, root: Path, file: ImageFile) -> _Read | Unreadable:
    decoded = decoder(root / file.path)
    if isinstance(decoded, Unreadable):
        return replace(decoded, path=file.path)
    return _Read(ReadImage(file, decoded.hash, decoded.taken), decoded.pixels)


class _Batch:
    """Images until they are as many as the model takes at once."""

    def __init__(self, size: int, model: VectorModel):
        self._size = size
        self._model = model
        self._images: list[ReadImage] = []
        self._pixels: list[np.ndarray] = []
        self._reusable: list[ReadImage] = []
        self._unreadable: list[Unreadable] = []

    @property
    def full(self) -> bool:
        return len(self._images) == self._size

    @property
    def others(self) -> int:
        """How many images wait to be told of that the model does not see."""
        return len(self._reusable) + len(self._unreadable)

    def add(self, read: _Read | Unreadable) -> None:
        if isinstance(read, Unreadable):
            self._unreadable.append(read)
        elif read.pixels is None:
            self._reusable.append(read.image)
        else:
            self._images.append(read.image)
            self._pixels.append(read.pixels)

    def embed(self) -> EmbeddedBatch:
        """All that there is; the batch is empty then."""
        vectors, images = self._vectors(), self._images
        self._images, self._pixels = [], []
        others = self.take_others()
        return EmbeddedBatch(images, vectors, others.reusable, others.unreadable)

    def take_others(self) -> EmbeddedBatch:
        """What the model does not see; images with pixels stay."""
        reusable, unreadable = self._reusable, self._unreadable
        self._reusable, self._unreadable = [], []
        return EmbeddedBatch([], np.empty((0, self._model.width), np.float32), reusable, unreadable)

    def _vectors(self) -> np.ndarray:
        if not self._images:
            return np.empty((0, self._model.width), np.float32)
        return embed_pixels(self._model, np.stack(self._pixels))

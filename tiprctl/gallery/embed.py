"""From a folder of images to embeddings: walk it, decode in threads while the model works, name what cannot be read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tiprctl.errors import ImageError, InputError, TiprError
from tiprctl.images import load_pixels

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

_BATCHES_AHEAD = 2
"""How many batches are decoded while the model works on one; bounds the memory."""


class VectorModel(Protocol):
    """What the gallery asks of a model: images and sentences to vectors of one space, rows of unit norm."""

    width: int
    image_size: tuple[int, int]

    @property
    def description(self) -> str:
        """Which model it is, for people."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors could; the cache is keyed by it."""

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `(B, H, W, 3)` to float32 `(B, width)`."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B sentences to float32 `(B, width)`."""


@dataclass(frozen=True)
class ImageFile:
    """An image of a gallery: its path below the folder (posix), its size in bytes, its time of change."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Unreadable:
    """A file or folder below the gallery that was skipped, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The images below `root` in path order, and what could not be looked at."""

    root: Path
    images: list[ImageFile]
    unreadable: list[Unreadable]


@dataclass(frozen=True)
class EmbeddedBatch:
    """Images with their vectors `(n, width)`, row by row, and the files of the batch that could not be read."""

    images: list[ImageFile]
    vectors: np.ndarray
    unreadable: list[Unreadable]


def list_images(root: str | Path) -> Listing:
    """The images in a folder and below it, in path order; hidden files and folders are skipped.

    Symbolic links are followed wherever they lead, since galleries are often put together from them, but each real
    folder and file counts once, under its own name where it has one below `root`: loops end, and no picture is ranked
    twice. A dangling link, an unreadable folder and a name that is not UTF-8 are listed as unreadable.

    Raises:
        InputError: `root` is missing, not a folder, or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        what = "The gallery is a file, not a folder" if root.exists() else "There is no such gallery folder"
        raise InputError(what, where=root, remedy="Name a folder that holds person crops.")
    found: dict[str, ImageFile] = {}
    linked: list[tuple[str, ImageFile]] = []
    unreadable: list[Unreadable] = []
    for entry, path, target in _walk(root, unreadable):
        try:
            path.encode()
            status = entry.stat()
        except (OSError, UnicodeEncodeError) as error:
            unreadable.append(_unreadable(path, error))
            continue
        image = ImageFile(path, status.st_size, status.st_mtime_ns)
        if entry.is_symlink():
            linked.append((target, image))
        else:
            found[target] = image
    for target, image in sorted(linked, key=lambda pair: pair[1].path):
        found.setdefault(target, image)
    if not found:
        raise _no_image(root, unreadable)
    return Listing(root, sorted(found.values(), key=lambda image: image.path), unreadable)


def embed_images(
    root: Path, images: Sequence[ImageFile], embedder: VectorModel, *, batch_size: int = 64, threads: int | None = None
) -> Iterator[EmbeddedBatch]:
    """Embed `images` (paths below `root`) batch by batch; the next batches are decoded meanwhile.

    Raises:
        TiprError: the model gives vectors of another shape, or not of unit length.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Sequence[ImageFile], list[Future[np.ndarray]]]] = deque()
    try:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            waiting.append((batch, [pool.submit(load_pixels, root / one.path, embedder.image_size) for one in batch]))
            if len(waiting) > _BATCHES_AHEAD:
                yield _embed(*waiting.popleft(), embedder)
        while waiting:
            yield _embed(*waiting.popleft(), embedder)
    finally:
        pool.shutdown(cancel_futures=True)


def have_unit_length(vectors: np.ndarray) -> bool:
    """Whether all rows of `(n, width)` are finite and of unit length, to float16 precision."""
    return bool(np.all(np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1) < 1e-2))


def _embed(batch: Sequence[ImageFile], decoding: Sequence[Future[np.ndarray]], embedder: VectorModel) -> EmbeddedBatch:
    images, pixels, unreadable = [], [], []
    for image, future in zip(batch, decoding):
        try:
            pixels.append(future.result())
            images.append(image)
        except ImageError as error:
            unreadable.append(Unreadable(image.path, error.what))
    if not images:
        return EmbeddedBatch([], np.empty((0, embedder.width), np.float32), unreadable)
    vectors = np.asarray(embedder.embed_images(np.stack(pixels)), dtype=np.float32)
    if vectors.shape != (len(images), embedder.width) or not have_unit_length(vectors):
        raise TiprError(
            f"The model gave vectors {vectors.shape} that are not {len(images)} unit vectors of width {embedder.width}",
            where=embedder.description,
            remedy="The checkpoint may be damaged or may have diverged in training: choose another with --model.",
        )
    return EmbeddedBatch(images, vectors, unreadable)


def _walk(root: Path, unreadable: list[Unreadable]) -> Iterator[tuple[os.DirEntry[str], str, str]]:
    """The image entries below `root`, each with its path relative to `root` and the real path it leads to.

    Real folders are visited before linked ones, so that a folder below `root` is seen under its own name.
    """
    folders = deque([("", os.path.realpath(root))])
    visited = set()
    while folders:
        prefix, real = folders.popleft()
        if real in visited:
            continue
        visited.add(real)
        for entry in _entries(root, prefix, unreadable):
            path = f"{prefix}{entry.name}"
            target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            if _is_folder(entry):
                (folders.append if entry.is_symlink() else folders.appendleft)((f"{path}/", target))
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield entry, path, target


def _entries(root: Path, prefix: str, unreadable: list[Unreadable]) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, by name."""
    try:
        with os.scandir(root / prefix) as entries:
            return sorted((one for one in entries if not one.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        unreadable.append(_unreadable(prefix or ".", error))
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; where its name is an image's, it is listed as unreadable
        return False


def _unreadable(path: str, error: OSError | UnicodeEncodeError) -> Unreadable:
    if isinstance(error, UnicodeEncodeError):
        return Unreadable(path.encode(errors="backslashreplace").decode(), "its name is not valid UTF-8: rename it")
    if isinstance(error, FileNotFoundError):
        return Unreadable(path, "a link that leads nowhere")
    return Unreadable(path, error.strerror or str(error))


def _no_image(root: Path, unreadable: Sequence[Unreadable]) -> InputError:
    if unreadable:
        first = unreadable[0]
        remedy = f"What is there cannot be read: {first.path} ({first.reason})."
    else:
        remedy = f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}; hidden files and folders are skipped."
    return InputError("There is no image in the gallery", where=root, remedy=remedy)

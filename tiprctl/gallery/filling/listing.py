"""The images of a folder: a walk that no link leads astray, kept in a few bytes an image."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa

from tiprctl.errors import InputError
from tiprctl.gallery.filling.digests import DigestSet
from tiprctl.gallery.keeping.places import key_of, root_key

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])

ROWS_AT_ONCE = 8192
_LATEST_NS = 2**63 - 1
"""In the year 2262."""


class ImageFile(NamedTuple):
    """An image of a gallery: its path below the folder (posix), its size in bytes, its time of change."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> ImageFile:
        """A file as it is now; a time that a wrong clock gave is brought to what 64 bits hold."""
        return cls(path, status.st_size, max(-_LATEST_NS, min(status.st_mtime_ns, _LATEST_NS)))


@dataclass(frozen=True)
class Unreadable:
    """A file or folder below the gallery that was skipped, and why.

    Attributes:
        damaged: whether what it holds is at fault. Else it is gone, or the system or the object store did not give it,
            which may pass.
    """

    path: str
    reason: str
    damaged: bool = False


class Images(Sequence[ImageFile]):
    """Images as a table of `SCHEMA`: 20 bytes and the path for each, where a list of objects takes 250."""

    def __init__(self, table: pa.Table):
        self.table = table

    @classmethod
    def of(cls, images: Iterator[ImageFile] | Sequence[ImageFile]) -> Images:
        """The images of a list or a stream, in path order."""
        batches = [_record_batch(some) for some in _chunks(images)]
        table = pa.Table.from_batches(batches, SCHEMA).sort_by("path").combine_chunks()
        return cls(table)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, which: int) -> ImageFile: ...
    @overload
    def __getitem__(self, which: slice) -> Images: ...
    def __getitem__(self, which: int | slice) -> ImageFile | Images:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            return self.take(np.arange(start, stop, step))
        if not -len(self) <= which < len(self):
            raise IndexError(which)
        (row,) = self.table.slice(which % len(self), 1).to_pylist()
        return ImageFile(**row)

    def __iter__(self) -> Iterator[ImageFile]:
        for batch in self.table.to_batches(ROWS_AT_ONCE):
            yield from map(ImageFile, *(column.to_pylist() for column in batch.columns))

    @property
    def paths(self) -> Iterator[str]:
        for batch in self.table.to_batches(ROWS_AT_ONCE):
            yield from batch["path"].to_pylist()

    def take(self, places: np.ndarray) -> Images:
        """The images at these places, in their order."""
        return Images(self.table.take(pa.array(places, pa.int64())))


@dataclass(frozen=True)
class Listing:
    """The images below `root` in path order, and what could not be looked at.

    A path that is absolute is where it says, not below `root`: a list of images may have such.

    Attributes:
        whole: whether these are all the images of the folder, so that others are there no more.
    """

    root: Path
    images: Images
    unreadable: list[Unreadable]
    whole: bool = True

    @cached_property
    def root_key(self) -> str:
        """The folder as a gallery knows it."""
        return root_key(self.root)

    @cached_property
    def keys(self) -> DigestSet:
        """The paths by which a gallery knows the images, at the images' places."""
        return DigestSet(key_of(self.root_key, path) for path in self.images.paths)


def list_images(root: str | Path, *, follow_links: bool = False, allow_empty: bool = False) -> Listing:
    """The images in a folder and below it, in path order; hidden files and folders are skipped.

    Each real folder and file counts once, under its own name where it has one below `root`: loops of links end, and no
    picture is ranked twice. A link that leads out of `root` is listed as unreadable, unless links are to be followed.
    So are a dangling link, an unreadable folder and a name that is not UTF-8.

    Raises:
        InputError: `root` is missing, not a folder, or holds no image, which may be allowed.
    """
    root = Path(root)
    if not root.is_dir():
        what = "The gallery is a file, not a folder" if root.exists() else "There is no such folder"
        raise InputError(what, where=root, remedy="Name a folder that holds person crops.")
    unreadable: list[Unreadable] = []
    images = Images.of(_images(root, follow_links, unreadable))
    if not len(images) and not allow_empty:
        raise _no_image(root, unreadable)
    return Listing(root, images, unreadable)


def unreadable_for(path: str, error: OSError | UnicodeEncodeError) -> Unreadable:
    """Why a file could not be looked at."""
    if isinstance(error, UnicodeEncodeError):
        return Unreadable(path.encode(errors="backslashreplace").decode(), "its name is not valid UTF-8: rename it")
    if isinstance(error, FileNotFoundError):
        return Unreadable(path, "a link that leads nowhere")
    return Unreadable(path, error.strerror or str(error))


def _images(root: Path, follow_links: bool, unreadable: list[Unreadable]) -> Iterator[ImageFile]:
    """The images below `root`: real files as they come, then linked ones that are not listed under another name."""
    walk = _Walk(root, follow_links, unreadable)
    linked: dict[str, ImageFile] = {}
    links: list[tuple[str, str, os.DirEntry[str]]] = []
    for entry, path, target in walk:
        if entry.is_symlink():
            links.append((path, target, entry))
        elif image := _image(entry, path, unreadable):
            yield image
    for path, target, entry in sorted(links, key=lambda link: link[0]):
        image = _image(entry, path, unreadable)
        if image and walk.may_lead_to(path, target) and not walk.lists(target):
            linked.setdefault(target, image)
    yield from linked.values()


def _image(entry: os.DirEntry[str], path: str, unreadable: list[Unreadable]) -> ImageFile | None:
    try:
        path.encode()
        return ImageFile.of(path, entry.stat())
    except (OSError, UnicodeEncodeError) as error:
        unreadable.append(unreadable_for(path, error))
        return None


class _Walk:
    """The image entries below a folder, each with its path relative to it and the real path that it leads to.

    Real folders are visited before linked ones, so that a folder below the root is seen under its own name.
    """

    def __init__(self, root: Path, follow_links: bool, unreadable: list[Unreadable]):
        self.root = root
        self.follow_links = follow_links
        self.unreadable = unreadable
        self.real_root = os.path.realpath(root)
        self.visited: set[str] = set()

    def __iter__(self) -> Iterator[tuple[os.DirEntry[str], str, str]]:
        folders = deque([("", self.real_root)])
        while folders:
            prefix, real = folders.popleft()
            if real in self.visited:
                continue
            self.visited.add(real)
            for entry in self._entries(prefix):
                path = f"{prefix}{entry.name}"
                link = entry.is_symlink()
                target = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                if _is_folder(entry):
                    if not link:
                        folders.appendleft((f"{path}/", target))
                    elif self.may_lead_to(path, target):
                        folders.append((f"{path}/", target))
                elif _is_image(entry.name):
                    yield entry, path, target

    def may_lead_to(self, path: str, target: str) -> bool:
        """Whether the link at `path` is to be followed; one that is not is listed."""
        inside = Path(target).is_relative_to(self.real_root)
        if not inside and not self.follow_links:
            self.unreadable.append(Unreadable(path, "a link that leads out of the folder, not followed"))
        return inside or self.follow_links

    def lists(self, target: str) -> bool:
        """Whether a real file is listed under its own name."""
        folder, name = os.path.split(target)
        return folder in self.visited and _is_image(name) and not name.startswith(".")

    def _entries(self, prefix: str) -> list[os.DirEntry[str]]:
        """The entries of a folder that are not hidden, by name."""
        try:
            with os.scandir(self.root / prefix) as entries:
                return sorted((one for one in entries if not one.name.startswith(".")), key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append(unreadable_for(prefix.removesuffix("/") or ".", error))
            return []


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; where its name is an image's, it is listed as unreadable
        return False


def _chunks(images: Iterator[ImageFile] | Sequence[ImageFile]) -> Iterator[list[ImageFile]]:
    chunk = []
    for image in images:
        chunk.append(image)
        if len(chunk) == ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _record_batch(images: Sequence[ImageFile]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(zip(*images), SCHEMA)], schema=SCHEMA)


def _no_image(root: Path, unreadable: Sequence[Unreadable]) -> InputError:
    if unreadable:
        first = unreadable[0]
        remedy = f"What is there cannot be read: {first.path} ({first.reason})."
    else:
        remedy = f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}; hidden files and folders are skipped."
    return InputError("There is no image in the gallery", where=root, remedy=remedy)

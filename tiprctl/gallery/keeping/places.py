"""Places of galleries, images and models: local paths, and URIs such as `s3://bucket/folder`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def is_remote(place: str | Path) -> bool:
    """Whether it is a URI, not a local path."""
    return "://" in str(place)


def absolute(name: str) -> str:
    """The name of a local file or folder as it is found from any working folder, links resolved; any other as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def parents(place: str) -> Iterator[str]:
    """The folders above a place, the nearest first; of a URI up to its bucket."""
    scheme, mark, path = place.rpartition("://")
    for folder in PurePosixPath(path).parents:
        # Those of a relative path end with a folder of no name.
        if str(folder) != ".":
            yield f"{scheme}{mark}{folder}"


def key_of(root: str, path: str) -> str:
    """The path by which a gallery knows an image: absolute, with forward slashes; or its URI."""
    if is_remote(path):
        return path
    if is_remote(root):
        return f"{root.rstrip('/')}/{path}"
    return posixpath.normpath(posixpath.join(root, path))


def root_key(root: Path) -> str:
    """Where the images of a listing are: the real folder, so that two names for it are one."""
    return root.resolve().as_posix()

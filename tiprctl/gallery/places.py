"""Places of galleries, images and models: local paths, and URIs such as `s3://bucket/folder`."""

from __future__ import annotations

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

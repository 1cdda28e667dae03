"""Images where several machines can read them: a shared folder, or an object store (`s3://bucket/folder`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from tiprctl.errors import ImageError, InputError
from tiprctl.gallery.filling.embedding import GONE
from tiprctl.gallery.filling.listing import ImageFile
from tiprctl.gallery.filling.walking import IMAGE_SUFFIXES
from tiprctl.gallery.keeping.places import is_remote
from tiprctl.images import MAX_BYTES, read_content, too_heavy

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""Where an S3 server is named that is not Amazon's; Lance reads them itself, Arrow does not."""
_CREDENTIALS = (
    "Check the address, and the variables that hold the credentials (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)."
)


def list_objects(uri: str) -> Iterator[ImageFile]:
    """The images below `uri`; hidden files and folders are skipped.

    One folder is listed at a time, so that what is held at once is a folder's objects, not the store's.

    Raises:
        InputError: there is no such folder, or the store cannot be reached.
    """
    system, root = _open(uri)
    folders = [root]
    while folders:
        below = []
        for entry in _entries(system, folders.pop(), uri):
            if entry.base_name.startswith("."):
                continue
            if not entry.is_file:
                below.append(entry.path)
            elif os.path.splitext(entry.base_name)[1].lower() in IMAGE_SUFFIXES:
                yield ImageFile(entry.path.removeprefix(f"{root}/"), entry.size, entry.mtime_ns or 0)
        folders += reversed(below)


def read_image(location: str) -> bytes:
    """The bytes of an image at a path or URI.

    Raises:
        ImageError: it is missing, empty, larger than `MAX_BYTES`, or cannot be read.
    """
    if not is_remote(location):
        return read_content(location)
    try:
        system, path = _open(location)
        with system.open_input_file(path) as file:
            if file.size() > MAX_BYTES:
                raise too_heavy(location)
            content = file.read()
    except FileNotFoundError as error:
        raise ImageError(GONE, where=location, remedy="List the images again.") from error
    except OSError as error:
        raise ImageError(
            f"The image cannot be read: {_first_line(error)}", where=location, remedy=_CREDENTIALS
        ) from error
    if not content:
        raise ImageError("The image file is empty (0 bytes)", where=location, remedy="Copy it again from its source.")
    return content


def delete_files(folder: str, names: list[str]) -> None:
    """Delete these files of a folder or URI; those that are not there are passed over."""
    system, root = _open(folder)
    for name in names:
        try:
            system.delete_file(f"{root}/{name}")
        except FileNotFoundError:
            continue


def _open(location: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if not is_remote(location):
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(location)
    scheme, _, rest = location.partition("://")
    bucket, _, path = rest.rstrip("/").partition("/")
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), None) if scheme == "s3" else None
    system, top = _connect(f"{scheme}://{bucket}", endpoint, os.getpid())
    return system, f"{top}/{path}" if path else top


@cache
def _connect(bucket: str, endpoint: str | None, process: int) -> tuple[FileSystem, str]:
    """The file system of a bucket: one a process, since it keeps connections open. A fork must not use its parent's."""
    from pyarrow.fs import FileSystem, S3FileSystem

    try:
        if endpoint:
            scheme, _, host = endpoint.rpartition("://")
            return S3FileSystem(endpoint_override=host, scheme=scheme or "https"), bucket.removeprefix("s3://")
        return FileSystem.from_uri(bucket)
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"The object store cannot be opened: {_first_line(error)}", where=bucket, remedy=_CREDENTIALS
        ) from error


def _entries(system: FileSystem, folder: str, uri: str) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    try:
        return sorted(system.get_file_info(FileSelector(folder)), key=lambda entry: entry.path)
    except FileNotFoundError as error:
        raise InputError("There is no such folder of images", where=uri, remedy="Check the address.") from error
    except OSError as error:
        raise InputError(
            f"The images cannot be listed: {_first_line(error)}", where=uri, remedy=_CREDENTIALS
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

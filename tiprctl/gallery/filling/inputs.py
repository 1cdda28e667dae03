"""What a user names to be indexed: a folder, an image, or a list of images in one of three forms."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tiprctl.errors import InputError
from tiprctl.gallery.filling.listing import ImageFile, Images, Listing, Unreadable, unreadable_for
from tiprctl.gallery.filling.metadata import MetadataTable, path_column, plain_type, read_csv
from tiprctl.gallery.filling.walking import IMAGE_SUFFIXES, list_images
from tiprctl.gallery.keeping.places import key_of, root_key

TABLES = (".csv", ".parquet")
"""The endings of lists that may have further columns."""
LISTS = (".txt", *TABLES)


@dataclass(frozen=True)
class Input:
    """Images to index, and the columns that came with their list.

    Attributes:
        name: the absolute path of what the user named, by which a gallery remembers it.
    """

    name: str
    listing: Listing
    table: MetadataTable | None = None


def name_of(source: Path) -> str:
    """The absolute path of what a user named, with forward slashes, links resolved."""
    return source.resolve().as_posix()


def root_of(source: Path) -> str:
    """What the relative paths of a folder, an image or a list are below, as a gallery knows it."""
    return root_key(source if source.is_dir() else source.parent)


def read_input(source: Path, *, follow_links: bool = False, allow_empty: bool = False) -> Input:
    """The images that `source` means.

    A folder is walked. An image is taken alone. A list has a path a line (.txt), a path a row (.csv, in its column
    `path` or the first one; parquet, as a prepared data set's manifest) and perhaps further columns; paths are absolute
    or below the folder of the list. The files of a list are taken wherever they are: they were asked for by name.

    Raises:
        InputError: it is missing or damaged, or there is no image; a folder may be allowed to be empty.
    """
    if source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES:
        return Input(name_of(source), _listed(source.parent, [source.name]))
    if source.is_file() and source.suffix.lower() in LISTS:
        paths, columns = _read_list(source)
        # A data set has a row a caption, and so an image several times.
        table = MetadataTable(paths, columns, root_key(source.parent)) if columns is not None else None
        return Input(name_of(source), _listed(source.parent, _distinct(source.parent, paths), source), table)
    if source.is_file():
        raise InputError(
            "This is neither a folder, an image nor a list of images",
            where=source,
            remedy=f"A list ends in {', '.join(LISTS)}, an image in {', '.join(sorted(IMAGE_SUFFIXES))}.",
        )
    return Input(name_of(source), list_images(source, follow_links=follow_links, allow_empty=allow_empty))


def _read_list(file: Path) -> tuple[list[str], pa.Table | None]:
    """The paths of a list, and its other columns."""
    if file.suffix.lower() == ".txt":
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The list cannot be read: {error}", where=file, remedy="Save it as UTF-8.") from error
        return [line.strip() for line in lines if line.strip()], None
    table = read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    name = path_column(table, file)
    if plain_type(table[name].type) != pa.string():
        raise InputError(f"The column {name!r} holds no paths", where=file, remedy="Name the column of paths `path`.")
    table = table.filter(table[name].is_valid())
    others = table.drop_columns([name])
    return table[name].to_pylist(), others if others.num_columns else None


def _read_parquet(file: Path) -> pa.Table:
    """A parquet file, but for the captions of a prepared data set, of which an image has several."""
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "The list is no parquet file, or damaged", where=file, remedy="Write it again, or prepare the data set."
        ) from error
    return table.drop_columns([name for name in table.column_names if name == "caption"])


def _distinct(folder: Path, paths: Sequence[str]) -> list[str]:
    """The paths, each image by the first of its spellings: a gallery has one row of it."""
    root, first = root_key(folder), {}
    for path in paths:
        first.setdefault(key_of(root, path), path)
    return list(first.values())


def _listed(root: Path, paths: Sequence[str], file: Path | None = None) -> Listing:
    """The images at these paths, below `root` or absolute."""
    unreadable: list[Unreadable] = []
    images = Images.of(_images(root, paths, unreadable))
    if not len(images):
        what = f"None of the {len(paths):,} images is there" if paths else "There is no image in the list"
        first = f" The first is looked for at {root / paths[0]}." if paths else ""
        raise InputError(what, where=file or root, remedy=f"Paths are absolute, or below the list's folder.{first}")
    return Listing(root, images, unreadable, whole=False)


def _images(root: Path, paths: Sequence[str], unreadable: list[Unreadable]) -> Iterator[ImageFile]:
    for path in paths:
        try:
            yield ImageFile.of(path, os.stat(root / path))
        except FileNotFoundError:
            unreadable.append(Unreadable(path, "there is no such file"))
        except OSError as error:
            unreadable.append(unreadable_for(path, error))

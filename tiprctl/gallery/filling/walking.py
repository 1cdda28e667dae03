"""The images of a folder: a walk that no link leads astray."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from tiprctl.errors import InputError
from tiprctl.gallery.filling.listing import ImageFile, Images, Listing, Unreadable, unreadable_for

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


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


def _images(root: Path, follow_links: bool, unreadable: list[Unreadable]) -> Iterator[ImageFile]:
    """The images below `root`: real files as they come, then linked ones that are not listed under another name."""
    walk = _Walk(root, follow_links, unreadable)
    linked: dict[str, ImageFile] = {}
    for path in walk:
        if image := _image(root, path, unreadable):
            yield image
    for path, target in sorted(walk.links):
        image = _image(root, path, unreadable)
        if image and walk.may_lead_to(path, target) and not walk.lists(target):
            linked.setdefault(target, image)
    yield from linked.values()


def _image(root: Path, path: str, unreadable: list[Unreadable]) -> ImageFile | None:
    try:
        path.encode()
        return ImageFile.of(path, os.stat(f"{root}/{path}"))
    except (OSError, UnicodeEncodeError) as error:
        unreadable.append(unreadable_for(path, error))
        return None


class _Walk:
    """The paths below a folder of the real files that are images by their names.

    Real folders are visited before linked ones, so that a folder below the root is seen under its own name. As long as
    no folder is linked, paths come in their order. Of the files of a folder their names alone are held: there may be
    millions.

    Attributes:
        links: the paths of links to images and where they lead, once all was visited.
    """

    def __init__(self, root: Path, follow_links: bool, unreadable: list[Unreadable]):
        self.root = root
        self.follow_links = follow_links
        self.unreadable = unreadable
        self.real_root = os.path.realpath(root)
        self.visited: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self._linked = deque([("", self.real_root)])

    def __iter__(self) -> Iterator[str]:
        while self._linked:
            opened = [self._visit(*self._linked.popleft())]
            while opened:
                for path, real in opened[-1]:
                    if real is not None:
                        opened.append(self._visit(path, real))
                        break
                    yield path
                else:
                    opened.pop()

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

    def _visit(self, prefix: str, real: str) -> Iterator[tuple[str, str | None]]:
        """What lies in a folder, in path order: images without, folders with a slash in the end and their real paths."""
        if real in self.visited:
            return
        self.visited.add(real)
        for name in self._names(prefix):
            yield f"{prefix}{name}", os.path.join(real, name[:-1]) if name.endswith("/") else None

    def _names(self, prefix: str) -> list[str]:
        """The folders, whose names get a slash, and images in a folder, but for hidden ones; links are put aside."""
        names, links = [], []
        try:
            with os.scandir(self.root / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        links.append(entry)
                    elif _is_folder(entry):
                        names.append(f"{entry.name}/")
                    elif _is_image(entry.name):
                        names.append(entry.name)
        except OSError as error:
            self.unreadable.append(unreadable_for(prefix.removesuffix("/") or ".", error))
            return []
        for link in sorted(links, key=lambda entry: entry.name):
            self._put_aside(link, f"{prefix}{link.name}")
        return sorted(names)

    def _put_aside(self, link: os.DirEntry[str], path: str) -> None:
        target = os.path.realpath(link.path)
        if not _is_folder(link):
            if _is_image(link.name):
                self.links.append((path, target))
        elif self.may_lead_to(path, target):
            self._linked.append((f"{path}/", target))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or out of reach; where its name is an image's, it is listed as unreadable
        return False


def _no_image(root: Path, unreadable: Sequence[Unreadable]) -> InputError:
    if unreadable:
        first = unreadable[0]
        remedy = f"What is there cannot be read: {first.path} ({first.reason})."
    else:
        remedy = f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}; hidden files and folders are skipped."
    return InputError("There is no image in the gallery", where=root, remedy=remedy)

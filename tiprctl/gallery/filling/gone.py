"""Rows whose file is no more: when they are too many to be believed, and which of them go in the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa

from tiprctl.errors import ImageError, UsageError
from tiprctl.gallery.filling.comparing import Comparison
from tiprctl.gallery.filling.embedding import content_hash
from tiprctl.gallery.filling.listing import Listing
from tiprctl.gallery.keeping.schema import KEY, STAMP
from tiprctl.images import read_content


def refuse_great_loss(listing: Listing, comparison: Comparison) -> None:
    """Refuse where more than half of a folder's rows have lost their file, but for files that have moved.

    A file has moved where a new or changed image has its content. Images are read to tell, but only where the loss is
    great without that, and until it is small. It is told before any is embedded: once the images of a wrong folder have
    their rows, what was lost beside them looks small.

    Raises:
        UsageError: there are that many.
    """
    copies = Counter(comparison.gone["hash"].to_pylist())
    lost = copies.total()
    contents = _contents(listing, comparison)
    while lost * 2 > comparison.rows:
        content = next(contents, None)
        if content is None:
            raise UsageError(
                f"{lost:,} of the {comparison.rows:,} images that the gallery has of this folder are no more",
                where=listing.root,
                remedy="Is it mounted, and the right one? If they are to be dropped, say so with --yes.",
            )
        lost -= copies.pop(content, 0)


def _contents(listing: Listing, comparison: Comparison) -> Iterator[str]:
    """The hashes of new and changed images that may be lost ones: they have the size of one."""
    images = listing.images.take(comparison.wanted)
    for image in images.take(np.flatnonzero(np.isin(images.sizes, comparison.gone["size"].to_numpy()))):
        with suppress(ImageError):
            yield content_hash(read_content(listing.root / image.path))


def still_gone(comparison: Comparison) -> pa.Table:
    """Path, size and time of the rows whose file is no more by now.

    A file that is there under its real name came after the folder was listed. A link that is there and was not listed
    leads to what is listed otherwise, or is not to be followed.
    """
    there = [os.path.isfile(path) and os.path.realpath(path) == path for path in comparison.gone[KEY].to_pylist()]
    return comparison.gone.select(STAMP).filter(pa.array([not one for one in there], pa.bool_()))

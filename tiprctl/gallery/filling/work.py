"""The images that a process has still to read, of which other processes may do some."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tiprctl.gallery.filling.listing import ImageFile, Images

_AT_ONCE = 256


class Work:
    """Images by their places, `(n,)` integers, handed out in their order; what is left can change meanwhile."""

    def __init__(self, images: Images, places: np.ndarray):
        self._images = images
        self._places = places
        self._generator = np.random.default_rng()

    def __len__(self) -> int:
        """How many images are left."""
        return len(self._places)

    def __iter__(self) -> Iterator[ImageFile]:
        while len(self._places):
            some, self._places = np.split(self._places, [_AT_ONCE])
            yield from self._images.take(some)

    def keep(self, places: np.ndarray) -> int:
        """Leave out all but these; how many that were."""
        before = len(self._places)
        self._places = self._places[np.isin(self._places, places)]
        return before - len(self._places)

    def go_elsewhere(self) -> None:
        """Go on from anywhere in what is left, so that two processes with the same work do not do it side by side.

        The place is drawn without a seed, since the two must draw different ones.
        """
        if len(self._places):
            self._places = np.roll(self._places, -int(self._generator.integers(len(self._places))))

"""Synthetic vectors with the structure of people's crops and of the texts that describe them."""

from __future__ import annotations

import numpy as np

CROPS = 8
"""A person."""
BLOCK = 50_000
"""Rows that are made at a time."""


class Crops:
    """Unit vectors as an encoder like CLIP makes them, the same for the same seed; any block without those before it.

    All randomness has a spectrum whose k-th direction has a variance in proportion to 1 / k, as CLIP's decays. Crops
    lie in a cone around one direction, a person's around the person's own centre: two crops of one person have a cosine
    of about 0.9, of two persons about 0.4. Texts lie around another direction, as CLIP's do, and share with the crops
    that they describe only a part, about as large as what they add: the best crop of a text has a cosine of about 0.3,
    others of 0.0, and the ten best ones differ little.
    """

    def __init__(self, width: int, seed: int = 0):
        generator = np.random.default_rng([seed, 0])
        directions, _ = np.linalg.qr(generator.standard_normal((width, width)))
        scale = np.arange(1, width + 1) ** -0.5
        self._seed = seed
        self._width = width
        self._spread = (directions * (scale / np.linalg.norm(scale))[:, None]).astype(np.float32)
        self._crop_cone, self._text_cone = _unit(generator.standard_normal((2, width)).astype(np.float32))

    def block(self, number: int, rows: int = BLOCK) -> np.ndarray:
        """The crops of a block, float32 `(rows, width)`."""
        generator = np.random.default_rng([self._seed, 1, number])
        centres = np.repeat(self._centres(number), CROPS, axis=0)[:rows]
        return _unit(self._crop_cone + centres + 0.6 * self._noise(generator, rows))

    def texts(self, blocks: int, count: int, draw: int = 0) -> np.ndarray:
        """Queries that describe persons of the first blocks, float32 `(count, width)`; another `draw` has others."""
        generator = np.random.default_rng([self._seed, 2, draw])
        centres = self._some_centres(generator, blocks, count)
        return _unit(1.2 * self._text_cone + 0.6 * centres + 0.6 * self._noise(generator, count))

    def images(self, blocks: int, count: int) -> np.ndarray:
        """Queries that show persons of the first blocks, in crops that are no rows, float32 `(count, width)`."""
        generator = np.random.default_rng([self._seed, 3])
        centres = self._some_centres(generator, blocks, count)
        return _unit(self._crop_cone + centres + 0.6 * self._noise(generator, count))

    def _some_centres(self, generator: np.random.Generator, blocks: int, count: int) -> np.ndarray:
        """Those of persons who are spread evenly over the blocks."""
        return np.concatenate(
            [generator.choice(self._centres(number), size) for number, size in enumerate(_shares(count, blocks))]
        )

    def _centres(self, number: int) -> np.ndarray:
        return self._noise(np.random.default_rng([self._seed, 4, number]), BLOCK // CROPS)

    def _noise(self, generator: np.random.Generator, rows: int) -> np.ndarray:
        return generator.standard_normal((rows, self._width), np.float32) @ self._spread


def _shares(total: int, parts: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(total), parts)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

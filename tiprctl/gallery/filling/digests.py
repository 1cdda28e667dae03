"""Sets of strings that may have millions of members, kept as digests of 16 bytes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

BYTES = 16
"""Of a digest: 128 bits, so that two of a billion strings share one with a chance of one in 10^20."""


class DigestSet:
    """Strings to be asked for, 20 bytes each with their places: a million Python strings take a hundred megabytes.

    Args:
        members: the strings; read once.
    """

    def __init__(self, members: Iterable[str] = ()):
        digests = np.fromiter(map(_digest, members), dtype=f"S{BYTES}")
        self._order = in_few_bytes(np.argsort(digests, kind="stable"))
        self._sorted = digests[self._order]

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, member: str) -> bool:
        return self.find([member])[0] >= 0

    def find(self, strings: Iterable[str]) -> np.ndarray:
        """For each string the position of the member that it is; -1 where it is none."""
        wanted = np.fromiter(map(_digest, strings), dtype=f"S{BYTES}")
        if not len(self):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        return np.where(self._sorted[places] == wanted, self._order[places], -1)

    def contains(self, strings: Iterable[str]) -> np.ndarray:
        """Which of the strings are members, bool."""
        return self.find(strings) >= 0


def in_few_bytes(places: np.ndarray) -> np.ndarray:
    """Places in a list, int32 where that holds them: half the memory of numpy's own choice."""
    return places.astype(np.int32) if not len(places) or places.max() < 2**31 else places


def _digest(text: str) -> bytes:
    # A file name that is not UTF-8 has lone surrogates.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=BYTES).digest()

"""Which rows of a batch are a process's, or those of one part of its step; and random numbers for these rows alone.

Random numbers are drawn for the whole batch and every share takes its own: a batch meets the same chance however it is
shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Share:
    """The rows from `start` to before `stop` of a batch of `total`."""

    start: int
    stop: int
    total: int

    @classmethod
    def whole(cls, total: int) -> Share:
        """All rows of a batch."""
        return cls(0, total, total)

    def __len__(self) -> int:
        return self.stop - self.start

    def of(self, rows: Tensor) -> Tensor:
        """These of a whole batch's rows `(total, ...)`."""
        return rows[self.start : self.stop]

    def split(self, parts: int) -> list[Share]:
        """The share cut into so many, in order; their lengths differ by one at most."""
        length, longer = divmod(len(self), parts)
        edges = [self.start + part * length + min(part, longer) for part in range(parts + 1)]
        return [Share(start, stop, self.total) for start, stop in pairwise(edges)]


def uniform(rows: int, *shape: int, generator: Generator, share: Share | None = None) -> Tensor:
    """Numbers from 0 to 1, `(rows, *shape)` on the generator's device; `share` tells whose the rows are, None: a batch's."""
    share = share or Share.whole(rows)
    return share.of(torch.rand(share.total, *shape, generator=generator, device=generator.device))


def integers(low: int, high: int, rows: int, *shape: int, generator: Generator, share: Share | None = None) -> Tensor:
    """Whole numbers from `low` to before `high`, `(rows, *shape)`; see `uniform`."""
    share = share or Share.whole(rows)
    return share.of(torch.randint(low, high, (share.total, *shape), generator=generator, device=generator.device))

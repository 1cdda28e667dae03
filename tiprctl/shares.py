"""Which rows of a batch are a process's, or those of one part of its step; and random numbers for these rows alone.

Random numbers are drawn for the whole batch and every share takes its own: a batch meets the same chance however it is
shared.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Generator, Tensor

Whole = TypeVar("Whole")


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

    def of(self, whole: Whole) -> Whole:
        """These rows of a tensor or array, of a dataclass of such, or of what knows its own by a method `rows`.

        Of what is not there, None, no row is.
        """
        if whole is None:
            return None
        if hasattr(whole, "rows"):
            return whole.rows(self)
        if is_dataclass(whole):
            return replace(whole, **{each.name: self.of(getattr(whole, each.name)) for each in fields(whole)})
        return whole[self.start : self.stop]

    def rows(self, part: Share) -> Share:
        """Some of these rows; `part` counts from the first of them."""
        return Share(self.start + part.start, self.start + part.stop, self.total)

    def split(self, parts: int) -> list[Share]:
        """The share cut into so many, in order; their lengths differ by one at most."""
        length, longer = divmod(len(self), parts)
        edges = [self.start + part * length + min(part, longer) for part in range(parts + 1)]
        return [Share(start, stop, self.total) for start, stop in pairwise(edges)]


def uniform(rows: int, *shape: int, generator: Generator, share: Share | None = None) -> Tensor:
    """Numbers from 0 to 1, `(rows, *shape)` on the generator's device; `share`: whose the rows are, None: a batch's."""
    share = share or Share.whole(rows)
    return share.of(torch.rand(share.total, *shape, generator=generator, device=generator.device))


def integers(low: int, high: int, rows: int, *shape: int, generator: Generator, share: Share | None = None) -> Tensor:
    """Whole numbers from `low` to before `high`, `(rows, *shape)`; see `uniform`."""
    share = share or Share.whole(rows)
    return share.of(torch.randint(low, high, (share.total, *shape), generator=generator, device=generator.device))

"""Rows of a batch that lie apart put together: those of a process's parts, and those of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tiprctl.distributed import gather
from tiprctl.models.encodings import Views, hidden_places
from tiprctl.shares import Share


class Gathered:
    """The `total` rows of a whole batch, `own` being this process's share; each tensor is gathered when first read.

    What holds tensors, such as `Tokens`, is gathered as far as it is read. All processes are to read the same in the
    same order.
    """

    def __init__(self, own: Any, total: int):
        self._own = own
        self._total = total

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._own, name)
        if isinstance(value, Tensor):
            value = gather(value, self._total)
        elif isinstance(value, Share):
            value = Share.whole(self._total)
        elif is_dataclass(value):
            value = Gathered(value, self._total)
        setattr(self, name, value)
        return value


class GatheredEncodings(Gathered, Views):
    """The encodings of a batch whose shares are encoded by several processes."""

    @cached_property
    def hidden(self) -> Tensor:
        """As in `Encodings`, counted in the whole batch."""
        return hidden_places(self.token_labels)


def concatenated(parts: Sequence[Any]) -> Any:
    """The rows of several tensors, or dataclasses that hold them, in order; of anything else the first."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if is_dataclass(first) and not isinstance(first, type):
        columns = {each.name: concatenated([getattr(part, each.name) for part in parts]) for each in fields(first)}
        return replace(first, **columns)
    return first

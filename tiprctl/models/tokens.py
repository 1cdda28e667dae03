"""What a tower makes of one modality: tokens, and which of them stands for the whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of B images or captions.

    `values` (B, L, D); `place` (B,) the global token's position; `visible` (B, L), True for what belongs to the caption
    and False for padding, None where all does; `attention` (B, L) how much the global token looks at each in the
    tower's last block, averaged over the heads and without gradient, None where the head does not ask for it.
    `words` (B, L), True for what is neither padding nor a mark such as start and end, None where a tower makes no
    marks; `context`, the most tokens that the tower makes, however short this batch is; None: as many as here. Where
    the global token was asked for alone there is no other (L = 1), and `complete` is False.
    """

    values: Tensor
    place: Tensor
    visible: Tensor | None = None
    attention: Tensor | None = None
    words: Tensor | None = None
    context: int | None = None
    complete: bool = True

    @cached_property
    def whole(self) -> Tensor:
        """The global token, `(B, D)`."""
        return self.values[torch.arange(self.values.shape[0], device=self.values.device), self.place]

    @cached_property
    def local(self) -> Tensor:
        """Which tokens show a part of the whole, (B, L): the patches or the words, never the global token."""
        everything = torch.ones_like(self.values[..., 0], dtype=torch.bool) if self.visible is None else self.visible
        words = everything if self.words is None else self.words
        return words.scatter(1, self.place[:, None], False)

    @property
    def length(self) -> int:
        """The tokens that the tower makes where nothing is cut or spared."""
        return self.context or self.values.shape[1]


def caption_masks(ends: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which of `length` tokens belong to captions whose end mark is at `ends` (B,), and which are words: both (B, L).

    The former are True up to the end mark, the latter between it and the start mark, which is the first token.
    """
    positions, ends = torch.arange(length, device=ends.device), ends[:, None]
    return positions <= ends, (positions > 0) & (positions < ends)

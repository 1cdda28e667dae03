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
    """

    values: Tensor
    place: Tensor
    visible: Tensor | None = None
    attention: Tensor | None = None

    @cached_property
    def whole(self) -> Tensor:
        """The global token, `(B, D)`."""
        return self.values[torch.arange(len(self.values), device=self.values.device), self.place]

"""What CFR and FCD share: a similarity of local tokens, and the loss that ranks the sum of several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from tiprctl.config import NonNegative, frozen
from tiprctl.errors import UsageError
from tiprctl.losses.ranking import ranking_loss
from tiprctl.models.encodings import Encodings, PairBatch
from tiprctl.models.heads.base import Selection
from tiprctl.models.tokens import Tokens
from tiprctl.objectives.base import Loss, Objective, ObjectiveOutput


@frozen
class RankedConfig:
    """`margin` by which a pair is to beat a negative that scores above it, in units of the summed similarity."""

    margin: NonNegative = 0.2


class RankedSimilarity(Objective):
    """Base of the objectives that rank pairs by a similarity of their own.

    A subclass gives `similarity`; its `Config` extends `RankedConfig`. Those that are active together rank their sum
    with one hinge, as published (`rank`), and so need the same weight and margin.
    """

    needs_head: ClassVar[str | None] = "parts"
    group = "ranked"

    def similarity(self, enc: Encodings) -> Tensor:
        """Similarities `(B, B)` float32, rows images, columns texts."""
        raise NotImplementedError(f"{type(self).__name__} does not define its similarity")

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        return rank([self], enc, batch)

    @classmethod
    def together(cls, objectives: Sequence[RankedSimilarity], weights: Sequence[float]) -> Loss:
        if len(set(weights)) > 1 or len({objective.config.margin for objective in objectives}) > 1:
            names = "+".join(objective.name for objective in objectives)
            raise UsageError(
                f"The objectives {names} rank one sum of similarities, and cannot have different weights or margins",
                where="objectives",
                remedy="Give them the same weight and the same margin, or train with one of them at a time.",
            )
        return partial(rank, objectives)


def rank(objectives: Sequence[RankedSimilarity], enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
    """The ranking loss of the objectives' summed similarities, with the margin of the first."""
    similarity = torch.stack([objective.similarity(enc) for objective in objectives]).sum(dim=0)
    return ObjectiveOutput(ranking_loss(similarity, batch.pids, margin=objectives[0].config.margin))


def picked(tokens: Tokens, selection: Selection, groups: int | None = None) -> tuple[Tensor, Tensor]:
    """The tokens `(B, K, D)` of the first `groups`, or all, in order of attention, and which are there, (B, K).

    Where none is, as in a caption without a word, the global token stands for them, so every sample has one.
    """
    index, found = selection.index[:, :groups].flatten(1), selection.found[:, :groups].flatten(1)
    first = torch.arange(index.shape[1], device=index.device) == 0
    index = torch.where(first & ~found, tokens.place[:, None], index)
    rows = torch.arange(len(index), device=index.device)[:, None]
    return tokens.values[rows, index], found | first

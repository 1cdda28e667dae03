"""Multi-grained global features: the whole and its salient parts matched and classified (CFine, TIP 2023)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tiprctl.config import NonNegative, frozen
from tiprctl.losses.cmpc import cmpc_loss
from tiprctl.losses.cmpm import cmpm_loss
from tiprctl.losses.diversity import diversity_loss
from tiprctl.models.encodings import EncoderSpec, Encodings, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput, Role


@frozen
class MgfConfig:
    """The weights of the terms; that of the matching of the global features and of the first parts is 1.

    `later`: matching of the parts after the first; `classification`: of all features; `diversity`: of the parts.
    """

    later: NonNegative = 0.1
    classification: NonNegative = 1.0
    diversity: NonNegative = 0.2


class MultiGrainedFeatures(Objective):
    """CMPM and CMPC of the head's global features and of those of its parts, and the parts' diversity.

    One classifier tells the identities from all of them.
    """

    name, Config = "mgf", MgfConfig
    needs_head = "parts"
    knows_people = True

    def __init__(self, config: MgfConfig, spec: EncoderSpec):
        super().__init__(config, spec)
        self.grain = spec.clip.embed_dim
        self.weight = nn.Parameter(torch.empty(self.grain, spec.identities))
        nn.init.xavier_uniform_(self.weight)

    def roles(self) -> Iterable[tuple[Role, nn.Module]]:
        yield Role.CLASSIFIER, self

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        image, text = self._grains(enc.image), self._grains(enc.text)
        pairs = list(zip(image.unbind(dim=1), text.unbind(dim=1)))
        matching = torch.stack([cmpm_loss(*pair, batch.pids) for pair in pairs])
        matching = matching[:2].sum() + self.config.later * matching[2:].sum()
        classification = torch.stack([cmpc_loss(*pair, batch.pids, self.weight) for pair in pairs]).sum()
        diversity = diversity_loss(image[:, 1:]) + diversity_loss(text[:, 1:])
        loss = matching + self.config.classification * classification + self.config.diversity * diversity
        return ObjectiveOutput(loss, {"cmpm": matching, "cmpc": classification, "diversity": diversity})

    def _grains(self, features: Tensor) -> Tensor:
        """The global feature and those of the parts, `(B, 1 + G, D)`, of a vector of them all."""
        return features.unflatten(1, (-1, self.grain))

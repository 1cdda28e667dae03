"""Identity classification of both modalities by one classifier (instance loss, as in IRRA)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from tiprctl.config import frozen
from tiprctl.losses.identity import identity_loss
from tiprctl.models.encodings import EncoderSpec, Encodings, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput, Role


@frozen
class IdentityConfig:
    """Nothing to choose."""


class IdentityClassification(Objective):
    """Mean cross-entropy of image and caption features under a shared linear classifier."""

    name, Config = "id", IdentityConfig
    knows_people = True

    def __init__(self, config: IdentityConfig, spec: EncoderSpec):
        super().__init__(config, spec)
        self.classifier = nn.Linear(spec.feature_width, spec.identities)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def roles(self) -> Iterable[tuple[Role, nn.Module]]:
        yield Role.CLASSIFIER, self.classifier

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        loss = identity_loss(self.classifier(enc.image), self.classifier(enc.text), batch.pids)
        return ObjectiveOutput(loss)

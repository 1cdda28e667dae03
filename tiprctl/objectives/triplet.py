"""Cross-modal triplet loss on the hardest negatives of the batch (SEN, Neural Networks 2025)."""

from __future__ import annotations

from tiprctl.config import NonNegative, frozen
from tiprctl.losses.triplet import triplet_loss
from tiprctl.models.encodings import Encodings, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput


@frozen
class TripletConfig:
    """`margin` in cosine distance."""

    margin: NonNegative = 0.05


class CrossModalTriplet(Objective):
    """Keeps each pair closer, by a margin, than the most similar sample of another identity."""

    name, Config = "triplet", TripletConfig

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        return ObjectiveOutput(triplet_loss(enc.similarity, batch.pids, margin=self.config.margin))

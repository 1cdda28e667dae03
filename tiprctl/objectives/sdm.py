"""Similarity distribution matching of the global features (IRRA, CVPR 2023)."""

from __future__ import annotations

from tiprctl.config import Positive, frozen
from tiprctl.losses.sdm import sdm_loss
from tiprctl.models.encodings import Encodings, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput


@frozen
class SdmConfig:
    """`temperature` divides the cosine; the papers fix it at 0.02 (logit scale 50)."""

    temperature: Positive = 0.02


class SimilarityDistributionMatching(Objective):
    """Matches the softmax of the similarities to the distribution of identity matches, both ways."""

    name, Config = "sdm", SdmConfig

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        return ObjectiveOutput(sdm_loss(enc.similarity, batch.pids, logit_scale=1 / self.config.temperature))

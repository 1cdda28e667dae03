"""Image-text contrast with a learned temperature (CLIP, ICML 2021)."""

from __future__ import annotations

import math

import torch
from torch import nn

from tiprctl.config import Positive, frozen
from tiprctl.losses.itc import itc_loss
from tiprctl.models.encodings import EncoderSpec, Encodings, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput

MAX_SCALE = 100.0


@frozen
class ItcConfig:
    """`temperature` is where the learned temperature starts; its inverse never exceeds 100, as in CLIP."""

    temperature: Positive = 0.07


class ImageTextContrast(Objective):
    """Symmetric InfoNCE over the pairs of the batch."""

    name, Config = "itc", ItcConfig

    def __init__(self, config: ItcConfig, spec: EncoderSpec):
        super().__init__(config, spec)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        scale = self.log_scale.exp().clamp(max=MAX_SCALE)
        return ObjectiveOutput(itc_loss(enc.similarity, logit_scale=scale), {"logit_scale": scale.detach()})

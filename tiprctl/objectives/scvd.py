"""Dynamic focus alignment of images, captions and their phrases (SCVD, TCSVT 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from tiprctl.config import NonNegative, Positive, frozen
from tiprctl.losses.cmpm import cmpm_loss
from tiprctl.losses.sdm import sdm_loss
from tiprctl.models.encodings import Encodings, Needs, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput
from tiprctl.transfer import to_device


@frozen
class ScvdConfig:
    """The parts' weights beside the loss of the indexed features; all 1, as the paper's loss is a plain sum.

    `temperature` divides the scores of pairs; 0.02, as in `sdm`.
    """

    matching: NonNegative = 1.0
    local: NonNegative = 1.0
    temperature: Positive = 0.02


class DynamicFocusAlignment(Objective):
    """CMPM of the indexed features and of what each phrase finds in its image, and SDM of the scores of all pairs.

    The scores are those of re-ranking, of each image with each caption of the batch: the phrases learn to tell people
    apart. Only the paper's abstract is public; what is our reading is listed in docs/methods/scvd.md.
    """

    name, Config = "scvd", ScvdConfig
    needs_head = "division"

    def needs(self) -> Needs:
        return Needs(pairs=True)

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        whole = cmpm_loss(enc.image, enc.text, batch.pids)
        matching = sdm_loss(enc.related.scores, batch.pids, logit_scale=1 / self.config.temperature)
        local = _local_loss(enc, batch.prompts.found)
        loss = whole + self.config.matching * matching + self.config.local * local
        return ObjectiveOutput(loss, {"global": whole, "matching": matching, "local": local})


def _local_loss(enc: Encodings, found: Tensor) -> Tensor:
    """CMPM of regions and prompts of the true pairs, slot by slot, summed; phrases of the same words match.

    A phrase counts as far as the head's focus trusts it in its image, without a gradient: else the focus would turn to
    whatever is aligned already. A caption's slots so have weights which sum to 1. A pair without a phrase in a slot is
    no anchor and no negative there: `found` (B, M) says so on the host, where nobody waits for how many are left.
    """
    prompts, pairs = enc.prompts, torch.arange(len(enc.image), device=enc.image.device)
    regions, weights = (each[pairs, pairs] for each in (enc.related.regions, enc.related.focus.detach() / len(pairs)))
    there = [to_device(each.nonzero().flatten(), regions.device) for each in found.unbind(dim=1)]
    return sum(
        cmpm_loss(
            regions[here, slot], prompts.values[here, slot], prompts.index[here, slot], weights=weights[here, slot]
        )
        for slot, here in enumerate(there)
    )

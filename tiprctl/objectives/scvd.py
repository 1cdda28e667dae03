"""Dynamic focus alignment of images, captions and their phrases (SCVD, TCSVT 2024)."""

from __future__ import annotations

from torch import Tensor

from tiprctl.config import NonNegative, frozen
from tiprctl.losses.cmpm import cmpm_loss
from tiprctl.models.encodings import Encodings, Needs, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput


@frozen
class ScvdConfig:
    """The parts' weights beside the loss of the indexed features; all 1, as the paper's loss is a plain sum."""

    reconstruction: NonNegative = 1.0
    local: NonNegative = 1.0


class DynamicFocusAlignment(Objective):
    """CMPM of the whole pairs, indexed and reconstructed, and of what each phrase finds in its image.

    A phrase counts as far as the head's focus trusts it in this image, without a gradient: else the focus would turn to
    whatever is aligned already. Only the paper's abstract is public; what is our reading is listed in
    docs/methods/scvd.md.
    """

    name, Config = "scvd", ScvdConfig
    needs_head = "division"

    def needs(self) -> Needs:
        return Needs(prompts=True)

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        whole = cmpm_loss(enc.image, enc.text, batch.pids)
        reconstruction = cmpm_loss(enc.image, enc.related.text, batch.pids)
        local = _local_loss(enc)
        loss = whole + self.config.reconstruction * reconstruction + self.config.local * local
        return ObjectiveOutput(loss, {"global": whole, "reconstruction": reconstruction, "local": local})


def _local_loss(enc: Encodings) -> Tensor:
    """CMPM of regions and prompts, slot by slot, summed; phrases of the same words match.

    A caption's slots have the weights of its focus, which sum to 1. A pair without a phrase in a slot is no anchor and
    no negative there.
    """
    related, found = enc.related, enc.prompt_found
    weights = related.focus.detach() / len(found)
    return sum(
        cmpm_loss(
            related.regions[here, slot],
            enc.prompts[here, slot],
            enc.prompt_index[here, slot],
            weights=weights[here, slot],
        )
        for slot, here in enumerate(found.unbind(dim=1))
    )

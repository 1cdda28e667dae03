"""Dynamic focus alignment of images, captions and their phrases (SCVD, TCSVT 2024)."""

from __future__ import annotations

from torch import Tensor

from tiprctl.config import NonNegative, frozen
from tiprctl.errors import UsageError
from tiprctl.losses.cmpm import cmpm_loss
from tiprctl.models.encodings import EncoderSpec, Encodings, Needs, PairBatch
from tiprctl.objectives.base import Objective, ObjectiveOutput

HEAD = "division"


@frozen
class ScvdConfig:
    """The parts' weights beside the loss of the indexed features; all 1, as the paper's loss is a plain sum."""

    reconstruction: NonNegative = 1.0
    local: NonNegative = 1.0


class DynamicFocusAlignment(Objective):
    """CMPM of the whole pairs, indexed and reconstructed, and of what each phrase finds in its image.

    A phrase counts as far as the head's focus trusts it in this image; the focus itself learns from the
    reconstruction alone, or it would only look for what is aligned already. Only the paper's abstract is public; what
    is our reading is listed in docs/methods/scvd.md.

    Raises:
        UsageError: the encoder has another head than `division`.
    """

    name, Config = "scvd", ScvdConfig

    def __init__(self, config: ScvdConfig, spec: EncoderSpec):
        super().__init__(config, spec)
        if spec.head != HEAD:
            raise UsageError(
                f"The objective scvd needs the head {HEAD}, but the model has the head {spec.head}",
                where="model.head",
                remedy=f"Give `--set model.head={HEAD}`, or train without scvd.",
            )

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

"""Masked language modelling with the image's help (IRRA, CVPR 2023: implicit relation reasoning)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from tiprctl.config import Count, frozen
from tiprctl.losses.mlm import mlm_loss
from tiprctl.models.blocks import CrossAttention, decoder_blocks
from tiprctl.models.clip import LayerNorm, QuickGELU
from tiprctl.models.encodings import EncoderSpec, Encodings, Masks, Needs, PairBatch, TextMask
from tiprctl.objectives.base import Objective, ObjectiveOutput, Role


@frozen
class MlmConfig:
    """How much of the caption is masked, and what tells it.

    `ratio` is the share of the tokens that is masked, `depth` the number of the decoder's blocks.
    `attend_padding`: tokens may look at the caption's padding, as in the published code.
    """

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.15
    depth: Count = 4
    attend_padding: bool = False


class MaskedLanguageModelling(Objective):
    """Tells the masked tokens of the caption from the rest of it and from the image.

    Deviation from the published code: the caption's padding is masked unless `attend_padding`.
    """

    name, Config = "mlm", MlmConfig
    by_row = True

    def __init__(self, config: MlmConfig, spec: EncoderSpec):
        super().__init__(config, spec)
        width = spec.clip.embed_dim
        self.cross = CrossAttention(width, depth=config.depth)
        self.transformer = decoder_blocks(width, config.depth)
        self.ln_post = LayerNorm(width)
        self.head = nn.Sequential(
            OrderedDict(
                dense=nn.Linear(width, width),
                gelu=QuickGELU(),
                ln=LayerNorm(width),
                fc=nn.Linear(width, spec.clip.vocab_size),
            )
        )
        nn.init.normal_(self.head.dense.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.head.fc.weight, std=width**-0.5 * (2 * config.depth) ** -0.5)
        for linear in (self.head.dense, self.head.fc):
            nn.init.zeros_(linear.bias)

    def needs(self) -> Needs:
        mask = TextMask(self.config.ratio)
        return Needs(masked_text=mask, image_tokens=True, padded_text=self.config.attend_padding)

    def roles(self) -> Iterable[tuple[Role, nn.Module]]:
        """As in the published code, the norms between the modules learn as the towers do."""
        for module in (self.cross.attn, self.transformer):
            yield Role.FAST, module
        for norm in (self.cross.ln_query, self.cross.ln_context, self.ln_post):
            yield Role.BASE, norm
        yield Role.CLASSIFIER, self.head

    def count(self, masks: Masks, batch: PairBatch) -> int:
        return len(masks.hidden)

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        labels = enc.token_labels.flatten()[enc.hidden]
        logits = self.tell(enc)
        right = (logits.argmax(dim=1) == labels).float().sum() / max(1, len(labels))
        return ObjectiveOutput(mlm_loss(logits, labels), {"accuracy": right})

    def tell(self, enc: Encodings) -> Tensor:
        """Scores of all words for each of the M masked tokens, caption by caption, `(M, vocabulary)`."""
        visible = None if self.config.attend_padding else enc.masked_captions.visible
        tokens = self.transformer(self.cross(enc.masked_captions.values, enc.image_tokens), visible)
        return self.head(self.ln_post(tokens.flatten(0, 1)[enc.hidden]))

"""Text-guided image restoration (SEN, Neural Networks 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tiprctl.config import Count, frozen
from tiprctl.errors import UsageError
from tiprctl.losses.restoration import restoration_loss
from tiprctl.models.blocks import CrossAttention, decoder_blocks
from tiprctl.models.clip import ClipConfig, LayerNorm, grid_positions
from tiprctl.models.encodings import EncoderSpec, Encodings, ImageMask, Needs, PairBatch
from tiprctl.models.masking import hidden_patches, kept_patches, patchify, standardise
from tiprctl.objectives.base import Objective, ObjectiveOutput, Role

WHERE = "objective tir"


@frozen
class TirConfig:
    """How much of the image is hidden, and what restores it.

    `mask_ratio` is the share of the patches that is hidden, `depth` the number of the decoder's blocks.
    `normalise_patches`: restore each patch at mean 0 and variance 1, so its structure and not its colour.
    `attend_padding`: patches may look at the caption's padding, as in the published code.
    """

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.7
    depth: Count = 4
    normalise_patches: bool = False
    attend_padding: bool = False


class TextGuidedRestoration(Objective):
    """Restores the colours of hidden patches from the visible ones, in grey, and the caption (SEN's `mae`).

    Deviations from the published code: every hidden patch enters the loss (there, one an image is left out), the
    caption is encoded once, and its padding is masked unless `attend_padding`.

    Raises:
        UsageError: the patches do not tile the image, or the ratio hides none of them.
    """

    name, Config = "tir", TirConfig
    by_row = True

    def __init__(self, config: TirConfig, spec: EncoderSpec):
        super().__init__(config, spec)
        clip = spec.clip
        _check(config, clip)
        width = clip.embed_dim
        self.patch_size = clip.patch_size
        self.ln_visible = LayerNorm(width)
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Embedding(1, width)
        self.cross = CrossAttention(width, depth=config.depth)
        self.ln_attended = LayerNorm(width)
        self.transformer = decoder_blocks(width, config.depth)
        self.ln_post = LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * clip.patch_size**2)
        # The published order: columns before rows; nothing for the class token.
        positions = F.pad(grid_positions(clip.grid, width).roll(width // 2, dims=1), (0, 0, 1, 0))
        self.register_buffer("positions", positions, persistent=False)
        nn.init.normal_(self.mask_token.weight, std=0.02)
        for linear in (self.embed, self.pixels):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def needs(self) -> Needs:
        mask = ImageMask(self.config.mask_ratio)
        return Needs(masked_image=mask, text_tokens=True, padded_text=self.config.attend_padding)

    def roles(self) -> Iterable[tuple[Role, nn.Module]]:
        """As in the published code, only what relates image and text learns fast."""
        for module in (self.cross.attn, self.transformer):
            yield Role.FAST, module
        for norm in (self.ln_visible, self.cross.ln_query, self.cross.ln_context, self.ln_attended, self.ln_post):
            yield Role.BASE, norm
        for module in (self.embed, self.mask_token, self.pixels):
            yield Role.BASE, module

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        prediction = self.restore(enc)
        target = patchify(batch.pixels, self.patch_size)
        if self.config.normalise_patches:
            target = standardise(target)
        return ObjectiveOutput(restoration_loss(prediction, target, hidden_patches(enc.kept, target.shape[1])))

    def restore(self, enc: Encodings) -> Tensor:
        """All patches, hidden and visible, `(B, N, P)` in the order of `patchify`: normalised pixels.

        Where the objective is trained with `normalise_patches`, each is at mean 0 and variance 1.
        """
        attended = self.cross(self._patches(enc), enc.text_tokens, self._words(enc))
        tokens = self.transformer(self.ln_attended(attended))
        return self.pixels(self.ln_post(tokens[:, 1:]))

    def attention(self, enc: Encodings) -> Tensor:
        """How much each patch looks at each token of the caption, `(B, N, L)`, averaged over the heads."""
        return self.cross.weights(self._patches(enc), enc.text_tokens, self._words(enc))[:, 1:]

    def _patches(self, enc: Encodings) -> Tensor:
        """The class token and all patches in grid order, `(B, 1 + N, D)`: the mask token where one is hidden."""
        visible = self.embed(self.ln_visible(enc.masked_image_tokens))
        places = F.pad(enc.kept + 1, (1, 0)).unsqueeze(2).expand_as(visible)
        blank = self.mask_token.weight.to(visible.dtype).expand(len(visible), *self.positions.shape)
        return blank.scatter(1, places, visible) + self.positions

    def _words(self, enc: Encodings) -> Tensor | None:
        """Which tokens of the text may be looked at, (B, L); None: all."""
        return None if self.config.attend_padding else enc.captions.visible


def _check(config: TirConfig, clip: ClipConfig) -> None:
    """Refuse an encoder whose patches cannot be restored."""
    patch, (height, width) = clip.patch_size, clip.image_size
    if clip.stride != patch:
        raise UsageError(
            f"Restoration needs patches that do not overlap, "
            f"but the stride is {clip.stride} and the patch {patch} pixels",
            where=WHERE,
            remedy=f"Train with a stride of {patch}, or without tir.",
        )
    if height % patch or width % patch:
        raise UsageError(
            f"Restoration needs patches that fill the image, but {patch} does not divide {height} x {width} pixels",
            where=WHERE,
            remedy=f"Choose an image size of multiples of {patch}, such as "
            f"{height // patch * patch} x {width // patch * patch}, or train without tir.",
        )
    patches = math.prod(clip.grid)
    if kept_patches(patches, config.mask_ratio) == patches:
        raise UsageError(
            f"A mask ratio of {config.mask_ratio} hides none of {patches} patches",
            where=WHERE,
            remedy="Raise mask_ratio, or choose smaller patches.",
        )

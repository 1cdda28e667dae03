"""The dual encoder: a CLIP, or its image tower and a BERT, with a head; all that inference needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tiprctl.config import TEXT_ENCODER
from tiprctl.errors import UsageError
from tiprctl.models.bert import Bert
from tiprctl.models.clip import Clip
from tiprctl.models.heads import build_head
from tiprctl.models.tokens import Tokens
from tiprctl.tokenizer import Tokenizer, default_tokenizer


class DualEncoder(nn.Module):
    """Images and captions to features of one space, compared by cosine.

    Where `bert` is given it reads the captions, and of `clip` the image tower alone is kept, without its projection.

    Raises:
        UsageError: there is no such head, its options are wrong, or the towers' widths differ.
    """

    def __init__(
        self,
        clip: Clip,
        head: str = "global",
        head_options: Mapping[str, Any] | None = None,
        *,
        bert: Bert | None = None,
    ):
        super().__init__()
        self.clip = clip if bert is None else _beside(bert, clip)
        self.bert = bert
        self.head = build_head(head, head_options or {}, self.clip.config.embed_dim)

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the token ids that the text tower reads."""
        return default_tokenizer() if self.bert is None else self.bert.tokenizer

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The modules that make tokens; the head is none of them."""
        return (self.clip,) if self.bert is None else (self.clip, self.bert)

    def see(self, pixels: Tensor, *, whole_only: bool = False) -> Tokens:
        """The tokens of normalised images `(B, 3, H, W)`: the global one first, then the patches.

        With `whole_only` the global one only, at less work, unless the head reads the others.
        """
        spared = whole_only and self.head.reads_whole
        return self.clip.see(pixels, attention=self.head.needs_attention, whole_only=spared)

    def read(self, token_ids: Tensor, *, whole_only: bool = False) -> Tokens:
        """The tokens of captions `(B, L)`; `whole_only` as in `see`.

        With CLIP the global one is the end token; with BERT it is the first.
        """
        tower, spared = self.bert or self.clip, whole_only and self.head.reads_whole
        return tower.read(token_ids, attention=self.head.needs_attention, whole_only=spared)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` to features `(B, F)`, not normalised."""
        return self.head.image(self.see(pixels, whole_only=True)).vector

    def text_features(self, token_ids: Tensor) -> Tensor:
        """Token ids `(B, L)` to features `(B, F)`, not normalised."""
        return self.head.text(self.read(token_ids, whole_only=True)).vector


def check_widths(bert: int, image_tower: int) -> None:
    """Refuse a BERT whose tokens are not as wide as those of the image tower: nothing projects either.

    Raises:
        UsageError: they are not.
    """
    if bert != image_tower:
        raise UsageError(
            f"BERT's tokens are {bert} wide, the image tower's {image_tower}, and nothing projects them",
            where=TEXT_ENCODER,
            remedy=f"Leave out {TEXT_ENCODER}, or choose towers of one width: bert-base-uncased (768) goes with "
            "--model ViT-B-16 or ViT-B-32.",
        )


def _beside(bert: Bert, clip: Clip) -> Clip:
    """The image tower of `clip`, whose tokens must be as wide as those of `bert`."""
    check_widths(bert.width, clip.config.vision_width)
    return clip.image_alone()

"""The dual encoder: a CLIP with a head, all that inference needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tiprctl.models.clip import Clip, caption_mask, word_mask
from tiprctl.models.heads import build_head
from tiprctl.models.tokens import Tokens


class DualEncoder(nn.Module):
    """Images and captions to features of one space, compared by cosine.

    Raises:
        UsageError: there is no such head, or its options are wrong.
    """

    def __init__(self, clip: Clip, head: str = "global", head_options: Mapping[str, Any] | None = None):
        super().__init__()
        self.clip = clip
        self.head = build_head(head, head_options or {}, clip.config.embed_dim)

    def see(self, pixels: Tensor) -> Tokens:
        """The tokens of normalised images `(B, 3, H, W)`: the global one first, then the patches."""
        place = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        if not self.head.needs_attention:
            return Tokens(self.clip.encode_image(pixels), place)
        values, attention = self.clip.attend_image(pixels)
        return Tokens(values, place, attention=attention)

    def read(self, token_ids: Tensor) -> Tokens:
        """The tokens of captions `(B, L)`: the global one is the end token, which has the largest id."""
        attention = None
        if self.head.needs_attention:
            values, attention = self.clip.attend_text(token_ids)
        else:
            values = self.clip.encode_text(token_ids)
        return Tokens(
            values,
            place=token_ids.argmax(dim=1),
            visible=caption_mask(token_ids),
            attention=attention,
            words=word_mask(token_ids),
            context=self.clip.config.context_length,
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` to features `(B, F)`, not normalised."""
        return self.head.image(self.see(pixels)).vector

    def text_features(self, token_ids: Tensor) -> Tensor:
        """Token ids `(B, L)` to features `(B, F)`, not normalised."""
        return self.head.text(self.read(token_ids)).vector

"""The plain CLIP head: the class token of the image, the end token of the caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GlobalToken(nn.Module):
    """Global features without parameters; `width` is the towers' embedding width."""

    name = "global"

    def __init__(self, embed_dim: int):
        super().__init__()
        self.width = embed_dim

    def image(self, image_tokens: Tensor) -> Tensor:
        """Image tokens `(B, 1+N, D)` to features `(B, D)`: the class token."""
        return image_tokens[:, 0]

    def text(self, text_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Text tokens `(B, L, D)` of ids `(B, L)` to features `(B, D)`: the end token, which has the largest id."""
        rows = torch.arange(len(text_tokens), device=text_tokens.device)
        return text_tokens[rows, token_ids.argmax(dim=-1)]

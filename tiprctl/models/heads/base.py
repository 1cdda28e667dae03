"""What a head is: it turns a tower's tokens into the features that are compared and indexed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tiprctl.models.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Selection:
    """Tokens that a head picked in G groups: `index` (B, G, K) into the tokens, True in `found` (B, G, K).

    A short caption fills a group in part: where `found` is False, the index means nothing.
    """

    index: Tensor
    found: Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """`vector` (B, F), not normalised; `selection` where the head picks tokens."""

    vector: Tensor
    selection: Selection | None = None


class Head(nn.Module):
    """Base of all heads.

    A subclass gives `name`, `Config` (a configuration dataclass), `__init__(config, embed_dim)`, which sets `width` (F),
    and `image` and `text`. `needs_attention`: whether it reads `Tokens.attention`.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    needs_attention: ClassVar[bool] = False
    width: int

    def __init__(self, config: Any, embed_dim: int):
        super().__init__()
        self.config = config
        self.width = embed_dim

    def image(self, tokens: Tokens) -> Features:
        """The features of images; what they are depends on the images alone."""
        raise NotImplementedError(f"{type(self).__name__} does not define its image features")

    def text(self, tokens: Tokens) -> Features:
        """The features of captions."""
        raise NotImplementedError(f"{type(self).__name__} does not define its text features")

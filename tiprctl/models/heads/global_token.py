"""The plain CLIP head: the class token of the image, the end token of the caption."""

from __future__ import annotations

from tiprctl.config import frozen
from tiprctl.models.heads.base import Features, Head
from tiprctl.models.tokens import Tokens


@frozen
class GlobalConfig:
    """There is nothing to choose."""


class GlobalToken(Head):
    """Global features without parameters; `width` is the towers' embedding width."""

    name, Config = "global", GlobalConfig
    reads_whole = True

    def image(self, tokens: Tokens) -> Features:
        return Features(tokens.whole)

    def text(self, tokens: Tokens) -> Features:
        return Features(tokens.whole)

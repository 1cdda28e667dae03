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


@dataclass(frozen=True, eq=False)
class Related:
    """What a head makes of each of I images with each of C captions, which have up to M phrases.

    `regions` (I, C, M, D): what each phrase's prompt finds in the image; `focus` (I, C, M): how far each is to be
    trusted, 0 where there is no phrase; `scores` (I, C) float32: how well image and caption go together, higher =
    better. Scores order the images of a caption; they are no cosines.
    """

    regions: Tensor
    focus: Tensor
    scores: Tensor


class Head(nn.Module):
    """Base of all heads.

    A subclass gives `name`, `Config` (a configuration dataclass), `__init__(config, embed_dim)`, which sets `width`
    (F), and `image` and `text`. `reads_whole`: whether these two read `Tokens.whole` alone, so that the towers are
    spared the other tokens. `needs_attention`: whether it reads `Tokens.attention`. `reranks`: whether it also looks at
    pairs, and so gives `relate`.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    reads_whole: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    reranks: ClassVar[bool] = False
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

    def relate(self, images: Tensor, patches: Tensor, captions: Tensor, prompts: Tensor, found: Tensor) -> Related:
        """Each of I images with each of C captions: all I x C pairs, none of which changes another.

        `images` (I, D) and their `patches` (I, N, D), `captions` (C, D) and their `prompts` (C, M, D) are the towers'
        tokens, not normalised. Each caption has a prompt; where `found` (C, M) is False there is none, and what stands
        in its place changes nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not look at pairs")

    def pair_scores(self, images: Tensor, patches: Tensor, captions: Tensor, prompts: Tensor, found: Tensor) -> Tensor:
        """The `scores` of `relate` alone, `(I, C)`."""
        return self.relate(images, patches, captions, prompts, found).scores

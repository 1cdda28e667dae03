"""SCVD's head: the global tokens are indexed, and what a caption's phrases find in an image scores the pair again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiprctl.config import NonNegative, Positive, frozen
from tiprctl.losses.similarity import at_least_float32
from tiprctl.models.blocks import CrossAttention
from tiprctl.models.clip import LayerNorm
from tiprctl.models.heads.base import Related
from tiprctl.models.heads.global_token import GlobalToken

PROJECTION_SHARE = 0.01
"""How long the prompts' part in a reconstructed caption is at the start, as a share of a prompt's length."""
SHORTEST = 1e-8
"""The length that a vector has at least in a cosine, so that zeros have cosine 0 with everything."""


@frozen
class DivisionConfig:
    """How far the phrases decide; all ours, the paper's values are not public.

    `focus_temperature` divides the cosines of regions and prompts: the lower, the more the best found phrase counts.
    `local_weight`: how much the phrases weigh in a pair's score, beside the cosine of image and whole caption, at 1.
    """

    focus_temperature: Positive = 1.0
    local_weight: NonNegative = 0.5


class VisualDivision(GlobalToken):
    """Divides an image by the phrases of a caption (SCVD, TCSVT 2024: cross-modal guided interaction).

    Its features are those of the head `global`, so what is indexed never depends on a query. Its parameters serve what
    looks at a pair: the objective `scvd`, and re-ranking. Only the paper's abstract is public; what is our reading
    is listed in docs/methods/scvd.md.
    """

    name, Config = "division", DivisionConfig
    reranks = True

    def __init__(self, config: DivisionConfig, embed_dim: int):
        super().__init__(config, embed_dim)
        self.cross = CrossAttention(embed_dim, depth=1)
        self.ln_region = LayerNorm(embed_dim)
        # Without a bias: what is added to a caption is made of its prompts alone.
        self.projection = nn.Linear(embed_dim, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=PROJECTION_SHARE * embed_dim**-0.5)

    def relate(self, images: Tensor, patches: Tensor, captions: Tensor, prompts: Tensor, found: Tensor) -> Related:
        """A pair scores by the cosine of image and reconstructed caption, and the focused cosines of the regions.

        The latter weigh `local_weight`, the former 1; the score is their mean, in [-1, 1].
        """
        regions = self.localise(patches, prompts)
        cosines = _cosines("icmd,cmd->icm", regions, prompts)
        focus = self.focus(cosines, found)
        whole = _cosines("icd,id->ic", self.reconstruct(captions, prompts, focus), images)
        weight = self.config.local_weight
        return Related(regions, focus, scores=(whole + weight * (focus * cosines).sum(dim=2)) / (1 + weight))

    def localise(self, patches: Tensor, prompts: Tensor) -> Tensor:
        """What each prompt `(C, M, D)` finds among the patches of each image `(I, N, D)`: regions `(I, C, M, D)`.

        The paper's text-guided visual localisation (TVL). There is no residual: a region is made of patches alone, or
        a prompt would be compared with itself. Prompts do not see each other.
        """
        return self.ln_region(self.cross.in_each(prompts.flatten(0, 1), patches)).unflatten(1, prompts.shape[:2])

    def focus(self, cosines: Tensor, found: Tensor) -> Tensor:
        """How far each phrase is to be trusted, `(I, C, M)` float32: rows sum to 1.

        Softmax of the `cosines` of regions and prompts (I, C, M) over the phrases that are `found` (C, M), one or more.
        """
        return (cosines / self.config.focus_temperature).masked_fill(~found, -torch.inf).softmax(dim=2)

    def reconstruct(self, captions: Tensor, prompts: Tensor, focus: Tensor) -> Tensor:
        """Captions `(C, D)` with prompts `(C, M, D)` worked in as far as `focus` (I, C, M) trusts them in each image.

        The paper's vision-guided semantics reconstruction (VSR): `(I, C, D)`, float32 also under autocast, whose
        rounding is as large as what is added at the start, when it is the caption, nearly.
        """
        with torch.autocast(captions.device.type, enabled=False):
            added = torch.einsum("icm,cmd->icd", focus, self.projection(at_least_float32(prompts)))
            return at_least_float32(captions) + added


def _cosines(equation: str, pairs: Tensor, sides: Tensor) -> Tensor:
    """Cosines of the vectors of pairs with those of one side, in full precision also under autocast.

    `equation` tells, as for `einsum`, which of `sides` each of `pairs` is compared with; none is copied for that.
    """
    pairs, sides = at_least_float32(pairs), F.normalize(at_least_float32(sides), dim=-1)
    with torch.autocast(pairs.device.type, enabled=False):
        return torch.einsum(equation, pairs, sides) / pairs.norm(dim=-1).clamp(min=SHORTEST)

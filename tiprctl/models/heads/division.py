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
        # Without a bias, a caption without phrases stays as it is.
        self.projection = nn.Linear(embed_dim, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=PROJECTION_SHARE * embed_dim**-0.5)

    def relate(self, image: Tensor, patches: Tensor, text: Tensor, prompts: Tensor, found: Tensor) -> Related:
        """A pair scores by the cosine of image and reconstructed caption, and the focused cosines of the regions.

        Their mean, where the latter weigh `local_weight`; a caption without phrases scores by the former alone. So all
        scores are in [-1, 1].
        """
        regions = self.localise(patches, prompts)
        cosines = _cosine(regions, prompts)
        focus = self.focus(cosines, found)
        whole = _cosine(image, self.reconstruct(text, prompts, focus))
        weights = self.config.local_weight * focus
        scores = (whole + (weights * cosines).sum(dim=1)) / (1 + weights.sum(dim=1))
        return Related(regions, focus, scores)

    def localise(self, patches: Tensor, prompts: Tensor) -> Tensor:
        """What each prompt finds among the patches `(I, N, D)`: prompts `(P, M, D)` to regions `(P, M, D)`.

        The paper's text-guided visual localisation (TVL). There is no residual: a region is made of patches alone, or
        a prompt would be compared with itself. Prompts do not see each other, so all pairs of an image look at its
        patches together, whose keys and values are by far the most work.
        """
        of_image = prompts.reshape(len(patches), -1, prompts.shape[-1])
        return self.ln_region(self.cross(of_image, patches)).view(prompts.shape)

    def focus(self, cosines: Tensor, found: Tensor) -> Tensor:
        """How far each phrase is to be trusted, `(P, M)` float32: rows sum to 1, and to 0 without any phrase.

        Softmax of the `cosines` of regions and prompts (P, M) over the phrases that are `found` (P, M).
        """
        scores = cosines / self.config.focus_temperature
        # The lowest number instead of -inf: the softmax of a row without phrases stays finite, and so its gradient.
        lowest = torch.finfo(scores.dtype).min
        return scores.masked_fill(~found, lowest).softmax(dim=1) * found

    def reconstruct(self, text: Tensor, prompts: Tensor, focus: Tensor) -> Tensor:
        """Captions `(P, D)` with their prompts `(P, M, D)` worked in as far as `focus` (P, M) trusts them, `(P, D)`.

        The paper's vision-guided semantics reconstruction (VSR). At the start it is the caption, nearly.
        """
        return text + self.projection((focus[:, :, None] * prompts).sum(dim=1))


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the vectors in the last dimension, row with row, in full precision."""
    return F.cosine_similarity(at_least_float32(first), at_least_float32(second), dim=-1)

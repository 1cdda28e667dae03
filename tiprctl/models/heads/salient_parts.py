"""The head of CFine: global features beside features of the parts that the towers look at most (TIP 2023)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tiprctl.config import Count, frozen
from tiprctl.distributed import processes, total
from tiprctl.errors import UsageError
from tiprctl.models.blocks import attention_heads
from tiprctl.models.clip import LayerNorm, QuickGELU
from tiprctl.models.heads.base import Features, Head, Selection
from tiprctl.models.tokens import Tokens

Ratio = Annotated[float, Field(gt=0, le=1)]


@frozen
class PartsConfig:
    """How many tokens are picked, and what makes features of them.

    `image_ratio` and `text_ratio` are the share of a modality's tokens in each of the `groups`: of all patches and the
    class token, of the longest caption that the tower reads. `depth` is the number of residual blocks, `heads` that of
    their attention heads; None: heads of 64, as published.
    """

    image_ratio: Ratio = 0.1
    text_ratio: Ratio = 0.2
    groups: Count = 2
    depth: Count = 1
    heads: Count | None = None

    def __post_init__(self) -> None:
        share = self.groups * max(self.image_ratio, self.text_ratio)
        if share > 1:
            raise ValueError(f"{self.groups} groups would pick {share:.0%} of the tokens")


class SalientParts(Head):
    """The global feature and one of each group of salient tokens, concatenated; `width` is that of all together.

    The tokens that the global one looks at most in the tower's last block make up the first group, the next as many
    the second. A group is the query of residual blocks that both modalities share, with the global token in front,
    where its feature comes out. One batch norm per modality goes over each feature. The parts are concatenated as long
    as they are, as published, so the longer ones weigh more in the cosine.

    Deviations from the published code:

    - Only patches and words are picked. There only the global token is ruled out, so padding and the end mark may be
      picked.
    - How many are picked follows from the tower's context, 77 tokens or BERT's 100, so a feature does not depend on the
      captions beside it. There it follows from the tokens of a row, padding included. Whether all rows have 100 is not
      known; if they have, the number is that of BERT here. A caption with fewer words fills its groups as far as it
      can, the second perhaps not at all.
    - With a `depth` above 1 each block has weights of its own; there one block runs several times.
    - A batch of one is trained with the batch norm's running statistics; there it fails.

    Raises:
        UsageError: the attention heads do not share the width.
    """

    name, Config = "parts", PartsConfig
    needs_attention = True

    def __init__(self, config: PartsConfig, embed_dim: int):
        super().__init__(config, embed_dim)
        heads = config.heads or attention_heads(embed_dim)
        if embed_dim % heads:
            raise UsageError(
                f"{heads} attention heads cannot share the width {embed_dim}",
                where=f"head {self.name}",
                remedy=f"Choose a number of heads that divides {embed_dim}.",
            )
        self.width = (1 + config.groups) * embed_dim
        self.blocks = nn.ModuleList(GroupBlock(embed_dim, heads) for _ in range(config.depth))
        self.image_neck = Neck(embed_dim)
        self.text_neck = Neck(embed_dim)

    def image(self, tokens: Tokens) -> Features:
        return self._features(tokens, self.config.image_ratio, self.image_neck)

    def text(self, tokens: Tokens) -> Features:
        return self._features(tokens, self.config.text_ratio, self.text_neck)

    def _features(self, tokens: Tokens, ratio: float, neck: Neck) -> Features:
        selection = self._select(tokens, ratio)
        parts = self._refine(tokens, selection)
        return Features(torch.cat([neck(feature) for feature in (tokens.whole, *parts)], dim=1), selection)

    def _select(self, tokens: Tokens, ratio: float) -> Selection:
        """The local tokens that the global one looks at most, in G groups of falling attention."""
        size = max(1, int(ratio * tokens.length))
        count, here = self.config.groups * size, tokens.values.shape[1]
        # Attention is never negative: what may not be picked comes last, also behind an attention of zero.
        scores = tokens.attention.masked_fill(~tokens.local, -1)
        best = F.pad(scores, (0, max(0, count - here)), value=-1).topk(count, dim=1)
        groups = (-1, size)
        return Selection(best.indices.clamp(max=here - 1).unflatten(1, groups), (best.values >= 0).unflatten(1, groups))

    def _refine(self, tokens: Tokens, selection: Selection) -> tuple[Tensor, ...]:
        """One feature `(B, D)` for each group."""
        batch, groups, _ = selection.index.shape
        rows = torch.arange(batch, device=selection.index.device)[:, None, None]
        whole = tokens.whole[:, None, None].expand(-1, groups, -1, -1)
        queries = torch.cat([whole, tokens.values[rows, selection.index]], dim=2)
        present = F.pad(selection.found, (1, 0), value=True)
        *earlier, last = self.blocks
        for block in earlier:
            queries = block(queries, present, tokens)
        return last(queries, present, tokens, first=True).squeeze(2).unbind(dim=1)


class GroupBlock(nn.Module):
    """A pre-norm residual block: a group looks at itself, then at all tokens of its modality, then a perceptron.

    As published, the tokens that are looked at come without a norm, and PyTorch's own initialisation is kept.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_self = LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_cross = LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_mlp = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, groups: Tensor, present: Tensor, tokens: Tokens, *, first: bool = False) -> Tensor:
        """Groups `(B, G, Q, D)` to `(B, G, Q, D)`; no token looks at those of its group that are not `present`.

        With `first`, only the first token of each group is asked for, `(B, G, 1, D)`, at a fraction of the work.
        """
        normed, asked = self.ln_self(groups), slice(0, 1 if first else None)
        groups = groups[:, :, asked] + self._within(normed[:, :, asked], normed, present)
        groups = groups + self._across(self.ln_cross(groups), tokens)
        return groups + self.mlp(self.ln_mlp(groups))

    def _within(self, queries: Tensor, groups: Tensor, present: Tensor) -> Tensor:
        each, absent = groups.flatten(0, 1), ~present.flatten(0, 1)
        mixed, _ = self.self_attn(queries.flatten(0, 1), each, each, key_padding_mask=absent, need_weights=False)
        return mixed.view_as(queries)

    def _across(self, groups: Tensor, tokens: Tokens) -> Tensor:
        context, hidden = tokens.values, None if tokens.visible is None else ~tokens.visible
        mixed, _ = self.cross_attn(groups.flatten(1, 2), context, context, key_padding_mask=hidden, need_weights=False)
        return mixed.view_as(groups)


class Neck(nn.BatchNorm1d):
    """Batch norm in float32 whose bias stays as it is; a batch of one is normalised by the running statistics.

    Where several processes train, the statistics are of all their rows: as `nn.SyncBatchNorm`, which knows no CPU.
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, D)` to `(B, D)`, float32 also under autocast."""
        if self.training and processes() > 1:
            return self._beside_others(x.float())
        if self.training and len(x) == 1:
            return F.batch_norm(x.float(), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x.float())

    def _beside_others(self, x: Tensor) -> Tensor:
        """A process's rows `(B, D)`, normalised by the statistics of all; together they are two or more."""
        sums = total(F.pad(x.sum(dim=0), (0, 1), value=len(x)))
        mean, rows = sums[:-1] / sums[-1], sums[-1]
        centred = x - mean
        variance = total(centred.square().sum(dim=0)) / rows
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

"""What the decoders of the objectives share: one modality's tokens look at the other's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiprctl.models.clip import HEAD_WIDTH, LayerNorm, Transformer


def decoder_blocks(width: int, depth: int) -> Transformer:
    """The blocks of a decoder, as in CLIP, with QuickGELU and fresh weights from torch's global generator."""
    transformer = Transformer(width, depth, attention_heads(width), quick_gelu=True, causal=False)
    transformer.initialise(torch.default_generator)
    return transformer


class CrossAttention(nn.Module):
    """Attention of one modality's tokens to the other's, LayerNorm before it on either side, no residual.

    IRRA's and SEN's `cross_attn`, initialised as one of `depth` blocks.
    """

    def __init__(self, width: int, *, depth: int):
        super().__init__()
        self.ln_query = LayerNorm(width)
        self.ln_context = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, attention_heads(width), batch_first=True)
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)

    def forward(self, query: Tensor, context: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens `(B, N, W)` and their context `(B, L, W)`, all of it or what is `visible` (B, L), to `(B, N, W)`."""
        return self._attend(query, context, visible, need_weights=False)[0]

    def in_each(self, query: Tensor, contexts: Tensor) -> Tensor:
        """The same tokens `(Q, W)` in each of several contexts `(I, N, W)`: `(I, Q, W)`.

        As `forward` with the tokens repeated I times, but they are normed and projected once.
        """
        contexts, attn = self.ln_context(contexts), self.attn
        maps = zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3))
        query, key, value = (F.linear(x, *each) for x, each in zip((self.ln_query(query), contexts, contexts), maps))
        # Copied: cuDNN's attention, which PyTorch may choose, does not take what is only expanded (pytorch#175764).
        queries = query.expand(len(contexts), -1, -1).contiguous()
        heads = (x.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for x in (queries, key, value))
        return attn.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, context: Tensor, visible: Tensor | None = None) -> Tensor:
        """How much each token looks at each of the context, `(B, N, L)`: rows sum to 1, averaged over the heads."""
        return self._attend(query, context, visible, need_weights=True)[1]

    def _attend(
        self, query: Tensor, context: Tensor, visible: Tensor | None, *, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        context = self.ln_context(context)
        hidden = None if visible is None else ~visible
        return self.attn(self.ln_query(query), context, context, key_padding_mask=hidden, need_weights=need_weights)


def attention_heads(width: int) -> int:
    """Attention heads of the published width; a single one where that does not divide `width`."""
    return 1 if width % HEAD_WIDTH else width // HEAD_WIDTH

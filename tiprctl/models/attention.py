"""Scaled dot-product attention, by whichever of two ways the device computes faster."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *, visible: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Queries `(B, H, Q, D)` over keys and values `(B, H, L, D)` to `(B, H, Q, D)`.

    Causal: a query sees the keys up to its own place. Without `causal` it sees those that are `visible` (B, L), or all.
    In bfloat16 on the CPU the products are written out, with the softmax in float32: that is faster than PyTorch's
    attention, whose backward pass there is slower than in float32.
    """
    if query.device.type == "cpu" and query.dtype is torch.bfloat16:
        return _written_out(query, key, value, visible, causal)
    mask = None if visible is None else visible[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def _written_out(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
    scores = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[2:], -torch.inf, device=scores.device).triu(1)
    elif visible is not None:
        scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    return scores.softmax(dim=3).to(value.dtype) @ value

"""Masking of caption tokens as in BERT, with the numbers of IRRA's code: a pure function of a generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tiprctl.shares import Share, integers, uniform

MASKED, REPLACED = 0.8, 0.1
"""Of the chosen tokens, the share that becomes the mask token and the share that becomes a random one."""


def mask_token(vocab_size: int) -> int:
    """The id of the mask token: the last one before the start and the end token.

    In CLIP's vocabulary that is the word "jekyll", whose place IRRA and SEN give to `<|mask|>`. Ours stays a word of
    the tokenizer: in a caption that is masked it cannot be told from a mask.
    """
    return vocab_size - 3


def mask_tokens(
    token_ids: Tensor,
    probability: Tensor | float,
    *,
    vocab_size: int,
    generator: Generator,
    share: Share | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids `(B, L)`, on the host, with some masked, and labels `(B, L)`: the original ids where chosen, else 0.

    `probability`, a number or `(B, L)`, is that of each token to be chosen; start, end and padding never are. Of the
    chosen, 80% become the mask token, 10% a random token, 10% stay. A caption without any gets its first token masked,
    so that each one counts (IRRA, `_build_masked_tokens_and_labels`). `share` tells which rows of a batch these are.
    """
    mask = mask_token(vocab_size)
    drawn = {"generator": generator, "share": share}
    chance, kind = (uniform(*token_ids.shape, **drawn) for _ in range(2))
    random = integers(1, mask, *token_ids.shape, **drawn)
    words = (token_ids > 0) & (token_ids < mask)
    chosen = words & (chance < probability)
    none = ~chosen.any(dim=1) & words[:, 1]
    chosen[:, 1] |= none
    kind[:, 1].masked_fill_(none, 0.0)
    masked = torch.where(kind < MASKED, mask, torch.where(kind < MASKED + REPLACED, random, token_ids))
    return torch.where(chosen, masked, token_ids), torch.where(chosen, token_ids, 0)

"""The prompts of captions: a phrase in the words that CLIP reads, and the token ids of all, each distinct one once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from tiprctl.shares import Share
from tiprctl.tokenizer import Tokenizer, row_lengths


def prompt(phrase: str) -> str:
    """A phrase as CLIP reads descriptions; without an article, since "black trousers" and "long hair" bear none."""
    return f"a photo of a person with {phrase}"


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of B captions, at most M each; captions share P distinct ones.

    `token_ids` (P, L) int64, padded with 0; `index` (B, M) int64, the number of each caption's prompts in order among
    the distinct ones; `found` (B, M) bool, True where a caption has so many. Beyond them `index` repeats its first.
    `label` (B, M) int64 is equal where two prompts are the same, in other shares of a batch too; None: as `index`.
    """

    token_ids: Tensor
    index: Tensor
    found: Tensor
    label: Tensor | None = None

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], tokenizer: Tokenizer, *, limit: int) -> Prompts:
        """Tokenise the prompts of captions, from one to `limit` (M) for each of them."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        rows = [[*each, *[each[0]] * (limit - len(each))] for each in texts]
        index = torch.tensor([numbers[text] for row in rows for text in row], dtype=torch.long)
        counts = torch.tensor([len(each) for each in texts], dtype=torch.long)
        return cls(
            token_ids=torch.from_numpy(tokenizer(list(numbers))),
            index=index.view(len(texts), limit),
            found=torch.arange(limit) < counts[:, None],
        )

    def select(self, captions: Tensor) -> Prompts:
        """Those of the captions with these numbers `(B,)`: no other prompt, none twice, cut to the longest."""
        return self._chosen(self.index[captions], self.found[captions])

    def rows(self, share: Share) -> Prompts:
        """Those of a share's captions, told apart as in the whole batch."""
        return self._chosen(share.of(self.index), share.of(self.found), share.of(self.labels))

    @property
    def labels(self) -> Tensor:
        """`label`, or what stands for it."""
        return self.index if self.label is None else self.label

    def _chosen(self, chosen: Tensor, found: Tensor, label: Tensor | None = None) -> Prompts:
        distinct, index = chosen.unique(return_inverse=True)
        token_ids = self.token_ids[distinct]
        longest = int(row_lengths(token_ids).max())
        return Prompts(token_ids[:, :longest], index, found, label)

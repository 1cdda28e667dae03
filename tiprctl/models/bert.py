"""BERT (Devlin et al., 2019) as text tower, for the methods that were published with it: the model of `transformers`.

`bert_weights` reads published weights. A checkpoint of tiprctl holds sizes, vocabulary and weights, so that it needs no
other file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tiprctl.config import Count, Fraction, Positive, from_dict, frozen, to_dict
from tiprctl.errors import InputError, UsageError
from tiprctl.models.tokens import Tokens, caption_masks
from tiprctl.wordpiece import WordPieceTokenizer, library

CONTEXT_LENGTH = 100
"""How many tokens of a caption are read, as in CFine."""


@frozen
class BertSizes:
    """The sizes of a BERT, by the names of its config.json; the defaults are those of `transformers`."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    hidden_dropout_prob: Fraction = 0.1
    attention_probs_dropout_prob: Fraction = 0.1
    max_position_embeddings: Count = 512
    type_vocab_size: Count = 2
    layer_norm_eps: Positive = 1e-12

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} attention heads cannot share a width of {self.hidden_size}")


class Bert(nn.Module):
    """A BERT that reads captions of at most 100 tokens; the global token is [CLS], the first one.

    Its weights mean something once a state dict is loaded. It has no pooler: CFine takes [CLS] as the last layer leaves
    it. In training it draws dropout from torch's global generators.

    Raises:
        UsageError: the extra `bert` is not installed. InputError: the vocabulary does not go with the sizes.
    """

    def __init__(self, sizes: BertSizes, vocabulary: Sequence[str], *, where: str | Path | None = None):
        super().__init__()
        if len(vocabulary) > sizes.vocab_size:
            raise InputError(
                f"The vocabulary has {len(vocabulary)} tokens, the model {sizes.vocab_size}",
                where=where,
                remedy="Put the vocabulary that the model was trained with beside it.",
            )
        self.sizes = sizes
        self.tokenizer = WordPieceTokenizer(vocabulary, min(CONTEXT_LENGTH, sizes.max_position_embeddings), where=where)
        transformers = library("transformers")
        self.model = transformers.BertModel(transformers.BertConfig(**to_dict(sizes)), add_pooling_layer=False)

    @property
    def width(self) -> int:
        """How wide its tokens are."""
        return self.sizes.hidden_size

    def checkpoint_layers(self) -> None:
        """Keep, in training, only what enters each layer, and compute the rest again going backward."""
        # What older versions of the library call it, newer ones warn about.
        old = self.model.gradient_checkpointing_enable
        getattr(self.model, "activation_checkpointing_enable", old)({"use_reentrant": False})

    def read(self, token_ids: Tensor, *, attention: bool = False, whole_only: bool = False) -> Tokens:
        """The tokens of captions `(B, L)`, with the attention of [CLS] only where it is asked for.

        Where [CLS] is asked for `whole_only`, the others come too: `transformers` makes them in any case.

        Raises:
            UsageError: the rows are longer than the context.
        """
        length = token_ids.shape[1]
        if length > self.tokenizer.context_length:
            raise UsageError(f"Captions of {length} tokens exceed the context of {self.tokenizer.context_length}")
        visible, words = caption_masks((token_ids == self.tokenizer.end).int().argmax(dim=1), length)
        read = self.model(token_ids, attention_mask=visible.long(), output_hidden_states=attention)
        return Tokens(
            read.last_hidden_state,
            place=torch.zeros_like(token_ids[:, 0]),
            visible=visible,
            attention=self._gaze(read.hidden_states[-2], visible) if attention else None,
            words=words,
            context=self.tokenizer.context_length,
        )

    @torch.no_grad()
    def _gaze(self, x: Tensor, visible: Tensor) -> Tensor:
        """How much [CLS] looks at each of `x` (B, L, W), which enters the last layer: `(B, L)`, the heads' mean.

        One row of the attention, before its dropout; `transformers` would give up its fast attention for all rows.
        """
        attention = self.model.encoder.layer[-1].attention.self
        heads = self.sizes.num_attention_heads
        query = attention.query(x[:, :1]).unflatten(2, (heads, -1)).transpose(1, 2)
        key = attention.key(x).unflatten(2, (heads, -1)).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)).squeeze(2).float() * query.shape[-1] ** -0.5
        return scores.masked_fill(~visible[:, None], -torch.inf).softmax(dim=2).mean(dim=1)

    def header(self) -> dict[str, Any]:
        """What `from_header` needs to make it again, as JSON can hold it: sizes and vocabulary."""
        return {"sizes": to_dict(self.sizes), "vocabulary": self.tokenizer.vocabulary}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Bert:
        """The BERT that a checkpoint's header describes, before its weights are loaded."""
        return cls(from_dict(BertSizes, header["sizes"]), header["vocabulary"])

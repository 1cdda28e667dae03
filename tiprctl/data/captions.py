"""What a training batch reads: of each caption the whole or the pruned form, masked or not, and its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, repeat

import numpy as np
import torch
from torch import Generator, Tensor

from tiprctl.config import CaptionConfig
from tiprctl.data.manifest import Manifest
from tiprctl.data.phrases import noun_phrases
from tiprctl.data.pruning import read_origin, read_pruned
from tiprctl.data.tagging import ADJECTIVE, NOUN, OTHER, TOKEN
from tiprctl.data.token_cache import TokenCache
from tiprctl.errors import UsageError
from tiprctl.prompts import Prompts, prompt
from tiprctl.token_masking import mask_tokens
from tiprctl.tokenizer import Tokenizer, clean, row_lengths


class TrainingCaptions:
    """The training captions of a data set, tokenised once in each form that `config` may choose, and their prompts.

    `lengths` (captions,) are the token counts of the whole captions. The pruned file is read only where it is needed:
    to prune, to mask nouns and adjectives otherwise than the rest, and to find phrases.

    Raises:
        UsageError: captions are to be masked, and the tokenizer is not CLIP's.
        InputError: the pruned file is needed and missing, damaged, or made from another manifest.
    """

    def __init__(self, manifest: Manifest, config: CaptionConfig, tokenizer: Tokenizer):
        self.config = config
        self.vocab_size = tokenizer.vocab_size
        if (config.mask_content or config.mask_other) and not tokenizer.maskable:
            raise UsageError(
                "Captions can be masked in the vocabulary of CLIP only",
                where="captions.mask_content, captions.mask_other",
                remedy="Set both to 0, or train with the text encoder clip.",
            )
        forms = [manifest.split("train").captions]
        by_class = _by_class(config)
        pruned = read_pruned(manifest) if _needs_pruned(config) else None
        if config.prune:
            forms.append(pruned.pruned)
        cache, name = TokenCache(manifest.root, tokenizer), "train-pruned" if config.prune else "train"
        token_ids = cache.token_ids(name, list(chain.from_iterable(forms)))
        self.token_ids = torch.from_numpy(token_ids).unflatten(0, (len(forms), -1))
        self.ends = torch.from_numpy(row_lengths(token_ids)).unflatten(0, (len(forms), -1))
        self.content = None
        if by_class:
            make = partial(_flags, forms, pruned.classes, tokenizer, token_ids.shape[1])
            content = cache.flags(name, [*forms, pruned.classes], make)
            self.content = torch.from_numpy(content).view_as(self.token_ids)

        self.prompts = None
        if config.phrases:
            phrases = map(noun_phrases, forms[0], pruned.classes, repeat(config.phrases))
            prompts = [[prompt(phrase) for phrase in each] for each in phrases]
            self.prompts = Prompts.of(prompts, tokenizer, limit=config.phrases)

    @property
    def lengths(self) -> np.ndarray:
        return self.ends[0].numpy()

    def draw(self, captions: np.ndarray, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Token ids `(B, L)` of the captions with these numbers, cut to the longest, and their labels.

        Each caption is drawn in its pruned form with the probability `prune`. The labels `(B, L)` are the original ids
        where a token is masked, elsewhere 0; None where no caption ever is.
        """
        config = self.config
        form = (torch.rand(len(captions), generator=generator) < config.prune).long()
        chosen = form, torch.from_numpy(captions)
        longest = int(self.ends[chosen].max())
        token_ids = self.token_ids[chosen][:, :longest]
        if not (config.mask_content or config.mask_other):
            return token_ids, None
        probability: Tensor | float = config.mask_other
        if self.content is not None:
            probability = torch.where(self.content[chosen][:, :longest], config.mask_content, config.mask_other)
        return mask_tokens(token_ids, probability, vocab_size=self.vocab_size, generator=generator)

    def prompts_of(self, captions: np.ndarray) -> Prompts | None:
        """The prompts of the captions with these numbers; None where `config` wants none."""
        return self.prompts and self.prompts.select(torch.from_numpy(captions))


def captions_origin(manifest: Manifest, config: CaptionConfig) -> dict[str, str] | None:
    """Where the pruned captions that `config` needs come from: tagger, version, fingerprint; None where it needs none.

    Raises:
        InputError: they are needed and missing, or made from another manifest.
    """
    return asdict(read_origin(manifest)) if _needs_pruned(config) else None


def _by_class(config: CaptionConfig) -> bool:
    return config.mask_content != config.mask_other


def _needs_pruned(config: CaptionConfig) -> bool:
    return bool(config.prune or config.phrases) or _by_class(config)


def kept_classes(classes: str) -> str:
    """The classes of a pruned caption's tokens: those of the tokens that stayed, or of all where none did."""
    return classes.replace(OTHER, "") or classes


def flag_content(caption: str, classes: str, tokenizer: Tokenizer) -> np.ndarray:
    """For each of `tokenizer.encode(caption)` whether it belongs to a noun or adjective, bool `(tokens,)`.

    `classes` are those of the caption's words and marks (`tagging.tokens_of`), which the tokenizer divides further:
    the three pieces of "t-shirt" are all of one noun.
    """
    text = clean(caption)
    content = np.zeros(len(text), dtype=bool)
    for word, kind in zip(TOKEN.finditer(text), classes):
        content[word.start() : word.end()] = kind in (NOUN, ADJECTIVE)
    return np.array([content[start] for start, tokens in tokenizer.pieces(caption) for _ in tokens], dtype=bool)


def _flags(forms: Sequence[Sequence[str]], classes: Sequence[str], tokenizer: Tokenizer, width: int) -> np.ndarray:
    """The flags of all captions in all forms as rows `(forms * captions, width)`, cut where the token ids are.

    They stand beside the tokens of the captions, so that the start token has none.
    """
    of_forms = classes, [kept_classes(each) for each in classes]
    flags = [flag_content(*each, tokenizer) for form in zip(forms, of_forms) for each in zip(*form, strict=True)]
    rows = np.zeros((len(flags), width), dtype=bool)
    for row, one in zip(rows, flags):
        row[1 : 1 + len(one)] = one[: width - 1]
    return rows

"""BERT's tokenizer, of word pieces; without torch, since an exported model reads with it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import ModuleType

from tiprctl.errors import InputError, UsageError
from tiprctl.tokenizer import Tokenizer, clean

PADDING, START, END, UNKNOWN = "[PAD]", "[CLS]", "[SEP]", "[UNK]"


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer over a vocabulary: what `transformers` gives for the uncased models.

    It reads `clean(text)`, as CLIP's does, so broken Unicode and HTML entities are repaired first, and also a cased
    vocabulary reads lower case.

    Raises:
        UsageError: the extra `bert` is not installed. InputError: the vocabulary lacks one of BERT's own tokens, or its
            padding is not 0.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int, *, where: str | Path | None = None):
        ids = {token: index for index, token in enumerate(vocabulary)}
        if ids.get(PADDING) != 0 or not ids.keys() >= {START, END, UNKNOWN}:
            raise InputError(
                f"The vocabulary does not begin with {PADDING}, or lacks one of {START}, {END}, {UNKNOWN}",
                where=where,
                remedy="Give the vocabulary of a BERT.",
            )
        tokenizers = library("tokenizers")
        self._rules = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=UNKNOWN))
        self._rules.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        self._rules.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self.vocabulary = list(vocabulary)
        self.vocab_size = len(self.vocabulary)
        self.context_length = context_length
        self.start, self.end = ids[START], ids[END]

    def pieces(self, text: str) -> Iterator[tuple[int, list[int]]]:
        encoding = self._rules.encode(clean(text), add_special_tokens=False)
        tokens = zip(encoding.word_ids, encoding.offsets, encoding.ids)
        for _, word in groupby(tokens, key=itemgetter(0)):
            _, offsets, ids = zip(*word)
            yield offsets[0][0], list(ids)

    def rules(self) -> Iterable[str]:
        return self.vocabulary


def library(name: str) -> ModuleType:
    """A library of the extra `bert`, imported where it is needed alone: it takes seconds, and need not be there.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            "BERT needs a library that is not installed",
            where=name,
            remedy="Install it: pip install 'tiprctl[bert]', or train with the text encoder clip.",
        ) from error

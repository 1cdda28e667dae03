"""What every tokenizer does, and CLIP's, of byte pairs: the token ids that OpenAI's gives, for every string.

The merges are those of OpenAI's `bpe_simple_vocab_16e6` (49,152 - 256 - 2 of them), read from the installed package
open-clip-torch without importing it. The byte-level scheme is that of GPT-2 (Radford et al., 2019): a word is a
sequence of bytes, each written as one printable character, the last one marked `</w>`.
"""

from __future__ import annotations

import gzip
import hashlib
import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import ftfy
import numpy as np
import regex

from tiprctl.errors import InputError, UsageError

START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
N_MERGES = 49152 - 256 - 2
WORD_END = "</w>"
CACHED_WORDS = 1 << 16

WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


class Tokenizer(ABC):
    """Texts to rows of token ids, as one text tower reads them.

    `start` and `end`, neither of them 0, are the ids around each text; `context_length` is how many tokens the longest
    row has, these two included. `maskable`: whether the vocabulary is built as `token_masking` takes it, CLIP's way.
    """

    context_length: int
    vocab_size: int
    start: int
    end: int
    maskable: ClassVar[bool] = False

    @abstractmethod
    def pieces(self, text: str) -> Iterator[tuple[int, list[int]]]:
        """The token ids of `text` word by word, each with the place in `clean(text)` where the word starts."""

    @abstractmethod
    def rules(self) -> Iterable[str]:
        """What the token ids of a text depend on, beside what every tokenizer does."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that its token ids depend on."""
        about = (type(self).__name__, str(self.context_length), version("ftfy"), *self.rules())
        return hashlib.sha256("\n".join(about).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without start and end token and of any length."""
        return [token for _, tokens in self.pieces(text) for token in tokens]

    def __call__(self, texts: Sequence[str] | str, *, length: int | None = None) -> np.ndarray:
        """Token ids `(B, L)`, int64: start token, text, end token, then zeros.

        L is `length`, or that of the longest row up to the context. A text that is too long loses its last tokens; its
        row still closes with the end token.

        Raises:
            UsageError: `length` leaves no room for the start and the end token.
        """
        if length is not None and length < 2:
            raise UsageError(f"Token rows of length {length} have no room for the start and the end token")
        texts = [texts] if isinstance(texts, str) else texts
        limit = self.context_length if length is None else length
        rows = [[self.start, *self.encode(text)[: limit - 2], self.end] for text in texts]
        width = max(map(len, rows), default=2) if length is None else length
        token_ids = np.zeros((len(rows), width), dtype=np.int64)
        for row, tokens in zip(token_ids, rows):
            row[: len(tokens)] = tokens
        return token_ids


class BytePairTokenizer(Tokenizer):
    """CLIP's tokenizer, built from its ordered list of merges.

    Args:
        merges: pairs of symbols with a space between them, the one to join first in front.
    """

    context_length = 77
    maskable = True

    def __init__(self, merges: Sequence[str]):
        letters = list(_byte_letters().values())
        joined = (pair.replace(" ", "") for pair in merges)
        symbols = [*letters, *(letter + WORD_END for letter in letters), *joined, START_TEXT, END_TEXT]
        self._ids = dict(zip(symbols, range(len(symbols))))
        self._ranks = dict(zip(merges, range(len(merges))))
        self._cache = {text: [self._ids[text]] for text in (START_TEXT, END_TEXT)}
        self.vocab_size = len(symbols)
        self.start = self._ids[START_TEXT]
        self.end = self._ids[END_TEXT]

    def pieces(self, text: str) -> Iterator[tuple[int, list[int]]]:
        for word in WORDS.finditer(clean(text)):
            yield word.start(), self._encode_word(word.group())

    def rules(self) -> Iterable[str]:
        return self._ranks

    def _encode_word(self, word: str) -> list[int]:
        tokens = self._cache.get(word)
        if tokens is None:
            letters = _byte_letters()
            tokens = [self._ids[symbol] for symbol in self._merge([letters[byte] for byte in word.encode()])]
            if len(self._cache) < CACHED_WORDS:
                self._cache[word] = tokens
        return tokens

    def _merge(self, symbols: list[str]) -> list[str]:
        """Join neighbours, the pair of lowest rank first, until no pair of the list is left."""
        symbols = [*symbols[:-1], symbols[-1] + WORD_END]
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=self._rank)
            if self._rank(best) == len(self._ranks):
                break
            symbols = list(_join(symbols, best))
        return symbols

    def _rank(self, pair: tuple[str, str]) -> int:
        """When two neighbours are joined, the lower the earlier; beyond all ranks where they are not."""
        return self._ranks.get(" ".join(pair), len(self._ranks))


@cache
def default_tokenizer() -> BytePairTokenizer:
    """The tokenizer of every published CLIP: 49,408 tokens.

    Raises:
        InputError: open-clip-torch or its list of merges is not installed, or the list is damaged.
    """
    path = _merges_path()
    try:
        # There are more merges than are used; what is not split and decoded does not slow down the start.
        lines = gzip.decompress(path.read_bytes()).split(b"\n", N_MERGES + 1)[1:]
        merges = b"\n".join(lines[:N_MERGES]).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unusable_merges(f"The tokenizer's list of merges cannot be read: {error}", path) from error
    if len(merges) != N_MERGES or any(pair.count(" ") != 1 for pair in merges):
        raise _unusable_merges("The tokenizer's list of merges is damaged", path)
    return BytePairTokenizer(merges)


def _merges_path() -> Path:
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise _unusable_merges("The tokenizer's list of merges is not installed", None)
    return Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


def _unusable_merges(what: str, path: Path | None) -> InputError:
    return InputError(what, where=path, remedy="Install it: pip install --force-reinstall open-clip-torch")


def row_lengths(token_ids: Any) -> Any:
    """How many tokens of each row `(B, L)` come before its padding, `(B,)`; for arrays of numpy and torch alike."""
    return (token_ids != 0).cumsum(axis=1).argmax(axis=1) + 1


def clean(text: str) -> str:
    """What the tokenizer reads: repaired Unicode, HTML entities resolved (twice, as OpenAI does), lower case.

    OpenAI also collapses white space, which changes nothing: no word of `WORDS` holds any.
    """
    return html.unescape(html.unescape(ftfy.fix_text(text))).lower()


def _join(symbols: list[str], pair: tuple[str, str]) -> Iterator[str]:
    """The symbols, with each occurrence of `pair` joined, from left to right."""
    index = 0
    while index < len(symbols):
        joined = tuple(symbols[index : index + 2]) == pair
        yield "".join(pair) if joined else symbols[index]
        index += 2 if joined else 1


@cache
def _byte_letters() -> dict[int, str]:
    """A printable character for each byte; the order of the entries is the order of the first token ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}

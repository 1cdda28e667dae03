"""What tokenising the captions of a data set gave, kept in files beside its manifest.

A file is looked up by its name and trusted by its key: a digest of the texts and of the tokenizer, so that one made
from other captions, or by another tokenizer, counts for nothing. Nothing here is an error: without a file that can be
read, or a folder that can be written, the captions are tokenised as without a cache; the log tells of the latter.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from tiprctl.errors import InputError
from tiprctl.files import atomic_path
from tiprctl.tokenizer import Tokenizer, row_lengths

_log = logging.getLogger(__name__)

FEWEST = 2000
"""Fewer texts than these are tokenised at once rather than kept in one more file."""

_FORMAT = 1
_KEY = "key"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)
"""What reading a damaged file raises."""


class TokenCache:
    """The tokenised captions of the data set in the folder `root`, as `tokenizer` cuts them."""

    def __init__(self, root: Path, tokenizer: Tokenizer):
        self.root = root
        self.tokenizer = tokenizer

    def token_ids(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """What `tokenizer(texts)` gives: `(B, L)` int64; `name` tells the texts of a data set apart."""
        if len(texts) < FEWEST:
            return self.tokenizer(texts)
        arrays = self._remembered(f"tokens-{name}", [list(texts)], lambda: _packed(self.tokenizer(texts)))
        return _unpacked(**arrays)

    def flags(self, name: str, basis: Sequence[Sequence[str]], make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make()` gives, a bool matrix with a row for each token row; it depends on the tokenizer and `basis`."""
        if len(basis[0]) < FEWEST:
            return make()
        arrays = self._remembered(f"flags-{name}", [list(each) for each in basis], lambda: _bits(make()))
        return np.unpackbits(arrays["bits"], axis=1, count=int(arrays["width"])).astype(bool)

    def _remembered(
        self, name: str, basis: list[list[str]], make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays that `make` gives, from the file where it holds those of this `basis`; else it is written."""
        key = _digest([_FORMAT, self.tokenizer.fingerprint, basis])
        file = self.root / f"{name}-{self.tokenizer.fingerprint[:8]}.npz"
        arrays = _read(file, key)
        if arrays is None:
            arrays = make()
            # Keeping it saves time and nothing else: a folder that cannot be written is no reason to stop.
            try:
                with atomic_path(file) as temporary, temporary.open("wb") as handle:
                    np.savez(handle, **arrays, **{_KEY: np.array(key)})
            except InputError as error:
                _log.info("Tokens are made anew each time, since they cannot be kept in %s: %s", file, error.what)
        return arrays


def _digest(basis: object) -> str:
    return hashlib.sha256(json.dumps(basis).encode()).hexdigest()


def _read(file: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where it is missing, damaged, or has another key."""
    try:
        with np.load(file) as found:
            if found[_KEY] != key:
                return None
            return {name: found[name] for name in found.files if name != _KEY}
    except _UNREADABLE:
        return None


def _packed(token_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Rows without their padding, one after another, and how long each is."""
    lengths = row_lengths(token_ids)
    return {
        "values": token_ids[_before(lengths, token_ids.shape[1])].astype(np.uint32),
        "lengths": lengths.astype(np.uint16),
    }


def _unpacked(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    width = int(lengths.max())
    token_ids = np.zeros((len(lengths), width), dtype=np.int64)
    token_ids[_before(lengths, width)] = values
    return token_ids


def _before(lengths: np.ndarray, width: int) -> np.ndarray:
    """Which places `(B, width)` come before the rows' padding."""
    return np.arange(width) < lengths[:, None]


def _bits(flags: np.ndarray) -> dict[str, np.ndarray]:
    return {"bits": np.packbits(flags, axis=1), "width": np.array(flags.shape[1])}

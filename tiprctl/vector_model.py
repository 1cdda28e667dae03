"""What the gallery asks of a model, and how one is chosen: an export by onnxruntime, or the encoder by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from tiprctl.tokenizer import Tokenizer

Precision = Literal["float32", "bfloat16", "float16"]


class VectorModel(Protocol):
    """Images and sentences to vectors of one space, rows of unit length."""

    width: int
    image_size: tuple[int, int]
    """(H, W), pixels."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the token ids that it reads."""

    @property
    def description(self) -> str:
        """Which model it is, for people."""

    @property
    def source(self) -> str:
        """How a user names it again: a run's folder, a file, a tag."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors could: with the weights, and with what they are applied to.

        The precision is not in it: vectors of two precisions can be compared.
        """

    @property
    def precision(self) -> Precision:
        """What it computes in."""

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `(B, H, W, 3)` of `image_size` to float32 `(B, width)`."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B sentences to float32 `(B, width)`."""

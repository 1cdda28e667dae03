"""A dual encoder ready to use: images and sentences in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiprctl.config import TrainConfig
from tiprctl.losses.similarity import unit_rows
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.tokens import Tokens
from tiprctl.pixels import normalise
from tiprctl.precision import Precision, amp_dtype, autocast
from tiprctl.tokenizer import Tokenizer, row_lengths

TEXT_BATCH = 256


@dataclass(frozen=True)
class ModelOrigin:
    """Where an encoder comes from.

    `description` says it to people, `source` is how they name it; `fingerprint` is that of the weights, `vectors` that
    of all that its vectors depend on; `config`, the data (`dataset`, its folder, its manifest's fingerprint), `tagger`
    (what told its captions' nouns, where it needed to know them) and `selected_on` (the split that chose the epoch) are
    the run's, None without one.
    """

    description: str = ""
    source: str = ""
    fingerprint: str = ""
    vectors: str = ""
    config: TrainConfig | None = None
    dataset: str | None = None
    data_root: Path | None = None
    data_fingerprint: str | None = None
    tagger: str | None = None
    selected_on: str = "none"

    @property
    def recipe(self) -> str:
        """The name of the run's recipe."""
        return self.config.recipe if self.config else "none"


class Embedder:
    """Inference with a dual encoder on a device."""

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        device: torch.device,
        amp: str = "auto",
        origin: ModelOrigin | None = None,
    ):
        self.encoder = encoder.to(device).eval()
        self.device = device
        self.dtype = amp_dtype(amp, device)
        self.origin = origin or ModelOrigin()
        self.width = encoder.head.width
        self.image_size = encoder.clip.config.image_size

    @property
    def description(self) -> str:
        """Which model it is."""
        return self.origin.description

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the token ids that it reads."""
        return self.encoder.tokenizer

    @property
    def source(self) -> str:
        """How a user names it again."""
        return self.origin.source

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes its vectors, but for the precision."""
        return self.origin.vectors

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """Images `(B, H, W, 3)` uint8 of `image_size` to float32 `(B, width)`, rows of unit length."""
        return self.image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2)).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Sentences to float32 `(B, width)`, rows of unit length."""
        return self.text_features(torch.from_numpy(self.tokenizer(texts))).cpu().numpy()

    def image_features(self, pixels: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 to unit features `(B, width)` on the embedder's device."""
        with self.inference():
            return unit_rows(self.encoder.image_features(self._normalised(pixels)))

    def text_features(self, token_ids: Tensor) -> Tensor:
        """Token ids `(B, L)` to unit features `(B, width)` on the embedder's device."""
        with self.inference():
            return unit_rows(self.encoder.text_features(token_ids.to(self.device, non_blocking=True)))

    def see(self, pixels: Tensor) -> Tokens:
        """The tokens of images `(B, 3, H, W)` uint8."""
        with self.inference():
            return self.encoder.see(self._normalised(pixels))

    def read(self, token_ids: Tensor, *, whole_only: bool = False) -> Tokens:
        """The tokens of captions `(B, L)`; with `whole_only` the global one only, unless the head reads the others."""
        with self.inference():
            return self.encoder.read(token_ids.to(self.device, non_blocking=True), whole_only=whole_only)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Within the block the encoder computes without gradients, in the embedder's precision."""
        with torch.inference_mode(), autocast(self.device, self.dtype):
            yield

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels.to(self.device, non_blocking=True))


def over_captions(
    encode: Callable[[Tensor], Tensor], token_ids: Tensor, on_items: Callable[[int], object] = lambda count: None
) -> Tensor:
    """What `encode` makes of all captions `(C, L)`, a row each, in their order.

    They are encoded in batches of like length, each cut to its longest; `on_items` is told how many more are done.
    """
    lengths = row_lengths(token_ids)
    order = lengths.argsort(stable=True)
    parts = []
    for rows in order.split(TEXT_BATCH):
        # Where there is no caption its one batch has none, and is encoded all the same: that tells the width.
        longest = int(lengths[rows].max()) if len(rows) else token_ids.shape[1]
        parts.append(encode(token_ids[rows, :longest]))
        on_items(len(rows))
    encoded = torch.cat(parts)
    return encoded[order.argsort().to(encoded.device)]

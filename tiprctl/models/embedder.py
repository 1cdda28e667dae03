"""A dual encoder ready to use: images and sentences in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiprctl.config import TrainConfig
from tiprctl.losses.similarity import unit_rows
from tiprctl.models.encoder import DualEncoder
from tiprctl.pixels import normalise
from tiprctl.precision import amp_dtype, autocast
from tiprctl.tokenizer import default_tokenizer


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from.

    `description` says it to people; `fingerprint` is that of the weights; `config`, the data (`dataset`, its folder,
    its manifest's fingerprint) and `selected_on` (the split that chose the epoch) are the run's, None without one.
    """

    description: str = ""
    fingerprint: str = ""
    config: TrainConfig | None = None
    dataset: str | None = None
    data_root: Path | None = None
    data_fingerprint: str | None = None
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
        origin: Origin | None = None,
    ):
        self.encoder = encoder.to(device).eval()
        self.device = device
        self.dtype = amp_dtype(amp, device)
        self.origin = origin or Origin()
        self.width = encoder.head.width
        self.image_size = encoder.clip.config.image_size

    @property
    def description(self) -> str:
        """Which model it is."""
        return self.origin.description

    @property
    def fingerprint(self) -> str:
        """The key of caches of its vectors: the weights and the precision they are used with."""
        return f"{self.origin.fingerprint}-{str(self.dtype or torch.float32).removeprefix('torch.')}"

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """Images `(B, H, W, 3)` uint8 of `image_size` to float32 `(B, width)`, rows of unit length."""
        return self.image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2)).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Sentences to float32 `(B, width)`, rows of unit length."""
        return self.text_features(torch.from_numpy(default_tokenizer()(texts))).cpu().numpy()

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 to unit features `(B, width)` on the embedder's device."""
        with autocast(self.device, self.dtype):
            return unit_rows(self.encoder.image_features(normalise(pixels.to(self.device, non_blocking=True))))

    @torch.inference_mode()
    def text_features(self, token_ids: Tensor) -> Tensor:
        """Token ids `(B, L)` to unit features `(B, width)` on the embedder's device."""
        with autocast(self.device, self.dtype):
            return unit_rows(self.encoder.text_features(token_ids.to(self.device, non_blocking=True)))

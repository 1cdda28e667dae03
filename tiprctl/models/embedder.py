"""A dual encoder ready to use: images and sentences in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tiprctl.models.encoder import DualEncoder
from tiprctl.pixels import normalise, unit
from tiprctl.precision import amp_dtype, autocast
from tiprctl.tokenizer import default_tokenizer


class Embedder:
    """Inference with a dual encoder on a device.

    Args:
        description: which model it is, for people.
        fingerprint: changes whenever the vectors could; caches are keyed by it.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        device: torch.device,
        amp: str = "auto",
        description: str = "",
        fingerprint: str = "",
    ):
        self.encoder = encoder.to(device).eval()
        self.device = device
        self.dtype = amp_dtype(amp, device)
        self.description = description
        self.fingerprint = fingerprint
        self.width = encoder.head.width
        self.image_size = encoder.clip.config.image_size

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
            return unit(self.encoder.image_features(normalise(pixels.to(self.device, non_blocking=True))))

    @torch.inference_mode()
    def text_features(self, token_ids: Tensor) -> Tensor:
        """Token ids `(B, L)` to unit features `(B, width)` on the embedder's device."""
        with autocast(self.device, self.dtype):
            return unit(self.encoder.text_features(token_ids.to(self.device, non_blocking=True)))

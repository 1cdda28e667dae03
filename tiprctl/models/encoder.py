"""The dual encoder: a CLIP with a head, all that inference needs."""

from __future__ import annotations

from torch import Tensor, nn

from tiprctl.models.clip import Clip
from tiprctl.models.heads import build_head


class DualEncoder(nn.Module):
    """Images and captions to features of one space, compared by cosine."""

    def __init__(self, clip: Clip, head: str = "global"):
        super().__init__()
        self.clip = clip
        self.head = build_head(head, clip.config.embed_dim)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` to features `(B, F)`, not normalised."""
        return self.head.image(self.clip.encode_image(pixels))

    def text_features(self, token_ids: Tensor) -> Tensor:
        """Token ids `(B, L)` to features `(B, F)`, not normalised."""
        return self.head.text(self.clip.encode_text(token_ids), token_ids)

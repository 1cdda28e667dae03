"""Cross-grained refinement: the whole of one modality against the parts of the other (CFine, TIP 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tiprctl.config import Positive, frozen
from tiprctl.losses.similarity import at_least_float32, unit_rows
from tiprctl.models.encodings import Encodings
from tiprctl.objectives.ranked import RankedConfig, RankedSimilarity, picked


@frozen
class CfrConfig(RankedConfig):
    """`temperature` divides the cosines."""

    temperature: Positive = 0.07


class CrossGrainedRefinement(RankedSimilarity):
    """Ranks pairs by the image against the caption's words and the caption against the image's patches, averaged.

    The words and patches are those that the head picked, in all its groups. Deviation from the published code: a
    caption with fewer words has fewer; there padding takes their place.
    """

    name, Config = "cfr", CfrConfig

    def similarity(self, enc: Encodings) -> Tensor:
        image, text = enc.images.whole, enc.captions.whole
        patches, words = (
            picked(enc.images, enc.image_features.selection),
            picked(enc.captions, enc.text_features.selection),
        )
        temperature = self.config.temperature
        to_words = cross_grained(image, *words, temperature=temperature)
        to_patches = cross_grained(text, *patches, temperature=temperature)
        return (to_words + to_patches.T) / 2


def cross_grained(whole: Tensor, parts: Tensor, found: Tensor, *, temperature: float) -> Tensor:
    """Mean of the cosines of each whole with the parts of each other sample, divided by the temperature, by softmax.

    Args:
        whole: (A, D) global tokens.
        parts: (B, K, D) local tokens.
        found: (B, K), True for those that count, at least one each.

    Returns:
        (A, B), at least float32: a part weighs the more, the more similar it is.
    """
    with torch.autocast(whole.device.type, enabled=False):
        unit = F.normalize(at_least_float32(parts), dim=2)
        scores = (unit_rows(whole) @ unit.flatten(0, 1).T).unflatten(1, found.shape) / temperature
    weights = scores.masked_fill(~found, float("-inf")).softmax(dim=2)
    return (weights * scores).sum(dim=2)

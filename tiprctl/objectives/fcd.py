"""Fine-grained correspondence discovery: patches and words against those that match them best (CFine, TIP 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tiprctl.config import Count, Positive, frozen
from tiprctl.losses.similarity import at_least_float32
from tiprctl.models.encodings import Encodings
from tiprctl.objectives.ranked import RankedConfig, RankedSimilarity, picked


@frozen
class FcdConfig(RankedConfig):
    """`best` is how many words stand for a patch, and patches for a word; `temperature` divides the cosines."""

    best: Count = 3
    temperature: Positive = 0.01


class CorrespondenceDiscovery(RankedSimilarity):
    """Ranks pairs by the image's patches against what matches the caption's own patches, and words likewise, averaged.

    Only the head's first group takes part. As published, what matches is looked for within each pair, and across pairs
    places are compared: the patch that one image's class token looks at n-th against the match of the other image's
    n-th patch. Deviation from the published code: a caption with fewer words has fewer; there padding takes their
    place.
    """

    name, Config = "fcd", FcdConfig

    def similarity(self, enc: Encodings) -> Tensor:
        patches, has_patch = picked(enc.images, enc.image_features.selection, groups=1)
        words, has_word = picked(enc.captions, enc.text_features.selection, groups=1)
        of_patches, of_words = correspondences(patches, has_patch, words, has_word, best=self.config.best)
        by_patches = placewise(patches, has_patch, of_patches, has_patch)
        by_words = placewise(of_words, has_word, words, has_word)
        return (by_patches + by_words) / (2 * self.config.temperature)


def correspondences(
    patches: Tensor, has_patch: Tensor, words: Tensor, has_word: Tensor, *, best: int
) -> tuple[Tensor, Tensor]:
    """For each patch the mean of the words of its pair that match it best, for each word that of the patches.

    A pair's cosines become shares by a softmax over the words, and the `best` largest are taken, or as many as there
    are: for a patch of its own shares, for a word of those that all patches give it. A word without another has an
    equal share of every patch; there the cosines decide. Which are taken has no gradient.

    Args:
        patches: (B, N, D) local tokens of the images; `has_patch` (B, N), True for those that count.
        words: (B, M, D) local tokens of the captions; `has_word` (B, M) likewise.

    Returns:
        (B, N, D) means of words and (B, M, D) means of patches, at least float32; without meaning where there is no
        patch or word.
    """
    patches, words = at_least_float32(patches), at_least_float32(words)
    with torch.autocast(patches.device.type, enabled=False):
        cosines = F.normalize(patches, dim=2) @ F.normalize(words, dim=2).transpose(1, 2)
        shares = cosines.masked_fill(~has_word[:, None], float("-inf")).softmax(dim=2)
        alone = has_word.sum(dim=1) == 1
        shares = torch.where(alone[:, None, None], cosines, shares)
        return _best(shares, has_word, best) @ words, _best(shares.transpose(1, 2), has_patch, best) @ patches


def placewise(left: Tensor, has_left: Tensor, right: Tensor, has_right: Tensor) -> Tensor:
    """Mean cosine of two lists at equal places, for all pairs of lists, over the places that both have.

    Args:
        left: (A, K, D); `has_left` (A, K), True for what counts.
        right: (B, K, D); `has_right` (B, K).

    Returns:
        (A, B), at least float32; 0 where the two have no place in common.
    """
    left, right = (F.normalize(at_least_float32(side), dim=2) for side in (left, right))
    left, right = left * has_left[:, :, None], right * has_right[:, :, None]
    with torch.autocast(left.device.type, enabled=False):
        shared = has_left.to(left.dtype) @ has_right.to(left.dtype).T
        return left.flatten(1) @ right.flatten(1).T / shared.clamp(min=1)


@torch.no_grad()
def _best(shares: Tensor, found: Tensor, count: int) -> Tensor:
    """Weights `(B, N, M)` that average, for each of N, the `count` of M with the largest shares among those `found`."""
    top = shares.masked_fill(~found[:, None], float("-inf")).topk(min(count, shares.shape[2]), dim=2).indices
    chosen = torch.zeros_like(shares).scatter(2, top, 1) * found[:, None]
    return chosen / chosen.sum(dim=2, keepdim=True).clamp(min=1)

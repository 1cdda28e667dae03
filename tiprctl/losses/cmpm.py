"""Cross-modal projection matching."""

from __future__ import annotations

import torch
from torch import Tensor

from tiprctl.losses.divergence import divergence
from tiprctl.losses.similarity import at_least_float32, unit_rows


def cmpm_loss(
    image: Tensor, text: Tensor, pids: Tensor, *, weights: Tensor | None = None, epsilon: float = 1e-8
) -> Tensor:
    """Divergence of the softmax of each feature's projections onto the other modality from its identity matches.

    A feature x is projected onto the direction y / |y| of each feature of the other modality. With p the softmax of its
    projections and q its matches divided by the root of their number, the loss is the mean over the anchors of
    sum p (log p - log(q + epsilon)), image to text plus text to image (Zhang and Lu, ECCV 2018, as in CFine). Unlike in
    `sdm_loss`, q sums to more than 1 where an identity has several pairs, so the loss may be negative.

    Args:
        image: (B, D) image features, not normalised: their length is the softmax's inverse temperature.
        text: (B, D) text features, paired with the images row by row.
        pids: (B,) identities of the pairs.
        weights: (B,) how much each pair counts as an anchor, of whatever sum; 1 / B each where they are not given. As
            another's negative it always counts in full.
        epsilon: keeps the logarithm of a non-match finite.

    Returns:
        A scalar, float32 (float64 for float64 features), also under autocast.
    """
    image, text = at_least_float32(image), at_least_float32(text)
    matches = (pids[:, None] == pids[None, :]).to(image.dtype)
    log_target = (matches / matches.sum(dim=1, keepdim=True).sqrt() + epsilon).log()
    with torch.autocast(image.device.type, enabled=False):
        image_to_text, text_to_image = image @ unit_rows(text).T, text @ unit_rows(image).T
    return divergence(image_to_text, log_target, weights) + divergence(text_to_image, log_target, weights)

"""Training batches: captions tokenised once, images decoded once where memory allows, changed a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiprctl.config import TrainConfig
from tiprctl.data.captions import TrainingCaptions
from tiprctl.data.decoding import DecodedImages
from tiprctl.data.manifest import Manifest
from tiprctl.data.samplers import epoch_batches
from tiprctl.data.transforms import augment
from tiprctl.distributed import own_share
from tiprctl.prompts import Prompts
from tiprctl.shares import Share
from tiprctl.tokenizer import Tokenizer
from tiprctl.transfer import to_device


@dataclass(frozen=True)
class Batch:
    """B image-caption pairs, the images and identities on the training device, the captions on the host.

    `pixels` (B, 3, H, W) normalised float32; `token_ids` (B, L) int64, padded with 0 to the longest caption of the
    batch; `pids` (B,) identity labels from 0 without gaps; `share` tells which rows of the whole batch these are;
    `token_labels` (B, L) the original ids where the captions are masked, elsewhere 0, None when they are whole;
    `prompts` those of the captions' phrases, None where the recipe wants none.
    """

    pixels: Tensor
    token_ids: Tensor
    pids: Tensor
    share: Share
    token_labels: Tensor | None = None
    prompts: Prompts | None = None


class TrainingBatches:
    """The batches of a data set's training split, the same for the same seed, epoch and step whatever happened before.

    `steps` is how many an epoch has, each epoch as many.

    Raises:
        UsageError: the split has fewer captions than a batch, or cannot be divided as the sampler divides it.
        InputError: the pruned captions that `config` needs are missing, damaged, or made from another manifest.
    """

    def __init__(self, manifest: Manifest, config: TrainConfig, tokenizer: Tokenizer, *, workers: int | None = None):
        split = manifest.split("train")
        self.config = config
        self.images = DecodedImages.of(split, config.model.image_size, workers=workers)
        self.caption_images = split.caption_images
        self.pids = _labels(split.caption_pids)
        self.captions = TrainingCaptions(manifest, config.captions, tokenizer)
        self.steps = len(self._indices(epoch=0))

    @property
    def identities(self) -> int:
        return int(self.pids.max()) + 1

    def epoch(self, epoch: int, *, skip: int, device: torch.device) -> Iterator[Batch]:
        """This process's shares of the batches of `epoch` (from 0) on `device`, without the first `skip`."""
        config = self.config
        batches = self._indices(epoch)[skip:]
        shares = [own_share(len(indices)) for indices in batches]
        images = self.images.batches(
            [self.caption_images[share.of(indices)] for share, indices in zip(shares, batches)], device
        )
        for step, (indices, share, pixels) in enumerate(zip(batches, shares, images), start=skip):
            of_images, of_captions = (step_generator(config.seed, epoch, step, purpose=purpose) for purpose in (0, 2))
            token_ids, labels = self.captions.draw(indices, of_captions)
            yield Batch(
                pixels=augment(to_device(pixels, device), config.augment, of_images, share),
                token_ids=share.of(token_ids),
                pids=to_device(share.of(torch.from_numpy(self.pids[indices])), device),
                share=share,
                token_labels=share.of(labels),
                prompts=share.of(self.captions.prompts_of(indices)),
            )

    def _indices(self, epoch: int) -> list[np.ndarray]:
        config = self.config
        return epoch_batches(
            self.captions.lengths,
            self.pids,
            batch_size=config.batch_size,
            config=config.sampling,
            seed=config.seed,
            epoch=epoch,
        )


def step_generator(seed: int, epoch: int, step: int, *, purpose: int) -> torch.Generator:
    """A generator of its own for each step and purpose, so that resuming needs no saved random state.

    Purposes: 0 the images' augmentation, 1 the objectives, 2 the captions' form and masks, 3 dropout.
    """
    state = np.random.SeedSequence((seed, epoch, step, purpose)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _labels(pids: np.ndarray) -> np.ndarray:
    """Identities re-indexed from 0 in order of first appearance."""
    _, first, inverse = np.unique(pids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]

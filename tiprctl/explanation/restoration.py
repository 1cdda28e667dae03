"""An image restored from a part of it and a description, and which patches look at each word."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiprctl.checkpoint import OBJECTIVES, load_encoder, load_weights, read_checkpoint
from tiprctl.checkpoint_file import find_source, is_own
from tiprctl.config import TrainConfig, from_dict
from tiprctl.data.batches import Batch
from tiprctl.errors import UsageError
from tiprctl.images import load_pixels
from tiprctl.losses.restoration import restoration_loss
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import EncoderSpec, Encodings, encode
from tiprctl.models.masking import grey, hidden_patches, patchify, unpatchify
from tiprctl.objectives.composition import build_objective
from tiprctl.objectives.tir import TextGuidedRestoration
from tiprctl.pixels import denormalise, normalise
from tiprctl.shares import Share
from tiprctl.tokenizer import Tokenizer, clean

TIR = TextGuidedRestoration.name


@dataclass(frozen=True, eq=False)
class Restored:
    """What came out with one text, empty for none.

    `pixels` (H, W, 3) uint8, of which only the hidden patches were learnt; `error` is the squared error of the hidden
    patches in normalised pixels, as in training.
    """

    text: str
    pixels: np.ndarray
    error: float


@dataclass(frozen=True, eq=False)
class WordMap:
    """How the patches look at one word.

    `weights` (rows, columns) float32 sum to 1 over the patches; `share` is the fraction of all that patches look at
    which falls to the word.
    """

    word: str
    weights: np.ndarray
    share: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that the picture shows.

    `original` and `grey` (H, W, 3) uint8 at the size that the model sees; `hidden` (rows, columns) bool, True = the
    model did not see the patch; `restored` with each text; `words` those of the first text.
    """

    original: np.ndarray
    grey: np.ndarray
    hidden: np.ndarray
    restored: tuple[Restored, ...]
    words: tuple[WordMap, ...]


class Restorer:
    """The encoder of a run and the restoration that it was trained with, for inference in float32 on a device."""

    def __init__(
        self, encoder: DualEncoder, tir: TextGuidedRestoration, *, device: torch.device, description: str = ""
    ):
        self.encoder = encoder.to(device).eval()
        self.tir = tir.to(device).eval()
        self.device = device
        self.description = description

    @torch.inference_mode()
    def explain(self, image: Path, texts: Sequence[str], *, seed: int) -> Explanation:
        """Restore `image` with each of `texts`, and map the words of the first one.

        Raises:
            ImageError: the image cannot be read.
        """
        clip = self.encoder.clip.config
        original = load_pixels(image, clip.image_size)
        pixels = normalise(torch.from_numpy(original).permute(2, 0, 1)[None].to(self.device))
        target = patchify(pixels, clip.patch_size)
        encodings = [self._encode(pixels, text, seed) for text in texts]
        hidden = hidden_patches(encodings[0].kept, target.shape[1])
        predictions = [self.tir.restore(each) for each in encodings]
        attention = self.tir.attention(encodings[0])[0].unflatten(0, clip.grid)
        return Explanation(
            original=original,
            grey=_uint8(grey(denormalise(pixels))),
            hidden=hidden[0].unflatten(0, clip.grid).cpu().numpy(),
            restored=tuple(
                Restored(
                    text=text,
                    pixels=_uint8(denormalise(unpatchify(prediction, clip.grid))),
                    error=float(restoration_loss(prediction, target, hidden)),
                )
                for text, prediction in zip(texts, predictions)
            ),
            words=_word_maps(texts[0], attention.cpu().numpy(), self.encoder.tokenizer),
        )

    def _encode(self, pixels: Tensor, text: str, seed: int) -> Encodings:
        """One image with one text at a time, so that the same seed hides the same patches for each text."""
        token_ids = torch.from_numpy(self.encoder.tokenizer(text))
        batch = Batch(pixels=pixels, token_ids=token_ids, pids=token_ids.new_zeros(1), share=Share.whole(1))
        return encode(self.encoder, batch, self.tir.needs(), torch.Generator().manual_seed(seed))


def load_restorer(source: str | Path | None, *, device: torch.device) -> Restorer:
    """What a run needs to restore images; None is the newest finished run.

    Raises:
        UsageError: the model has no restoration, or one without colours. InputError: the checkpoint cannot be read.
    """
    file = find_source(source)
    if file is None or not is_own(file):
        raise _no_restoration(file or str(source))
    encoder, header = load_encoder(file)
    objectives = from_dict(TrainConfig, header["config"], where=str(file)).objectives
    config = next((objective for objective in objectives if objective.name == TIR), None)
    if config is None:
        raise _no_restoration(file)
    tir = build_objective(config, EncoderSpec(encoder.clip.config, encoder.head.width, identities=0))
    if tir.config.normalise_patches:
        raise UsageError(
            "The run restores patches at mean 0 and variance 1, so there are no colours to show",
            where=file,
            remedy="Train tir without normalise_patches.",
        )
    load_weights(tir, read_checkpoint(file, f"{OBJECTIVES}{TIR}.")[0], file)
    return Restorer(encoder, tir, device=device, description=f"{file} (epoch {header['epoch']})")


def word_tokens(text: str, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """The words of `text`, each with the places of its tokens in the row of token ids.

    Punctuation belongs to no word; what the context cuts off is left out.
    """
    cleaned = clean(text)
    spans = list(re.finditer(r"\S+", cleaned))
    starts = [span.start() for span in spans]
    places: list[list[int]] = [[] for _ in spans]
    place = 1
    for start, tokens in tokenizer.pieces(text):
        if cleaned[start].isalnum():
            taken = range(place, min(place + len(tokens), tokenizer.context_length - 1))
            places[bisect(starts, start) - 1] += taken
        place += len(tokens)
    return [(span.group().strip(".,;:!?\"'()"), taken) for span, taken in zip(spans, places) if taken]


def _word_maps(text: str, attention: np.ndarray, tokenizer: Tokenizer) -> tuple[WordMap, ...]:
    """The maps of the words of `text` from what each patch looks at, (rows, columns, L), which sums to 1 over L."""
    maps = []
    for word, places in word_tokens(text, tokenizer):
        weights = attention[..., places].sum(axis=-1)
        maps.append(WordMap(word, weights / weights.sum(), float(weights.mean())))
    return tuple(maps)


def _uint8(pixels: Tensor) -> np.ndarray:
    """One image `(1, 3, H, W)` in 0 to 1 as uint8 `(H, W, 3)`; what lies outside the range is clipped."""
    return (pixels[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _no_restoration(where: Path | str) -> UsageError:
    return UsageError(
        "No restoration can be read from this model",
        where=where,
        remedy="Name a run that has learnt to restore images: tiprctl train --aux tir",
    )

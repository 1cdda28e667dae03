"""Measuring a dual encoder on a split, both ways: caption to image and image to caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiprctl.data.decoding import DecodedImages
from tiprctl.data.manifest import Split
from tiprctl.metrics import RetrievalMetrics, retrieval_metrics
from tiprctl.models.embedder import Embedder
from tiprctl.tokenizer import default_tokenizer

IMAGE_BATCH = 128
TEXT_BATCH = 256
OnItems = Callable[[int], None]


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True)
class Evaluation:
    """The figures of one encoder on one split."""

    split: str
    images: int
    captions: int
    text_to_image: RetrievalMetrics
    image_to_text: RetrievalMetrics


@dataclass(frozen=True)
class SplitFeatures:
    """Unit features of all images `(I, F)` and captions `(C, F)` of a split."""

    image: Tensor
    text: Tensor


class EvaluationData:
    """A split made ready once and measured as often as wanted: captions tokenised, images in memory if they fit."""

    def __init__(self, split: Split, image_size: tuple[int, int], *, workers: int | None = None):
        self.split = split
        self.images = DecodedImages(split.image_paths, image_size, workers=workers)
        token_ids = default_tokenizer()(split.captions)
        self.token_ids = torch.from_numpy(token_ids)
        self.lengths = token_ids.argmax(axis=1) + 1

    @property
    def items(self) -> int:
        """Images and captions together: what `on_items` counts up to."""
        return len(self.images) + len(self.lengths)

    def encode(self, embedder: Embedder, on_items: OnItems = _ignore) -> SplitFeatures:
        """Encode the split; `on_items` is told how many more images or captions are done."""
        self.images.keep_if_small()
        image = []
        for pixels in self.images.in_order(IMAGE_BATCH):
            image.append(embedder.image_features(pixels))
            on_items(len(pixels))
        return SplitFeatures(torch.cat(image), self._encode_captions(embedder, on_items))

    def _encode_captions(self, embedder: Embedder, on_items: OnItems) -> Tensor:
        """In batches of like length, each cut to its longest caption; returned in the split's order."""
        order = np.argsort(self.lengths, kind="stable")
        features = torch.empty(len(order), embedder.width, device=embedder.device)
        for start in range(0, len(order), TEXT_BATCH):
            rows = order[start : start + TEXT_BATCH]
            token_ids = self.token_ids[rows, : int(self.lengths[rows].max())]
            features[torch.from_numpy(rows).to(embedder.device)] = embedder.text_features(token_ids)
            on_items(len(rows))
        return features


def evaluate(embedder: Embedder, data: EvaluationData, on_items: OnItems = _ignore) -> Evaluation:
    """R@k, mAP and mINP of an encoder on a split, both ways."""
    return score(data.encode(embedder, on_items), data.split)


def score(features: SplitFeatures, split: Split) -> Evaluation:
    """The figures of given features."""
    image_pids, caption_pids = torch.tensor(split.image_pids), torch.tensor(split.caption_pids)
    return Evaluation(
        split=split.name,
        images=len(image_pids),
        captions=len(caption_pids),
        text_to_image=retrieval_metrics(features.text, features.image, caption_pids, image_pids),
        image_to_text=retrieval_metrics(features.image, features.text, image_pids, caption_pids),
    )

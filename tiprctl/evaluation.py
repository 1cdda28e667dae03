"""Measuring a dual encoder on a split, both ways: caption to image and image to caption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from tiprctl.config import to_dict
from tiprctl.data.decoding import DecodedImages
from tiprctl.data.manifest import Split
from tiprctl.data.token_cache import TokenCache
from tiprctl.distributed import first_goes_ahead, first_makes, gather, own_share, processes
from tiprctl.meter import Meter, unseen
from tiprctl.metrics import RetrievalMetrics, retrieval_metrics, top_ranks
from tiprctl.models.embedder import Embedder, ModelOrigin, over_captions
from tiprctl.recipes import FIGURES
from tiprctl.reranking import Reranking, rerank
from tiprctl.tokenizer import Tokenizer

IMAGE_BATCH = 128
DIRECTIONS = {"text_to_image": "t2i", "image_to_text": "i2t"}
"""The fields of `Evaluation`, and their short names."""
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
class Reranked:
    """What captions found once the first images of each were ranked again, and how these were."""

    reranking: Reranking
    text_to_image: RetrievalMetrics


@dataclass(frozen=True)
class Measurement:
    """What one model, by the name that the user gave it, came to on one data set, called `title` before people.

    Where the first images of each caption were looked at again, `reranked` has the figures of the captions then, and
    `evaluation` those of the first ranking all the same.
    """

    model: str
    origin: ModelOrigin
    dataset: str
    title: str
    data_fingerprint: str
    evaluation: Evaluation
    reranked: Reranked | None = None


@dataclass(frozen=True)
class SplitFeatures:
    """Unit features of all images `(I, F)` and captions `(C, F)` of a split."""

    image: Tensor
    text: Tensor


class EvaluationData:
    """A split made ready once and measured as often as wanted: captions tokenised, images in memory if they fit.

    Of several processes each encodes its share of the images and of the captions, and has the features of all.
    """

    def __init__(self, split: Split, image_size: tuple[int, int], *, workers: int | None = None):
        self.split = split
        self.images = DecodedImages.of(split, image_size, workers=workers)
        self._token_ids: dict[Tokenizer, Tensor] = {}
        self._own_images = own = own_share(len(self.images))
        self._own_captions = own_share(len(split.captions))
        self._mine = self.images if processes() == 1 else self.images.part(slice(own.start, own.stop))

    @property
    def items(self) -> int:
        """How many images and captions this process encodes: what `on_items` counts up to."""
        return len(self._own_images) + len(self._own_captions)

    def encode(self, embedder: Embedder, on_items: OnItems = _ignore) -> SplitFeatures:
        """Encode the split; `on_items` is told how many more images or captions are done."""
        self._mine.keep_if_small()
        image = []
        for pixels in self._mine.in_order(IMAGE_BATCH, embedder.device):
            image.append(embedder.image_features(pixels))
            on_items(len(pixels))
        with first_goes_ahead():
            token_ids = self._own_captions.of(self.token_ids(embedder.tokenizer))
        text = over_captions(embedder.text_features, token_ids, on_items)
        with torch.inference_mode():
            return SplitFeatures(gather(torch.cat(image), len(self.images)), gather(text, len(self.split.captions)))

    def token_ids(self, tokenizer: Tokenizer) -> Tensor:
        """The captions as `tokenizer` cuts them, `(C, L)`, kept for the next time that it is asked for them."""
        if tokenizer not in self._token_ids:
            self._token_ids[tokenizer] = torch.from_numpy(
                TokenCache(self.split.root, tokenizer).token_ids(self.split.name, self.split.captions)
            )
        return self._token_ids[tokenizer]


def evaluate(embedder: Embedder, data: EvaluationData, on_items: OnItems = _ignore) -> Evaluation:
    """R@k, mAP and mINP of an encoder on a split, both ways; the same to the last bit in all processes."""
    features = data.encode(embedder, on_items)
    return first_makes(lambda: score(features, data.split))


def rerank_shared(
    embedder: Embedder, data: EvaluationData, features: SplitFeatures, first: int, *, progress: Meter = unseen
) -> Reranking:
    """The `first` images of each caption in their new order; of several processes each orders those of its captions.

    Raises as `tiprctl.reranking.rerank`.
    """
    own, captions = own_share(len(data.split.captions)), data.split.captions
    best, _ = top_ranks(own.of(features.text), features.image, first)
    mine = rerank(embedder, captions[own.start : own.stop], data.images, best, progress=progress)
    indices, scores = (gather(each, len(captions)) for each in (mine.indices, mine.scores))
    return replace(mine, indices=indices, scores=scores, images=len(indices.unique()))


def score(features: SplitFeatures, split: Split) -> Evaluation:
    """The figures of given features, both ways."""
    image_pids, caption_pids = _people(split)
    return Evaluation(
        split=split.name,
        images=len(image_pids),
        captions=len(caption_pids),
        text_to_image=retrieval_metrics(features.text, features.image, caption_pids, image_pids),
        image_to_text=retrieval_metrics(features.image, features.text, image_pids, caption_pids),
    )


def score_reranked(features: SplitFeatures, split: Split, reranking: Reranking) -> Reranked:
    """The figures of given features where the images that a caption finds first are in the order of `reranking`.

    The captions that an image finds are never ranked again: a caption's pairs share its phrases, so that their scores
    can be compared; those of an image do not.
    """
    image_pids, caption_pids = _people(split)
    metrics = retrieval_metrics(features.text, features.image, caption_pids, image_pids, first=reranking.indices)
    return Reranked(reranking, metrics)


def _people(split: Split) -> tuple[Tensor, Tensor]:
    """Who is on each image, and whom each caption describes."""
    return torch.tensor(split.image_pids), torch.tensor(split.caption_pids)


def top_hits(
    features: SplitFeatures, split: Split, reranking: Reranking | None = None, *, k: int = 10
) -> list[dict[str, Any]]:
    """For each caption, in the split's order: it, its identity, and path, identity and score of its first k images.

    Scores are cosines, and for images that were ranked again, which are marked as `reranked`, those of their pairs.
    """
    indices, scores = top_ranks(features.text, features.image, k)
    if reranking is not None:
        indices, scores = reranking.put_first(indices, scores)
    return [
        {
            "caption": caption,
            "pid": int(pid),
            "hits": [
                {
                    "path": str(split.image_paths[i]),
                    "pid": int(split.image_pids[i]),
                    "score": round(score, 4),
                    **(reranking.mark(rank) if reranking else {}),
                }
                for rank, (i, score) in enumerate(zip(row, row_scores), 1)
            ],
        }
        for caption, pid, row, row_scores in zip(split.captions, split.caption_pids, indices.tolist(), scores.tolist())
    ]


def figures(metrics: RetrievalMetrics) -> dict[str, float]:
    """R@k, mAP and mINP of one direction by their names, in percent."""
    return dict(zip(FIGURES, (*metrics.recall.values(), metrics.mean_ap, metrics.mean_inp), strict=True))


def rows(measurement: Measurement) -> list[dict[str, Any]]:
    """A row of rounded figures for each way of ranking: each direction, and re-ranked where that was done."""
    return [
        {
            "model": measurement.model,
            "recipe": measurement.origin.recipe,
            "data": measurement.title,
            "direction": direction,
            "selected_on": measurement.origin.selected_on,
            **{name: round(value, 2) for name, value in figures(metrics).items()},
            "queries": metrics.queries,
            "unmatched": metrics.unmatched,
            **(reranking.describe() if reranking else {}),
        }
        for direction, metrics, reranking in _ways(measurement)
    ]


def summaries(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Rows of mean and standard deviation over runs that differ in their seed alone, measured on the same data.

    A seed counts once, with the first of its checkpoints; a model that no run made is in no mean.
    """
    groups: dict[tuple[str, ...], dict[int, Measurement]] = {}
    for one in measurements:
        if one.origin.config is not None:
            settings = json.dumps(to_dict(replace(one.origin.config, seed=0)))
            key = (one.data_fingerprint, str(one.origin.data_fingerprint), settings)
            groups.setdefault(key, {}).setdefault(one.origin.config.seed, one)
    return [row for group in groups.values() if len(group) > 1 for row in _means(list(group.values()))]


def _ways(measurement: Measurement) -> Iterator[tuple[str, RetrievalMetrics, Reranking | None]]:
    """The direction, the figures and what was ranked again, of each way in which the model was measured."""
    yield "text_to_image", measurement.evaluation.text_to_image, None
    if again := measurement.reranked:
        yield "text_to_image", again.text_to_image, again.reranking
    yield "image_to_text", measurement.evaluation.image_to_text, None


def _means(group: Sequence[Measurement]) -> Iterator[dict[str, Any]]:
    """A row of means for each way of ranking."""
    recipe = group[0].origin.config.recipe
    for ways in zip(*map(_ways, group), strict=True):
        direction, _, reranking = ways[0]
        values = [figures(metrics) for _, metrics, _ in ways]
        yield {
            "model": f"mean of {len(group)} {recipe} runs",
            "recipe": recipe,
            "data": group[0].title,
            "direction": direction,
            "selected_on": ", ".join(sorted({one.origin.selected_on for one in group})),
            **{name: round(mean(value[name] for value in values), 2) for name in values[0]},
            **({"rerank": reranking.first} if reranking else {}),
            "std": {name: round(stdev(value[name] for value in values), 2) for name in values[0]},
        }

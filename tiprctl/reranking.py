"""The first images of each caption ordered anew, by what a head makes of a caption and an image together.

Features that are indexed never depend on a query, so they rank the whole gallery; what looks at a pair is asked about
the first K images of each caption alone, and only these change places.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiprctl.config import MOST_PHRASES
from tiprctl.data.decoding import DecodedImages
from tiprctl.data.phrases import phrases_of
from tiprctl.data.tagging import find_tagger
from tiprctl.errors import InputError, UsageError
from tiprctl.meter import Meter, unseen
from tiprctl.models.embedder import Embedder, over_captions
from tiprctl.models.heads import HEADS
from tiprctl.prompts import Prompts, prompt
from tiprctl.runs import LATEST
from tiprctl.sources import preview

DEFAULT_TAGGER = "hanta"
"""What tags captions for a model that does not tell who tagged those that it learnt."""
IMAGE_BATCH = 64
CAPTIONS_AT_ONCE = 1024
"""Captions of one image scored at a time: with six phrases each, their prompts and regions take 12.6 MB each."""
TAGGED_AT_ONCE = 64
REMEDY = "Bring the gallery up to date (tiprctl index sync), copy the image again, or leave --rerank out."
"""What to do about a crop that was found and cannot be read."""


@dataclass(frozen=True)
class Reranking:
    """The first K images of each of Q captions in their new order, and what that cost.

    `indices` (Q, K) int64 and the head's `scores` (Q, K) float32, best first, on the CPU; `images`, how many different
    ones were encoded again, once by each process that asks for them; `seconds`, all told, of this process.
    """

    indices: Tensor
    scores: Tensor
    images: int
    seconds: float

    @property
    def first(self) -> int:
        """K: fewer than were asked for where there are no more images."""
        return self.indices.shape[1]

    @property
    def pairs(self) -> int:
        """How many captions and images were looked at together."""
        return self.indices.numel()

    def put_first(self, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """A former ranking's first n `indices` (Q, n) and `scores` (Q, n) with the K first of them in the new order."""
        return tuple(
            torch.cat([new[:, : old.shape[1]], old[:, self.first :]], dim=1)
            for new, old in ((self.indices, indices), (self.scores, scores))
        )

    def mark(self, rank: int) -> dict[str, bool]:
        """What a JSON document says of the hit of this rank, from 1, whose score may be a pair's and no cosine."""
        return {"reranked": True} if rank <= self.first else {}

    def describe(self) -> dict[str, Any]:
        """K and the cost, for a JSON document."""
        cost = {"pairs": self.pairs, "images": self.images, "seconds": round(self.seconds, 2)}
        return {"rerank": self.first, "rerank_cost": cost}


@dataclass(frozen=True)
class _Described:
    """Captions ready to be paired, on the embedder's device: their global tokens `text` (Q, D), the distinct `prompts`
    (P, D), and which of these are theirs: `index` (Q, M), where `found` (Q, M)."""

    text: Tensor
    prompts: Tensor
    index: Tensor
    found: Tensor


def check_reranks(head: str, tagger: str | None, *, model: str) -> None:
    """Check that a model with this head, whose captions that tagger read, can order images anew.

    Raises:
        UsageError: its head looks at no pairs, or its tagger is not installed.
    """
    if head in HEADS and not HEADS[head].reranks:
        raise UsageError(
            "Only models of the recipe scvd, or others whose head looks at pairs, can re-rank; "
            f"this one has the head {head}",
            where=model,
            remedy="Name such a model, or leave --rerank out.",
        )
    needed = find_tagger(tagger or DEFAULT_TAGGER)
    try:
        _ = needed.version  # is asked for since it raises
    except UsageError as error:
        raise UsageError(
            f"{error.what}, which is to tell the phrases of the captions",
            where=model,
            remedy=f"Install it with {needed.install}, or leave --rerank out.",
        ) from error


def check_source(source: str | None) -> None:
    """Check that a model, as `load_embedder` takes it, can order images anew, by what its header tells.

    Raises:
        UsageError: as `check_reranks`. InputError: there is no such model, or its header cannot be read.
    """
    known = preview(source)
    check_reranks(known.head, known.tagger, model=str(source or LATEST))


def rerank(
    embedder: Embedder,
    captions: Sequence[str],
    images: DecodedImages,
    first: Tensor,
    *,
    progress: Meter = unseen,
) -> Reranking:
    """Order the `first` (Q, K) of `images` anew for each of Q captions; equal scores keep their order.

    The memory does not grow with the gallery: images are encoded a batch at a time, and then scored with all captions
    that have them among their first.

    Raises:
        UsageError: the model cannot (`check_reranks`). InputError: an image cannot be read, or a score is not a number.
    """
    started = time.perf_counter()
    check_reranks(embedder.encoder.head.name, embedder.origin.tagger, model=embedder.description)
    described = _describe(embedder, captions, progress)
    distinct = len(first.unique())
    with progress("Re-ranking", distinct, "images") as advance:
        scores = _pair_scores(embedder, described, images, first, advance)
    if scores.isnan().any():
        raise InputError(
            "Some scores of pairs are not numbers (NaN)",
            where=embedder.description,
            remedy="The checkpoint may be damaged or may have diverged in training: choose another.",
        )
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Reranking(
        indices=first.gather(1, order),
        scores=scores.gather(1, order),
        images=distinct,
        seconds=time.perf_counter() - started,
    )


def rerank_files(
    embedder: Embedder, captions: Sequence[str], files: Sequence[Sequence[Path]], *, progress: Meter = unseen
) -> tuple[list[dict[Path, float]], Reranking]:
    """Order image files anew for each of Q captions, each of which has at least one, and none twice.

    Returns:
        the head's score of each file of a caption, best first; and the re-ranking, whose indices are those of the files
        in the order in which they first come. Raises as `rerank`.
    """
    rows = {file: row for row, file in enumerate(dict.fromkeys(file for some in files for file in some))}
    distinct, most = list(rows), max(map(len, files))
    # A caption of fewer files repeats its last one: the repeats have that one's score and fall together with it.
    first = torch.tensor([[rows[file] for file in (*some, *some[-1:] * (most - len(some)))] for some in files])
    images = DecodedImages(distinct, embedder.image_size, remedy=REMEDY)
    images.keep_if_small()
    done = rerank(embedder, captions, images, first, progress=progress)
    scores = [
        {distinct[row]: score for row, score in zip(*some)} for some in zip(done.indices.tolist(), done.scores.tolist())
    ]
    return scores, done


def _describe(embedder: Embedder, captions: Sequence[str], progress: Meter) -> _Described:
    """Tag the captions, and encode them and the prompts of their phrases."""
    config, tagger = embedder.origin.config, embedder.origin.tagger or DEFAULT_TAGGER
    limit = (config.captions.phrases if config else 0) or MOST_PHRASES
    texts: list[list[str]] = []
    with progress("Tagging", len(captions), "captions") as advance:
        for start in range(0, len(captions), TAGGED_AT_ONCE):
            some = captions[start : start + TAGGED_AT_ONCE]
            texts += [[prompt(phrase) for phrase in phrases] for phrases in phrases_of(some, tagger, limit)]
            advance(len(some))
    prompts = Prompts.of(texts, embedder.tokenizer, limit=limit)
    token_ids = torch.from_numpy(embedder.tokenizer(captions))
    with progress("Encoding", len(token_ids) + len(prompts.token_ids), "sentences") as advance:
        text, distinct = (
            over_captions(lambda ids: embedder.read(ids, whole_only=True).whole, each, advance)
            for each in (token_ids, prompts.token_ids)
        )
    return _Described(text, distinct, prompts.index.to(embedder.device), prompts.found.to(embedder.device))


def _pair_scores(
    embedder: Embedder, described: _Described, images: DecodedImages, first: Tensor, advance: Callable[[int], None]
) -> Tensor:
    """The head's scores of each caption with its `first` (Q, K) images, (Q, K) float32 on the CPU."""
    chosen, place = first.flatten().unique(return_inverse=True)
    order = place.argsort(stable=True)
    captions_of = (order // first.shape[1]).to(embedder.device).split(place.bincount().tolist())
    scored = [
        _score(embedder, image, patches, described, some)
        for (image, patches), captions in zip(_seen(embedder, images, chosen, advance), captions_of)
        for some in captions.split(CAPTIONS_AT_ONCE)
    ]
    scores = torch.empty(first.numel())
    scores[order] = torch.cat(scored).cpu()
    return scores.view(first.shape)


def _seen(
    embedder: Embedder, images: DecodedImages, chosen: Tensor, advance: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The global token (1, D) and the patches (1, N, D) of each of the `chosen` images, encoded in batches."""
    for pixels in images.batches([batch.numpy() for batch in chosen.split(IMAGE_BATCH)], embedder.device):
        seen = embedder.see(pixels)
        yield from zip(seen.whole.split(1), seen.values[:, 1:].split(1))
        advance(len(pixels))


def _score(embedder: Embedder, image: Tensor, patches: Tensor, described: _Described, captions: Tensor) -> Tensor:
    """The head's scores (C,) of an image (1, D) with its `patches` (1, N, D) and the captions of these numbers (C,)."""
    prompts, found = described.prompts[described.index[captions]], described.found[captions]
    with embedder.inference():
        return embedder.encoder.head.pair_scores(image, patches, described.text[captions], prompts, found).squeeze(0)

"""Every view of a batch encoded once: objectives declare what they need and share what `encode` returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tiprctl.config import MOST_PHRASES
from tiprctl.errors import UsageError
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.models.clip import ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.heads.base import Features, Head, Related
from tiprctl.models.masking import grey, random_keep
from tiprctl.models.tokens import Tokens
from tiprctl.prompts import Prompts
from tiprctl.shares import Share
from tiprctl.token_masking import mask_tokens
from tiprctl.transfer import to_device


class PairBatch(Protocol):
    """A batch as training sees it: normalised `pixels` (B, 3, H, W), `token_ids` (B, L), `pids` (B,) from 0.

    `share` tells which rows of the whole batch these are. `token_labels` (B, L) are the original ids where the captions
    came masked, elsewhere 0; None when they came whole. `prompts` are those of the captions' phrases; None where the
    captions came without. Images and identities lie on the training device, all else on the host: there it is masked
    and divided without waiting for the device, and `encode` takes it over.
    """

    pixels: Tensor
    token_ids: Tensor
    pids: Tensor
    share: Share
    token_labels: Tensor | None
    prompts: Prompts | None


@dataclass(frozen=True)
class EncoderSpec:
    """What an objective may know of the encoder, whose `head` it tells by name, and the data it trains on."""

    clip: ClipConfig
    feature_width: int
    identities: int
    head: str = "global"


@dataclass(frozen=True)
class ImageMask:
    """A view of the image with the share `ratio` of its patches dropped, in grey when `grey`."""

    ratio: float
    grey: bool = True


@dataclass(frozen=True)
class TextMask:
    """A view of the caption with the share `ratio` of its tokens masked as in BERT."""

    ratio: float


@dataclass(frozen=True)
class Needs:
    """The views of a batch that an objective wants beside the plain image and caption.

    `image_tokens`, `text_tokens`: all tokens of the images, of the captions; without, a head that reads the global ones
    alone gets these only, at less work. `padded_text`: captions padded to the whole context, for those published
    decoders that attend to padding. `prompts`: the prompts of the captions' phrases, which the batch must bring.
    `pairs`: what a head that reranks makes of every image with every caption and its prompts, which then are there too;
    the composition refuses it with other heads.
    """

    masked_image: ImageMask | None = None
    masked_text: TextMask | None = None
    image_tokens: bool = False
    text_tokens: bool = False
    padded_text: bool = False
    prompts: bool = False
    pairs: bool = False

    def merge(self, other: Needs) -> Needs:
        """Both needs in one.

        Raises:
            UsageError: the two want different masks of the same kind.
        """
        return Needs(**{field.name: self._agree(other, field.name) for field in fields(self)})

    def _agree(self, other: Needs, view: str) -> Any:
        mine, theirs = getattr(self, view), getattr(other, view)
        if mine and theirs and mine != theirs:
            raise UsageError(
                f"Two objectives want different views of a batch: {mine} and {theirs}",
                where=view,
                remedy="Give both objectives the same mask, or train with one of them.",
            )
        return mine or theirs


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """The prompts of B captions, at most M each: their global tokens `values` (B, M, D), through no head.

    `found` (B, M) is True where there is one, and `index` (B, M) equal where two are the same, in other shares of the
    batch too (`tiprctl.prompts`).
    """

    values: Tensor
    found: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """What chance hides of a batch: the patches `kept` (B, K), and the captions `masked_ids` (B, L) with their labels.

    `token_labels` (B, L) are the hidden ids where a token is to be told, elsewhere 0; `masked_ids` is None where the
    captions came masked. What no objective needs is None. All lie on the host.
    """

    kept: Tensor | None = None
    masked_ids: Tensor | None = None
    token_labels: Tensor | None = None

    @cached_property
    def hidden(self) -> Tensor | None:
        """The places (M,) of tokens to be told, as in `Encodings`; on the host, where nobody waits for their count."""
        return None if self.token_labels is None else hidden_places(self.token_labels)


def hidden_places(token_labels: Tensor) -> Tensor:
    """Where labels `(B, L)` are not 0, counted through all captions, `(M,)`."""
    return token_labels.flatten().nonzero().flatten()


class Views:
    """What objectives read of encodings beside their fields; each is computed once, when it is first read."""

    @property
    def image_tokens(self) -> Tensor:
        """All tokens of the images, `(B, 1+N, D)`.

        Raises:
            UsageError: no objective has said that it needs them.
        """
        return _all_tokens(self.images, "image_tokens")

    @property
    def text_tokens(self) -> Tensor:
        """All tokens of the captions, `(B, L, D)`; raises as `image_tokens`."""
        return _all_tokens(self.captions, "text_tokens")

    @property
    def image(self) -> Tensor:
        """The images' features, `(B, F)`, not normalised."""
        return self.image_features.vector

    @property
    def text(self) -> Tensor:
        """The captions' features, `(B, F)`, not normalised."""
        return self.text_features.vector

    @cached_property
    def similarity(self) -> Tensor:
        """Cosine similarities `(B, B)`, rows images, columns texts; computed once for all objectives."""
        return cosine_similarity(self.image, self.text)

    @cached_property
    def related(self) -> Related:
        """What the head makes of every image with every caption, as in re-ranking."""
        images, captions, prompts = self.images, self.captions, self.prompts
        return self.head.relate(images.whole, images.values[:, 1:], captions.whole, prompts.values, prompts.found)


@dataclass(frozen=True, eq=False)
class Encodings(Views):
    """What the towers made of a batch of B image-caption pairs.

    `images` and `captions`, of `token_ids` (B, L), are the towers' tokens, and `head` makes features of them;
    `masked_image_tokens` (B, 1+K, D) with the kept patch indices `kept` (B, K); `masked_captions`, all their tokens,
    with `token_labels` (B, L), the hidden ids where a token is to be told, elsewhere 0, and `hidden` (M,), the places
    of those tokens, counted through all captions. `prompts` are those of the captions. What no objective needs is None.
    """

    token_ids: Tensor
    images: Tokens
    captions: Tokens
    head: Head
    masked_image_tokens: Tensor | None = None
    kept: Tensor | None = None
    masked_captions: Tokens | None = None
    token_labels: Tensor | None = None
    hidden: Tensor | None = None
    prompts: EncodedPrompts | None = None

    @property
    def plain(self) -> dict[str, Tokens | EncodedPrompts]:
        """The views that no mask touches, by the names of their fields."""
        views = {"images": self.images, "captions": self.captions, "prompts": self.prompts}
        return {name: view for name, view in views.items() if view is not None}

    @cached_property
    def image_features(self) -> Features:
        """What the head made of the images."""
        return self.head.image(self.images)

    @cached_property
    def text_features(self) -> Features:
        """What the head made of the captions."""
        return self.head.text(self.captions)


def _all_tokens(tokens: Tokens, need: str) -> Tensor:
    if not tokens.complete:
        raise UsageError(
            "An objective reads all tokens, and the global ones were made alone",
            where=need,
            remedy=f"Let its `needs` return Needs({need}=True).",
        )
    return tokens.values


def encode(encoder: DualEncoder, batch: PairBatch, needs: Needs, generator: Generator) -> Encodings:
    """Encode the images and captions of a batch, and each further view that is needed, once.

    Masks are drawn from `generator`. Captions that came masked are their own masked view. A prompt that several
    captions share is encoded once.

    Raises:
        UsageError: prompts are needed and the batch has none.
    """
    return encode_masked(encoder, batch, needs, draw_masks(encoder, batch, needs, generator))


def draw_masks(encoder: DualEncoder, batch: PairBatch, needs: Needs, generator: Generator) -> Masks:
    """The masks that are needed, drawn from `generator` for the whole batch of which these rows are a share."""
    drawn = {"generator": generator}
    kept = masked_ids = token_labels = None
    if mask := needs.masked_image:
        rows, columns = encoder.clip.config.grid
        kept = random_keep(batch.share, rows * columns, mask.ratio, **drawn)
    if needs.masked_text:
        token_ids = _token_ids(encoder, batch, needs)
        if batch.token_labels is not None:
            token_labels = _padded(batch.token_labels, token_ids.shape[1])
        else:
            vocab_size = encoder.clip.config.vocab_size
            masked_ids, token_labels = mask_tokens(
                token_ids, needs.masked_text.ratio, vocab_size=vocab_size, share=batch.share, **drawn
            )
    return Masks(kept, masked_ids, token_labels)


def encode_masked(encoder: DualEncoder, batch: PairBatch, needs: Needs, masks: Masks) -> Encodings:
    """As `encode`, with masks that are drawn already; masked views of what has no mask are left out."""
    device = batch.pixels.device
    token_ids = _moved(_token_ids(encoder, batch, needs), device)
    their_own_mask = needs.masked_text is not None and batch.token_labels is not None
    # The plain views come first: those who encode them twice then draw the same dropout, whatever else is needed.
    images = encoder.see(batch.pixels, whole_only=not (needs.image_tokens or needs.pairs))
    captions = encoder.read(token_ids, whole_only=not (needs.text_tokens or their_own_mask))
    prompts = _prompts(encoder, batch.prompts, device) if needs.prompts or needs.pairs else None
    masked_captions = captions if masks.token_labels is not None else None
    if masks.masked_ids is not None:
        masked_captions = encoder.clip.read(_moved(masks.masked_ids, device))
    kept = _moved(masks.kept, device)
    return Encodings(
        token_ids=token_ids,
        images=images,
        captions=captions,
        head=encoder.head,
        masked_image_tokens=_masked_image(encoder, batch.pixels, needs.masked_image, kept),
        kept=kept,
        masked_captions=masked_captions,
        token_labels=_moved(masks.token_labels, device),
        hidden=_moved(masks.hidden, device),
        prompts=prompts,
    )


def _moved(rows: Tensor | None, device: torch.device) -> Tensor | None:
    """What there is, on `device`."""
    return None if rows is None else to_device(rows, device)


def _token_ids(encoder: DualEncoder, batch: PairBatch, needs: Needs) -> Tensor:
    return _padded(batch.token_ids, encoder.clip.config.context_length) if needs.padded_text else batch.token_ids


def _masked_image(encoder: DualEncoder, pixels: Tensor, mask: ImageMask | None, kept: Tensor | None) -> Tensor | None:
    """The tokens of the visible patches; nothing where none were drawn."""
    return None if kept is None else encoder.clip.encode_image(grey(pixels) if mask.grey else pixels, keep=kept)


def _prompts(encoder: DualEncoder, prompts: Prompts | None, device: torch.device) -> EncodedPrompts:
    if prompts is None:
        raise UsageError(
            "An objective reads the prompts of the captions' phrases, and the captions come without",
            where="captions.phrases",
            remedy=f"Train with some for each caption: `--set captions.phrases={MOST_PHRASES}`.",
        )
    token_ids, index, found, labels = (
        to_device(each, device) for each in (prompts.token_ids, prompts.index, prompts.found, prompts.labels)
    )
    return EncodedPrompts(encoder.read(token_ids, whole_only=True).whole[index], found, labels)


def _padded(token_ids: Tensor, length: int) -> Tensor:
    return F.pad(token_ids, (0, length - token_ids.shape[1]))

"""Every view of a batch encoded once: objectives declare what they need and share what `encode` returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

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
from tiprctl.token_masking import mask_tokens


class PairBatch(Protocol):
    """A batch as training sees it: normalised `pixels` (B, 3, H, W), `token_ids` (B, L), `pids` (B,) from 0.

    `token_labels` (B, L) are the original ids where the captions came masked, elsewhere 0; None when they came whole.
    `prompts` are those of the captions' phrases; None where the captions came without.
    """

    pixels: Tensor
    token_ids: Tensor
    pids: Tensor
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

    `padded_text`: captions padded to the whole context, for those published decoders that attend to padding. `prompts`:
    the prompts of the captions' phrases, which the batch must bring. `pairs`: what a head that reranks makes of every
    image with every caption and its prompts, which then are there too; the composition refuses it with other heads.
    """

    masked_image: ImageMask | None = None
    masked_text: TextMask | None = None
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

    `found` (B, M) is True where there is one, and `index` (B, M) equal where two are the same (`tiprctl.prompts`).
    """

    values: Tensor
    found: Tensor
    index: Tensor


@dataclass(frozen=True)
class Encodings:
    """What the towers made of a batch of B image-caption pairs.

    `images` and `captions`, of `token_ids` (B, L), are the towers' tokens; `image_features` and `text_features` what
    the head made of them; `masked_image_tokens` (B, 1+K, D) with the kept patch indices `kept` (B, K);
    `masked_text_tokens` (B, L, D) with `token_labels` (B, L), the hidden ids where a token is to be told, elsewhere 0.
    `prompts` are those of the captions; `related` is what the head makes of every image with every caption, as in
    re-ranking. What no objective needs is None.
    """

    token_ids: Tensor
    images: Tokens
    captions: Tokens
    image_features: Features
    text_features: Features
    masked_image_tokens: Tensor | None = None
    kept: Tensor | None = None
    masked_text_tokens: Tensor | None = None
    token_labels: Tensor | None = None
    prompts: EncodedPrompts | None = None
    related: Related | None = None

    @property
    def image_tokens(self) -> Tensor:
        """All tokens of the images, `(B, 1+N, D)`."""
        return self.images.values

    @property
    def text_tokens(self) -> Tensor:
        """All tokens of the captions, `(B, L, D)`."""
        return self.captions.values

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


def encode(encoder: DualEncoder, batch: PairBatch, needs: Needs, generator: Generator) -> Encodings:
    """Encode the images and captions of a batch, and each further view that is needed, once.

    Masks are drawn from `generator`. Captions that came masked are their own masked view. A prompt that several captions
    share is encoded once.

    Raises:
        UsageError: prompts are needed and the batch has none.
    """
    context = encoder.clip.config.context_length
    token_ids = _padded(batch.token_ids, context) if needs.padded_text else batch.token_ids
    images, captions = encoder.see(batch.pixels), encoder.read(token_ids)
    masked_image_tokens, kept = _masked_image(encoder, batch.pixels, needs.masked_image, generator)
    masked_text_tokens, token_labels = None, None
    if needs.masked_text and batch.token_labels is not None:
        masked_text_tokens, token_labels = captions.values, _padded(batch.token_labels, token_ids.shape[1])
    elif needs.masked_text:
        masked_ids, token_labels = mask_tokens(
            token_ids, needs.masked_text.ratio, vocab_size=encoder.clip.config.vocab_size, generator=generator
        )
        masked_text_tokens = encoder.clip.encode_text(masked_ids)
    prompts = _prompts(encoder, batch.prompts) if needs.prompts or needs.pairs else None
    return Encodings(
        token_ids=token_ids,
        images=images,
        captions=captions,
        image_features=encoder.head.image(images),
        text_features=encoder.head.text(captions),
        masked_image_tokens=masked_image_tokens,
        kept=kept,
        masked_text_tokens=masked_text_tokens,
        token_labels=token_labels,
        prompts=prompts,
        related=_related(encoder.head, images, captions, prompts) if needs.pairs else None,
    )


def _masked_image(
    encoder: DualEncoder, pixels: Tensor, mask: ImageMask | None, generator: Generator
) -> tuple[Tensor | None, Tensor | None]:
    """The tokens of the visible patches and their indices; nothing without a mask."""
    if mask is None:
        return None, None
    rows, columns = encoder.clip.config.grid
    kept = random_keep(len(pixels), rows * columns, mask.ratio, generator=generator, device=pixels.device)
    return encoder.clip.encode_image(grey(pixels) if mask.grey else pixels, keep=kept), kept


def _prompts(encoder: DualEncoder, prompts: Prompts | None) -> EncodedPrompts:
    if prompts is None:
        raise UsageError(
            "An objective reads the prompts of the captions' phrases, and the captions come without",
            where="captions.phrases",
            remedy=f"Train with some for each caption: `--set captions.phrases={MOST_PHRASES}`.",
        )
    return EncodedPrompts(encoder.read(prompts.token_ids).whole[prompts.index], prompts.found, prompts.index)


def _related(head: Head, images: Tokens, captions: Tokens, prompts: EncodedPrompts) -> Related:
    """Each image of the batch with each caption."""
    return head.relate(images.whole, images.values[:, 1:], captions.whole, prompts.values, prompts.found)


def _padded(token_ids: Tensor, length: int) -> Tensor:
    return F.pad(token_ids, (0, length - token_ids.shape[1]))

"""Every view of a batch encoded once: objectives declare what they need and share what `encode` returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from torch import Generator, Tensor

from tiprctl.errors import UsageError
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.models.clip import ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.masking import grey, random_keep


@dataclass(frozen=True)
class EncoderSpec:
    """What an objective may know of the encoder and the data it trains on."""

    clip: ClipConfig
    feature_width: int
    identities: int


@dataclass(frozen=True)
class ImageMask:
    """A view of the image with the share `ratio` of its patches dropped, in grey when `grey`."""

    ratio: float
    grey: bool = True


@dataclass(frozen=True)
class Needs:
    """The views of a batch that an objective wants beside the plain image and caption."""

    masked_image: ImageMask | None = None

    def merge(self, other: Needs) -> Needs:
        """Both needs in one.

        Raises:
            UsageError: the two want different masks of the same kind.
        """
        return Needs(**{field.name: self._agree(other, field.name) for field in fields(self)})

    def _agree(self, other: Needs, view: str) -> ImageMask | None:
        mine, theirs = getattr(self, view), getattr(other, view)
        if mine is not None and theirs is not None and mine != theirs:
            raise UsageError(
                f"Two objectives want different views of a batch: {mine} and {theirs}",
                where=view,
                remedy="Give both objectives the same mask, or train with one of them.",
            )
        return mine if mine is not None else theirs


@dataclass(frozen=True)
class Encodings:
    """What the towers made of a batch of B image-caption pairs.

    Shapes: `image_tokens` (B, 1+N, D), `text_tokens` (B, L, D); `image` and `text` (B, F) the head's features, not
    normalised; `masked_image_tokens` (B, 1+K, D) with the kept patch indices `kept` (B, K), None unless needed.
    """

    image_tokens: Tensor
    text_tokens: Tensor
    image: Tensor
    text: Tensor
    masked_image_tokens: Tensor | None = None
    kept: Tensor | None = None

    @cached_property
    def similarity(self) -> Tensor:
        """Cosine similarities `(B, B)`, rows images, columns texts; computed once for all objectives."""
        return cosine_similarity(self.image, self.text)


def encode(encoder: DualEncoder, pixels: Tensor, token_ids: Tensor, needs: Needs, generator: Generator) -> Encodings:
    """Encode images `(B, 3, H, W)` and their captions `(B, L)`, and each further view that is needed, once.

    Masks are drawn from `generator`.
    """
    clip = encoder.clip
    image_tokens = clip.encode_image(pixels)
    text_tokens = clip.encode_text(token_ids)
    masked_image_tokens, kept = None, None
    if needs.masked_image is not None:
        rows, columns = clip.config.grid
        kept = random_keep(
            len(pixels), rows * columns, needs.masked_image.ratio, generator=generator, device=pixels.device
        )
        view = grey(pixels) if needs.masked_image.grey else pixels
        masked_image_tokens = clip.encode_image(view, keep=kept)
    return Encodings(
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        image=encoder.head.image(image_tokens),
        text=encoder.head.text(text_tokens, token_ids),
        masked_image_tokens=masked_image_tokens,
        kept=kept,
    )

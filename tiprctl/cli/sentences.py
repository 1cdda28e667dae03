"""What commands that take descriptions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiprctl.cli import render

if TYPE_CHECKING:
    from tiprctl.reranking import Reranking
    from tiprctl.tokenizer import Tokenizer


def warn_of_long(sentences: Sequence[str], tokenizer: Tokenizer) -> None:
    """Warn of sentences that the text tower will not see whole."""
    room = tokenizer.context_length - 2
    for sentence in sentences:
        tokens = len(tokenizer.encode(sentence))
        if tokens > room:
            render.warning(f"The sentence is cut after {room} of its {tokens} tokens: {sentence[:60]}…")


def note_reranking(reranking: Reranking, images: int) -> None:
    """Tell what it cost to rank the first of so many images again."""
    captions = len(reranking.indices)
    render.note(
        f"Re-ranked {reranking.first:,} of {images:,} images for each of {captions:,} captions: "
        f"{reranking.pairs:,} pairs, {reranking.images:,} images encoded again, {reranking.seconds:.1f} s"
    )

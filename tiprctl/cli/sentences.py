"""What commands that take descriptions share."""

from __future__ import annotations

from collections.abc import Sequence

from tiprctl.cli import render


def warn_of_long(sentences: Sequence[str]) -> None:
    """Warn of sentences that the text tower will not see whole."""
    from tiprctl.tokenizer import default_tokenizer

    tokenizer = default_tokenizer()
    room = tokenizer.context_length - 2
    for sentence in sentences:
        tokens = len(tokenizer.encode(sentence))
        if tokens > room:
            render.warning(f"The sentence is cut after {room} of its {tokens} tokens: {sentence[:60]}…")

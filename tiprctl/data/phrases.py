"""What a caption names, phrase by phrase: SCVD's semantics deconstructor, by part of speech.

Only its purpose is published: prompts made of the raw description that CLIP understands well (Wei et al., 2024). The
phrases and how they are chosen are this project's reading (docs/methods/scvd.md), as is the wording of the prompts that
are made of them (`tiprctl.prompts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tiprctl.config import MOST_PHRASES
from tiprctl.data.tagging import ADJECTIVE, NOUN, classify, find_tagger, tokens_of

_PHRASE = re.compile(f"[{ADJECTIVE}{NOUN}]*{NOUN}")


def noun_phrases(caption: str, classes: str, limit: int = MOST_PHRASES) -> list[str]:
    """The noun phrases of a caption, at most `limit` (1 or more), in order and in lower case: "long black hair".

    A phrase is the longest run of adjectives and nouns, as `classes` has them for `tokens_of(caption)`, that ends in a
    noun; one that comes again counts once. Where there are too many, those of several words go first: a noun alone
    ("step", "camera") says least of somebody's looks. So do "man" and "woman", which are phrases like others: telling
    them from the rest would take a list of words. An "and" ends a phrase, so that "a red and white shirt" gives "white
    shirt". A caption without any is its own one phrase.
    """
    tokens = tokens_of(caption)
    spans = (match.span() for match in _PHRASE.finditer(classes))
    phrases = list(dict.fromkeys(" ".join(tokens[start:end]) for start, end in spans))
    telling = set(sorted(phrases, key=lambda phrase: " " not in phrase)[:limit])
    return [phrase for phrase in phrases if phrase in telling] or [caption]


def phrases_of(captions: Sequence[str], tagger: str, limit: int = MOST_PHRASES) -> list[list[str]]:
    """The noun phrases of sentences that nobody has tagged yet, by the tagger of that name.

    Raises:
        UsageError: there is no such tagger, or it is not installed.
    """
    _ = find_tagger(tagger).version  # raises where the package is not installed
    return [noun_phrases(caption, classify(caption, tagger), limit) for caption in captions]

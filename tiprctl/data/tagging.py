"""The words of a caption and what they are, noun, adjective, pronoun or another, by a part-of-speech tagger.

Two taggers are known. HanTa (Wartena, 2019) is a hidden Markov model over words and their parts, with the tags of the
British National Corpus (C5). `PatternTagger` of TextBlob, an extra, has Penn's tags and looks little at the context:
much faster, and weaker, since "left" and "back" are never a noun or adjective to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from tiprctl.errors import UsageError, unknown_name
from tiprctl.tokenizer import clean

NOUN, ADJECTIVE, PRONOUN, OTHER = "n", "a", "p", "."
"""The classes of tokens; those of a caption are a string with one letter a token."""

TOKEN = re.compile(
    r"""
    [^\W_]+?(?=n't\b) | n't\b        # does|n't, ca|n't: divided as in both corpora
    | '(?:s|re|ve|ll|d|m)\b          # woman|'s, he|'s
    | [^\W_]+(?:-[^\W_]+)*           # shirt, t-shirt, short-sleeved
    | [^\w\s]                        # a punctuation mark
    """,
    re.VERBOSE,
)

CORRECTIONS: Mapping[str, str] = {
    "wears": OTHER,
    **dict.fromkeys(("checked", "checkered", "collared", "hooded", "stripy"), ADJECTIVE),
    **dict.fromkeys(("long-sleeved", "short-sleeved"), ADJECTIVE),
}
"""What a tagger is overruled on: words that have one use in descriptions of people and are missed in places.

HanTa takes "wears" for a noun after "down" and "checked" for a verb; TextBlob takes each of the others for one.
"""

BNC: Mapping[str, str] = {"NN": NOUN, "NP": NOUN, "AJ": ADJECTIVE, "PNP": PRONOUN, "PNI": PRONOUN, "DPS": PRONOUN}
PENN: Mapping[str, str] = {"NN": NOUN, "JJ": ADJECTIVE, "PRP": PRONOUN}
"""The beginnings of the tags whose words stay. The BNC's PRP is a preposition, its PNQ ("who") is no PRP in Penn."""

Tag = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Tagger:
    """A part-of-speech tagger: the package it is in, what it costs time to load, and how its tags begin."""

    package: str
    load: Callable[[], Tag]
    classes: Mapping[str, str]
    install: str

    @property
    def version(self) -> str:
        """The version of its package.

        Raises:
            UsageError: the package is not installed.
        """
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError as error:
            remedy = f"Install it with {self.install}, or choose another tagger."
            raise UsageError(f"{self.package} is not installed", where="--tagger", remedy=remedy) from error


def _hanta() -> Tag:
    from HanTa import HanoverTagger

    # By its whole path: a file of that name in the working folder would be taken, and unpickled, first.
    tagger = HanoverTagger.HanoverTagger(str(Path(HanoverTagger.__file__).with_name("morphmodel_en.pgz")))
    return lambda tokens: tagger.tag_sent(tokens, taglevel=0)


def _textblob() -> Tag:
    from textblob.en.taggers import PatternTagger

    tagger = PatternTagger()
    return lambda tokens: [tag for _, tag in tagger.tag(" ".join(tokens), tokenize=False)]


TAGGERS: Mapping[str, Tagger] = {
    "hanta": Tagger("HanTa", _hanta, BNC, "`pip install HanTa`"),
    "textblob": Tagger("textblob", _textblob, PENN, "`pip install tiprctl[textblob]`"),
}


def find_tagger(name: str) -> Tagger:
    """The tagger of that name.

    Raises:
        UsageError: there is none; the choices are listed.
    """
    if name not in TAGGERS:
        raise unknown_name("tagger", name, TAGGERS)
    return TAGGERS[name]


def tokens_of(caption: str) -> list[str]:
    """Words, clitics ("'s") and punctuation marks in order, in lower case; "t-shirt" is one word."""
    return TOKEN.findall(clean(caption))


def classify(caption: str, tagger: str) -> str:
    """The class of each of `tokens_of(caption)`, by the tagger of that name."""
    tokens = tokens_of(caption)
    tags = _loaded(tagger)(tokens) if tokens else []
    return "".join(_class(token, tag, TAGGERS[tagger].classes) for token, tag in zip(tokens, tags, strict=True))


def prune(caption: str, classes: str) -> str:
    """The nouns, adjectives and pronouns in order, joined by spaces; without any, the caption as it is."""
    kept = (token for token, kind in zip(tokens_of(caption), classes, strict=True) if kind != OTHER)
    return " ".join(kept) or caption


@cache
def _loaded(name: str) -> Tag:
    """The tagger ready for work, loaded once a process."""
    return TAGGERS[name].load()


def _class(token: str, tag: str, classes: Mapping[str, str]) -> str:
    if not token[0].isalnum():
        return OTHER
    fitting = (kind for beginning, kind in classes.items() if tag.startswith(beginning))
    return CORRECTIONS.get(token, next(fitting, OTHER))

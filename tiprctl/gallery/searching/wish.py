"""What is looked for: a description, crops that look alike, more of this and less of that, combined to one vector."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tiprctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from tiprctl.vector_model import VectorModel

_Item = TypeVar("_Item", str, Path)

WEIGHT = "^"
"""Parts a text or a file from its weight, as in search engines: `hat^0.5`."""

_AT_ONCE = 64
_LEAST_LENGTH = 1e-3
"""Shorter sums of unit vectors have no direction that means anything."""
_QUERY = "query"
"""The column or key of a file of queries that holds the description."""


@dataclass(frozen=True)
class Term:
    """A part of a wish: a text, or the file of an image; its weight is negative where it is to be absent."""

    what: str | Path
    weight: float = 1.0


@dataclass(frozen=True)
class Wish:
    """What one query looks for: the sum of its terms."""

    terms: tuple[Term, ...]

    @property
    def label(self) -> str:
        """The wish for people: the sentence itself, where it is nothing else."""
        return "".join(_spelt(term, first=not place) for place, term in enumerate(self.terms))

    @property
    def texts(self) -> list[str]:
        """What the text tower is to read."""
        return [term.what for term in self.terms if isinstance(term.what, str)]

    @property
    def sentence(self) -> str | None:
        """The description, where the wish is one and nothing else."""
        (term, *others) = self.terms
        return None if others or term.weight != 1 or isinstance(term.what, Path) else term.what


def make_wishes(
    sentences: Sequence[str], like: Sequence[str] = (), plus: Sequence[str] = (), minus: Sequence[str] = ()
) -> list[Wish]:
    """A wish for each sentence, or one where there is none, with all the images and texts that go with it.

    A sentence weighs 1; what the others weigh follows them: `hat^0.5`.

    Raises:
        UsageError: there is nothing to look for, a text is empty, or a weight is no positive number.
        InputError: an image's file is not there.
    """
    wanted = [_image_term(one) for one in like] + [_text_term(one, "--plus") for one in plus]
    unwanted = [_text_term(one, "--minus") for one in minus]
    if not sentences and not wanted:
        raise UsageError(
            "There is nothing to look for",
            remedy='Describe a person (tiprctl query "woman in red coat" --gallery DIR), or give --like IMAGE, '
            "--plus TEXT or --queries FILE.",
        )
    further = (*wanted, *(Term(term.what, -term.weight) for term in unwanted))
    return [Wish((Term(sentence), *further)) for sentence in sentences] or [Wish(further)]


def read_queries(file: Path) -> list[str]:
    """The descriptions of a file: a line each; of .csv the column `query`, or, where no line names the columns so, what
    each line begins with; of .jsonl texts, or objects with `query`.

    Raises:
        InputError: it cannot be read, is not UTF-8, holds no description, or one that is no text.
    """
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("The file of queries is not UTF-8", where=file, remedy="Save it as UTF-8.") from error
    except OSError as error:
        what = f"The file of queries cannot be read: {error.strerror}"
        raise InputError(what, where=file, remedy="Name a text file with a description a line.") from error
    split = {".csv": _csv_queries, ".jsonl": _json_queries}.get(file.suffix.lower(), _lines)
    sentences = [sentence for sentence in split(content, file) if sentence]
    if not sentences:
        raise InputError("The file of queries is empty", where=file, remedy="Write a description a line.")
    return sentences


def wish_vectors(wishes: Sequence[Wish], model: VectorModel) -> np.ndarray:
    """The direction of each wish, float32 `(Q, width)` of unit length: the weighted sum of its terms' unit vectors.

    Raises:
        ImageError: an image cannot be read. UsageError: the terms of a wish cancel each other out.
    """
    terms = [term.what for wish in wishes for term in wish.terms]
    texts = list(dict.fromkeys(what for what in terms if isinstance(what, str)))
    images = list(dict.fromkeys(what for what in terms if isinstance(what, Path)))
    vectors = {
        **_embedded(texts, model.embed_texts),
        **_embedded(images, lambda files: model.embed_images(_pixels(files, model.image_size))),
    }
    sums = np.stack([sum(term.weight * vectors[term.what] for term in wish.terms) for wish in wishes])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    for wish, length in zip(wishes, lengths):
        if not length > _LEAST_LENGTH:
            raise UsageError(
                "The parts of the query cancel each other out",
                where=wish.label,
                remedy="Ask for something else than what you exclude, or lower a weight, as in --minus 'hat^0.5'.",
            )
    return (sums / lengths).astype(np.float32)


def _spelt(term: Term, *, first: bool) -> str:
    what = f"like {term.what}" if isinstance(term.what, Path) else term.what
    weight = "" if abs(term.weight) == 1 else f"{WEIGHT}{abs(term.weight):g}"
    sign = "-" if term.weight < 0 else "+"
    return f"{what}{weight}" if first and term.weight > 0 else f" {sign} {what}{weight}"


def _text_term(given: str, option: str) -> Term:
    text, weight = _weighed(given, option)
    if not text.strip():
        raise UsageError("The text is empty", where=option, remedy="Say what to look for: --plus 'black backpack'.")
    return Term(text.strip(), weight)


def _image_term(given: str) -> Term:
    """The caret may be part of a file's name: a file of that very name comes first."""
    if Path(given).is_file():
        return Term(Path(given))
    file, weight = _weighed(given, "--like")
    if not Path(file).is_file():
        raise InputError("There is no such image file", where=file, remedy="Check the path given with --like.")
    return Term(Path(file), weight)


def _weighed(given: str, option: str) -> tuple[str, float]:
    """What stands before the last caret, and the weight behind it; all of it where no number follows."""
    what, caret, tail = given.rpartition(WEIGHT)
    try:
        weight = float(tail) if caret else None
    except ValueError:
        weight = None
    if weight is None:
        return given, 1.0
    if not (math.isfinite(weight) and weight > 0):
        raise UsageError(
            f"The weight {tail} is no positive number",
            where=f"{option} {given}",
            remedy="Weights are like 0.5 or 2; what is to be absent goes with --minus.",
        )
    return what, weight


def _lines(content: str, file: Path) -> Iterator[str]:
    return (line.strip() for line in content.splitlines())


def _csv_queries(content: str, file: Path) -> Iterator[str]:
    try:
        rows = list(csv.reader(io.StringIO(content, newline="")))
    except csv.Error as error:
        raise InputError(
            f"The file of queries is no CSV: {error}", where=file, remedy="Save it as CSV again."
        ) from error
    names = [name.strip().lower() for name in rows[0]] if rows else []
    # A line of other names cannot be told from a description, which is not to be lost.
    column, first = (names.index(_QUERY), 1) if _QUERY in names else (0, 0)
    return (row[column].strip() for row in rows[first:] if len(row) > column)


def _json_queries(content: str, file: Path) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        query = value.get(_QUERY) if isinstance(value, dict) else value
        if not isinstance(query, str):
            raise InputError(
                f"Line {number} holds no description",
                where=file,
                remedy=f'Write a text a line, "woman in red coat", or an object: {{"{_QUERY}": "woman in red coat"}}.',
            )
        yield query.strip()


def _pixels(files: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    # Here alone, since a text query opens no picture.
    from tiprctl.images import load_pixels

    return np.stack([load_pixels(file, size) for file in files])


def _embedded(items: Sequence[_Item], embed: Callable[[Sequence[_Item]], np.ndarray]) -> dict[_Item, np.ndarray]:
    """Each item's vector, embedded so many at once that the memory does not grow with their number."""
    vectors: dict[_Item, np.ndarray] = {}
    for start in range(0, len(items), _AT_ONCE):
        some = items[start : start + _AT_ONCE]
        vectors.update(zip(some, embed(some), strict=True))
    return vectors

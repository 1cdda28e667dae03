"""How hard `synth-pedes` is: what perfect readers reach on it, and what matching colours without learning reaches."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tiprctl.data.synth_pedes import ANNOTATIONS, ATTRIBUTE_FILE, IMAGES
from tiprctl.data.synth_pedes.people import ATTRIBUTES, COLOURS, MAIN_ATTRIBUTES
from tiprctl.data.synth_pedes.wording import COLOUR_WORDS
from tiprctl.errors import InputError

_REGIONS = {"head": (0.05, 0.2), "torso": (0.24, 0.5), "legs": (0.54, 0.86)}
"""Upper and lower border of each region, as fractions of the image's height."""

_COLOUR_OF_WORD = {word: name for name, words in COLOUR_WORDS.items() for word in words}
_COLOUR_WORD = re.compile(r"\b(?:" + "|".join(sorted(_COLOUR_OF_WORD, key=len, reverse=True)) + r")\b")


@dataclass(frozen=True)
class DifficultyReport:
    """R@1 in percent over the captions of one split; the gallery is all images of that split.

    Args:
        split: the split that was measured.
        images: size of the gallery.
        captions: number of queries.
        oracle_all: knows every attribute that a caption mentions.
        oracle_main: knows the gender and the colours of the large garments that a caption mentions.
        baseline: learns nothing; compares colour words with the mean colours of head, torso and legs.
    """

    split: str
    images: int
    captions: int
    oracle_all: float
    oracle_main: float
    baseline: float


def report(root: Path, split: str = "test") -> DifficultyReport:
    """Measure the two oracles and the baseline on one split of a rendered data set.

    An oracle ranks persons by how many of the caption's statements are true of them. Where several persons share the
    first rank, the query counts in expectation, as if one of them were drawn. The baseline's ties go by gallery order.

    Raises:
        InputError: the folder holds no `synth-pedes`, or one without this split.
    """
    root = Path(root)
    records = [record for record in _read(root / ANNOTATIONS) if record["split"] == split]
    if not records:
        raise InputError(f"There is no split {split!r}", where=root / ANNOTATIONS, remedy="Choose train, val or test.")
    known = _read(root / ATTRIBUTE_FILE)
    pids = np.array([record["id"] for record in records])
    people = {pid: known["people"][str(pid)] for pid in dict.fromkeys(pids.tolist())}
    queries = [
        (record["id"], caption["mentions"])
        for record in records
        for caption in known["images"][record["file_path"]]["captions"]
    ]
    texts = [caption for record in records for caption in record["captions"]]
    colours = np.stack([region_colours(root / IMAGES / record["file_path"]) for record in records])
    hits = [pids[best_by_colour(text, colours)] == pid for text, (pid, _) in zip(texts, queries, strict=True)]
    return DifficultyReport(
        split=split,
        images=len(records),
        captions=len(queries),
        oracle_all=oracle_recall(people, queries, ATTRIBUTES),
        oracle_main=oracle_recall(people, queries, MAIN_ATTRIBUTES),
        baseline=100 * float(np.mean(hits)),
    )


def oracle_recall(
    people: Mapping[int, Mapping[str, str]],
    queries: Sequence[tuple[int, Mapping[str, str]]],
    attributes: Collection[str],
) -> float:
    """Expected R@1 in percent of a reader who knows the given attributes and no other.

    Args:
        people: the attributes of each pid; every pid has as many images as any other.
        queries: for each caption its pid and its mentions.
        attributes: those that the reader knows.
    """
    pids = np.array(list(people))
    traits = {name: np.array([person.get(name, "") for person in people.values()], dtype=object) for name in attributes}
    total = 0.0
    for pid, mentions in queries:
        agreement = np.zeros(len(pids), dtype=np.int64)
        for name, value in mentions.items():
            if name in traits:
                agreement += traits[name] == value
        first = agreement == agreement.max()
        total += float(np.mean(pids[first] == pid))
    return 100 * total / len(queries)


def region_colours(path: Path) -> np.ndarray:
    """The mean RGB of the middle columns of an image's head, torso and legs: (3 regions, 3) float32, 0 to 255."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    height, width, _ = pixels.shape
    columns = slice(int(0.32 * width), int(0.68 * width))
    return np.stack(
        [pixels[int(top * height) : int(low * height), columns].mean(axis=(0, 1)) for top, low in _REGIONS.values()]
    )


def best_by_colour(caption: str, colours: np.ndarray) -> int:
    """The image whose regions come nearest to the colour words of `caption`, the first of several.

    Args:
        caption: the query.
        colours: (images, regions, 3) mean RGB.
    """
    names = [_COLOUR_OF_WORD[word] for word in _COLOUR_WORD.findall(caption.lower())]
    if not names:
        return 0
    asked = np.array([COLOURS[name] for name in names], np.float32)
    distances = np.linalg.norm(colours[:, None] - asked[None, :, None], axis=-1)
    return int(distances.min(axis=2).sum(axis=1).argmin())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            "This folder holds no synth-pedes", where=path, remedy="Render it with: tiprctl prepare synth-pedes"
        ) from error
    except ValueError as error:
        raise InputError(
            "This is not a JSON file of synth-pedes", where=path, remedy="Render it anew: tiprctl prepare synth-pedes"
        ) from error

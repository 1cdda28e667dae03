"""Re-ranking the first hits of each description by what its phrases find in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiprctl.cli import render
from tiprctl.cli.sentences import note_reranking
from tiprctl.errors import UsageError
from tiprctl.gallery.keeping.places import is_remote

if TYPE_CHECKING:
    from tiprctl.cli.opening import Opened
    from tiprctl.gallery.searching.answer import Hit
    from tiprctl.gallery.searching.wish import Wish
    from tiprctl.reranking import Reranking


def check_wishes(wishes: Sequence[Wish]) -> None:
    """Refuse to re-rank for what is no sentence; raises UsageError."""
    other = next((wish for wish in wishes if wish.sentence is None), None)
    if other is not None:
        raise UsageError(
            "Only descriptions can be ranked again: no images, and nothing with --plus or --minus",
            where=other.label,
            remedy="Leave --rerank out, or describe the person in one sentence.",
        )


def rerank(
    opened: Opened, wishes: Sequence[Wish], found: Sequence[Sequence[Hit]], first: int
) -> tuple[list[list[Hit]], Reranking | None]:
    """The hits with the first of each sentence in their new order, and what that cost, which is told.

    There is nothing to rank where nothing was found.

    Raises:
        UsageError: the model cannot, or the images are in an object store. InputError: an image cannot be read.
    """
    asked = [row for row, hits in enumerate(found) if hits]
    if not asked:
        return list(map(list, found)), None
    files = [[_file(hit) for hit in found[row][:first]] for row in asked]

    from tiprctl.reranking import rerank_files

    scores, reranking = rerank_files(
        opened.model, [wishes[row].sentence for row in asked], files, progress=render.progress
    )
    note_reranking(reranking, len(opened.store))
    render.note(f"The scores of the first {reranking.first:,} are those of pairs; below the line there, cosines.")
    ordered = list(map(list, found))
    for row, new in zip(asked, scores):
        hits = {Path(hit.path): hit for hit in found[row]}
        ordered[row][: len(new)] = [replace(hits[file], score=score) for file, score in new.items()]
    return ordered, reranking


def _file(hit: Hit) -> Path:
    if is_remote(hit.path):
        raise UsageError(
            "Re-ranking reads the images again, which it cannot from an object store",
            where=hit.path,
            remedy="Leave --rerank out.",
        )
    return Path(hit.path)

"""`tiprctl query`: rank a folder of person crops by a description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Device, Json, Rerank
from tiprctl.cli.sentences import note_reranking, warn_of_long
from tiprctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from tiprctl.gallery.embed import Listing, VectorModel
    from tiprctl.gallery.index import Gallery
    from tiprctl.gallery.search import Hits
    from tiprctl.models.embedder import Embedder
    from tiprctl.reranking import Reranking

_NAMED = 3
"""How many skipped files are named in the warning; `--json` lists them all."""


def query(
    gallery: Annotated[Path, typer.Option(help="Folder of person crops: jpg, png, webp, bmp.")],
    sentence: Annotated[str | None, typer.Argument(help="The description, in quotes.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many crops to show.")] = 10,
    model: Annotated[
        str | None,
        typer.Option(help="A run, a checkpoint, or a pretrained CLIP; without it, the newest finished run."),
    ] = None,
    rerank: Rerank = None,
    queries: Annotated[Path | None, typer.Option(help="A text file with a description a line.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the crops to this PNG file.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the contact sheet in the system's viewer.")] = False,
    json: Json = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print bare paths, one a line.")] = False,
    device: Device = None,
) -> None:
    """Rank a folder of person crops by a description.

    tiprctl query "woman in red coat" --gallery crops/
    tiprctl query "a man with a backpack" --gallery crops/ --open
    tiprctl query "red coat" --gallery crops/ --plain --top 3 | xargs ls -l
    tiprctl query --queries sentences.txt --gallery crops/ --json
    tiprctl query "red coat" --gallery crops/ --model ViT-B-16/openai
    tiprctl query "red coat" --gallery crops/ --model runs/scvd --rerank 50

    Crops are embedded once: later queries embed only what is new or changed.
    """
    if json and plain:
        raise UsageError("Two forms of output at once", where="--json --plain", remedy="Choose one of them.")
    sentences = _sentences(sentence, queries)
    sheet = _sheet_file(sheet, show, gallery)

    from tiprctl.gallery.embed import list_images
    from tiprctl.gallery.search import search
    from tiprctl.gallery.sheet import check_sheet

    listing = list_images(gallery)
    if sheet:
        check_sheet(sheet, len(sentences) * min(top, len(listing.images)))
    if rerank is not None:
        from tiprctl.reranking import check_source

        check_source(model)
    embedder = _load_embedder(model, device)
    render.note(f"Model: {embedder.description}")
    warn_of_long(sentences, embedder.tokenizer)
    embedded = _read_gallery(listing, embedder)
    hits = search(embedder.embed_texts(sentences), embedded.vectors, max(top, rerank or 0))
    reranking = None
    if rerank is not None:
        hits, reranking = _rerank(embedder, sentences, embedded, hits, rerank)
    results = _results(sentences, embedded, hits, reranking, top)
    _print(results, embedded, embedder.description, reranking, json, plain)
    if sheet:
        _write_sheet(sheet, results, show)


def _sentences(sentence: str | None, queries: Path | None) -> list[str]:
    """The descriptions to rank by: the one given, or the lines of the file."""
    if (sentence is None) == (queries is None):
        what = "There is nothing to look for" if sentence is None else "Both a sentence and --queries are given"
        remedy = 'Give one of them: tiprctl query "woman in red coat" --gallery DIR, or --queries FILE.'
        raise UsageError(what, remedy=remedy)
    if queries is None:
        if not sentence.strip():
            raise UsageError("The sentence is empty", remedy='Describe a person: "woman in red coat".')
        return [sentence.strip()]
    try:
        lines = queries.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError("The file of queries is not UTF-8", where=queries, remedy="Save it as UTF-8.") from error
    except OSError as error:
        what = f"The file of queries cannot be read: {error.strerror}"
        raise InputError(what, where=queries, remedy="Name a text file with a description a line.") from error
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise InputError("The file of queries is empty", where=queries, remedy="Write a description a line.")
    return sentences


def _sheet_file(sheet: Path | None, show: bool, gallery: Path) -> Path | None:
    """Where the contact sheet goes; None when none is asked for. `--open` alone puts it in the cache."""
    if sheet is None:
        if not show:
            return None
        from tiprctl.gallery.cache import cache_folder

        return cache_folder() / "sheet.png"
    if sheet.suffix.lower() != ".png" or sheet.is_dir():
        raise UsageError("The contact sheet is a PNG file", where=sheet, remedy="Name a file that ends in .png.")
    if sheet.resolve().is_relative_to(gallery.resolve()):
        raise UsageError(
            "The contact sheet would lie in the gallery and be ranked with it",
            where=sheet,
            remedy="Name a file outside the gallery.",
        )
    return sheet


def _load_embedder(model: str | None, device: str | None) -> Embedder:
    from tiprctl.precision import find_device
    from tiprctl.sources import load_embedder

    return load_embedder(model, device=find_device(device))


def _read_gallery(listing: Listing, embedder: VectorModel) -> Gallery:
    from tiprctl.gallery.index import EmbeddingInterrupted, read_gallery

    try:
        gallery = read_gallery(
            listing, embedder, progress=lambda total: render.progress("Embedding", total=total, unit="images")
        )
    except EmbeddingInterrupted as interrupt:
        render.warning(f"{interrupt}; the same command goes on from there.")
        raise
    for note in gallery.notes:
        render.warning(note)
    if gallery.unreadable:
        named = ", ".join(f"{one.path} ({one.reason})" for one in gallery.unreadable[:_NAMED])
        more = len(gallery.unreadable) - _NAMED
        render.warning(
            f"{len(gallery.unreadable)} unreadable, skipped: {named}" + (f" and {more} more" if more > 0 else "")
        )
    render.note(f"Gallery: {len(gallery.paths):,} images, {gallery.embedded:,} of them embedded now")
    return gallery


def _rerank(
    embedder: Embedder, sentences: Sequence[str], gallery: Gallery, hits: Hits, first: int
) -> tuple[Hits, Reranking]:
    """The hits with the first of each sentence in their new order, and what that cost, which is told."""
    from tiprctl.reranking import rerank_hits

    hits, reranking = rerank_hits(
        embedder, sentences, gallery.root, gallery.paths, hits, first, progress=render.progress
    )
    note_reranking(reranking, len(gallery.paths))
    render.note(f"The scores of the first {reranking.first:,} are those of pairs; below the line there, cosines.")
    return hits, reranking


def _results(
    sentences: Sequence[str], gallery: Gallery, hits: Hits, reranking: Reranking | None, top: int
) -> list[dict[str, Any]]:
    """The first `top` hits of each sentence; those whose scores are not cosines are marked."""
    return [
        {
            "query": sentence,
            "hits": [
                {
                    "rank": rank,
                    "score": float(score),
                    "path": str(gallery.root / gallery.paths[index]),
                    **(reranking.mark(rank) if reranking else {}),
                }
                for rank, (index, score) in enumerate(zip(indices[:top], scores[:top]), 1)
            ],
        }
        for sentence, indices, scores in zip(sentences, hits.indices, hits.scores)
    ]


def _print(
    results: Sequence[dict[str, Any]],
    gallery: Gallery,
    model: str,
    reranking: Reranking | None,
    json: bool,
    plain: bool,
) -> None:
    if json:
        skipped = [{"path": one.path, "reason": one.reason} for one in gallery.unreadable]
        document = {"model": model, "gallery": str(gallery.root), "images": len(gallery.paths), "skipped": skipped}
        again = reranking.describe() if reranking else {}
        render.result_json({**document, **again, "results": results})
        return
    for result in results:
        if plain:
            for hit in result["hits"]:
                render.result_line(hit["path"])
        else:
            columns = [("rank", "right"), ("score", "right"), "path"]
            table = render.table(result["query"], columns, _rows(result["hits"], reranked=True))
            render.extend_table(table, None, _rows(result["hits"], reranked=False))
            render.result_table(table)


def _rows(hits: Sequence[dict[str, Any]], *, reranked: bool) -> list[tuple[Any, ...]]:
    """The cells of those hits that were ranked again, or of the others."""
    return [(hit["rank"], f"{hit['score']:.3f}", hit["path"]) for hit in hits if hit.get("reranked", False) is reranked]


def _write_sheet(target: Path, results: Sequence[dict[str, Any]], show: bool) -> None:
    from tiprctl.gallery.sheet import Block, Crop, write_sheet

    blocks = [
        Block(result["query"], [Crop(Path(hit["path"]), hit["rank"], hit["score"]) for hit in result["hits"]])
        for result in results
    ]
    write_sheet(target, blocks)
    render.note(f"Contact sheet: {target}")
    if show and typer.launch(str(target)) != 0:
        render.warning(f"No viewer could be opened; the contact sheet is {target}")

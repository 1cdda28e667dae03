"""`tiprctl query`: rank a folder of person crops, or an indexed gallery, by what is looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import hits, render, reranked
from tiprctl.cli.opening import Opened, open_gallery
from tiprctl.cli.options import Device, Json, Rerank
from tiprctl.cli.sentences import warn_of_long
from tiprctl.errors import UsageError

if TYPE_CHECKING:
    from tiprctl.gallery.searching.answer import Hit, Request
    from tiprctl.gallery.searching.wish import Wish
    from tiprctl.reranking import Reranking
    from tiprctl.vector_model import VectorModel


def query(
    gallery: Annotated[str, typer.Option(help="Folder of person crops, or an indexed gallery; also s3://….")],
    sentence: Annotated[str | None, typer.Argument(help="The description, in quotes.")] = None,
    like: Annotated[
        list[str] | None, typer.Option(metavar="IMAGE", help="Find what looks like this image; repeatable.")
    ] = None,
    plus: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What is to be there too; repeatable.")] = None,
    minus: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What is not to be there; repeatable.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="A file with a description a line; of .csv and .jsonl the column query.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many crops to show.")] = 10,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Only crops of which this holds, as in camera = 'cam_a'.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Only crops whose cosine with the query is at least this.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH|GLOB", help="Leave out a crop, a folder, or all that match; repeatable."),
    ] = None,
    group_similar: Annotated[
        bool, typer.Option("--group-similar", help="Fold near-duplicates into the best of them.")
    ] = False,
    similar_from: Annotated[
        float | None,
        typer.Option(
            min=-1, max=1, help="Fold crops from this cosine on; implies --group-similar.", show_default="0.98"
        ),
    ] = None,
    rerank: Rerank = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A run, a checkpoint, an export or a pretrained CLIP.",
            show_default="the gallery's own, else the newest finished run",
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="In a folder, follow links that lead out of it.")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the crops to this PNG file.")] = None,
    open_sheet: Annotated[bool, typer.Option("--open", help="Open the contact sheet in the system's viewer.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show the crops in the terminal.")] = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE|-", help="Write the hits as CSV; - is stdout.")] = None,
    json: Json = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print bare paths, one a line.")] = False,
    device: Device = None,
) -> None:
    """Rank a folder of person crops, or an indexed gallery, by what is looked for.

    tiprctl query "woman in red coat" --gallery crops/
    tiprctl query "a man with a backpack" --gallery crops/ --open
    tiprctl query "red coat" --gallery crops/ --plain --top 3 | xargs ls -l
    tiprctl query --like seen.jpg --plus "a black backpack^0.5" --minus hat --gallery crops/
    tiprctl query "red coat" --gallery g.lance --where "camera = 'cam_a' and time > '2026-11-01'"
    tiprctl query "red coat" --gallery crops/ --exclude "crops/old/*" --min-score 0.3 --group-similar
    tiprctl query --queries sentences.txt --gallery crops/ --csv found.csv
    tiprctl query "red coat" --gallery crops/ --model runs/scvd --rerank 50

    The sentence always weighs 1. So do --like, --plus and --minus, unless a weight follows: hat^0.5.
    A ^ in the sentence is text (for another weight give it as --plus), and so is one that no number follows.

    Crops of a folder are embedded once: later queries embed only what is new or changed.
    """
    hits.check_forms(json=json, plain=plain, csv=csv)
    if show:
        hits.check_pictures()
    wishes = _wishes(sentence, queries, like or [], plus or [], minus or [])
    if rerank is not None:
        reranked.check_wishes(wishes)
    sheet = _sheet_file(sheet, open_sheet, gallery)
    unwanted = _patterns(exclude or [])

    def load(source: str | None, bulk: bool) -> VectorModel:
        return _load_model(source, device, bulk=bulk, pairs=rerank is not None)

    def check_sheet(images: int) -> None:
        if sheet:
            hits.check_sheet(sheet, len(wishes) * min(top, images))

    opened = open_gallery(gallery, model, load, where=where, follow_links=follow_links, check=check_sheet)
    warn_of_long([text for wish in wishes for text in wish.texts], opened.model.tokenizer)
    request = _request(opened, max(top, rerank or 0), where, min_score, unwanted, group_similar, similar_from)
    found = _find(opened, wishes, request)
    reranking = None
    if rerank is not None:
        found, reranking = reranked.rerank(opened, wishes, found, rerank)
    results = [
        hits.result(
            wish.label, some[:top], shown=opened.shown, grouped=request.similar is not None, reranking=reranking
        )
        for wish, some in zip(wishes, found)
    ]
    _tell_of_none(opened, results, request)
    if json:
        render.result_json(_document(opened, results, reranking))
    elif plain:
        hits.print_paths(results)
    elif csv != hits.STDOUT:
        hits.print_tables(results, times=opened.folder is None)
    if csv is not None:
        hits.write_csv(results, csv)
    if show:
        hits.show_pictures(results)
    if sheet:
        hits.write_sheet(results, sheet, show=open_sheet)


def _wishes(
    sentence: str | None, queries: Path | None, like: Sequence[str], plus: Sequence[str], minus: Sequence[str]
) -> list[Wish]:
    """What is looked for: a wish for each sentence."""
    from tiprctl.gallery.searching.wish import make_wishes, read_queries

    if sentence is not None and queries is not None:
        remedy = 'Give one of them: tiprctl query "woman in red coat" --gallery DIR, or --queries FILE.'
        raise UsageError("Both a sentence and --queries are given", remedy=remedy)
    if queries is not None:
        return make_wishes(read_queries(queries), like, plus, minus)
    if sentence is not None and not sentence.strip():
        raise UsageError("The sentence is empty", remedy='Describe a person: "woman in red coat".')
    return make_wishes([] if sentence is None else [sentence.strip()], like, plus, minus)


def _sheet_file(sheet: Path | None, show: bool, gallery: str) -> Path | None:
    """Where the contact sheet goes; None when none is asked for. `--open` alone puts it in the cache."""
    if sheet is None:
        if not show:
            return None
        from tiprctl.gallery.cache import cache_folder

        return cache_folder() / "sheet.png"
    if sheet.suffix.lower() != ".png" or sheet.is_dir():
        raise UsageError("The contact sheet is a PNG file", where=sheet, remedy="Name a file that ends in .png.")
    if sheet.resolve().is_relative_to(Path(gallery).resolve()):
        raise UsageError(
            "The contact sheet would lie in the gallery and be ranked with it",
            where=sheet,
            remedy="Name a file outside the gallery.",
        )
    return sheet


def _patterns(exclude: Sequence[str]) -> list[str]:
    if not exclude:
        return []
    from tiprctl.gallery.searching.answer import patterns

    return [pattern for given in exclude for pattern in patterns(given)]


def _load_model(source: str | None, device: str | None, *, bulk: bool, pairs: bool) -> VectorModel:
    """The model of that name; where it is to look at pairs the encoder itself, if its head can."""
    if not pairs:
        from tiprctl.vector_model import load_vector_model

        return load_vector_model(source, device=device, bulk=bulk, tell=render.warning)
    from tiprctl.precision import find_device
    from tiprctl.reranking import check_source
    from tiprctl.sources import load_embedder

    check_source(source)
    return load_embedder(source, device=find_device(device))


def _request(
    opened: Opened,
    top: int,
    where: str | None,
    min_score: float | None,
    unwanted: Sequence[str],
    group_similar: bool,
    similar_from: float | None,
) -> Request:
    from tiprctl.gallery.searching.answer import Request
    from tiprctl.gallery.searching.similar import SIMILAR

    similar = similar_from if similar_from is not None else SIMILAR if group_similar else None
    return Request(top, where, min_score, tuple(map(opened.stored, unwanted)), similar)


def _find(opened: Opened, wishes: Sequence[Wish], request: Request) -> list[list[Hit]]:
    from tiprctl.gallery.searching.answer import answer
    from tiprctl.gallery.searching.wish import wish_vectors

    answers = answer(opened.store, wish_vectors(wishes, opened.model), request)
    for note in dict.fromkeys(one.note for one in answers if one.note):
        render.warning(note)
    return [one.hits for one in answers]


def _tell_of_none(opened: Opened, results: Sequence[dict[str, Any]], request: Request) -> None:
    """Say that there are no hits, which may look like a fault, and what may have kept them out."""
    without = [result["query"] for result in results if not result["hits"]]
    if without:
        filters = {"--where": request.where, "--min-score": request.min_score, "--exclude": request.exclude or None}
        given = ", ".join(name for name, value in filters.items() if value is not None)
        reason = f"none of its {len(opened.store):,} images passes {given}" if len(opened.store) else "it is empty"
        more = f" and {len(without) - 1:,} more" if len(without) > 1 else ""
        render.warning(f"The gallery has no crop for {without[0]!r}{more}: {reason}.")


def _document(opened: Opened, results: Sequence[dict[str, Any]], reranking: Reranking | None) -> dict[str, Any]:
    skipped = [{"path": one.path, "reason": one.reason} for one in opened.skipped]
    document = {"model": opened.model.description, "gallery": opened.name, "images": len(opened.store)}
    again = reranking.describe() if reranking else {}
    return {**document, "skipped": skipped, **again, "results": results}

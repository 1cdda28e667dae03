"""`tiprctl augment`: prune the training captions to their nouns, adjectives and pronouns, and tell their phrases."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Data, Json, Root
from tiprctl.cores import cores

if TYPE_CHECKING:
    from tiprctl.data.manifest import Manifest
    from tiprctl.data.pruning import PrunedCaptions


class Tagger(StrEnum):
    hanta = "hanta"
    textblob = "textblob"


def augment(
    data: Data = None,
    preview: Annotated[
        int, typer.Option(min=0, help="How many captions to show, with what they are pruned to and their phrases.")
    ] = 5,
    tagger: Annotated[
        Tagger, typer.Option(help="What tells nouns from verbs; textblob is faster, weaker and an extra.")
    ] = Tagger.hanta,
    root: Root = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many processes tag at once.", show_default="the cores")
    ] = None,
    json: Json = False,
) -> None:
    """Prune each training caption to its nouns, adjectives and pronouns, once, for recipes that read them or phrases.

    \b
    tiprctl augment cuhk-pedes --preview 5
    tiprctl augment --tagger textblob --workers 4

    Writes captions_pruned.parquet beside the manifest. Stopped with Ctrl-C, it goes on from there the next time.
    """
    from tiprctl.data.manifest import find_manifest
    from tiprctl.data.pruning import prune_captions

    manifest = find_manifest(data, root)
    view = _View()
    try:
        done = prune_captions(manifest, tagger.value, workers=workers or cores(), progress=view.progress)
    except KeyboardInterrupt:
        render.warning("What was tagged is saved; the same command goes on from there.")
        raise
    captions = manifest.split("train").captions
    document = {**_summary(manifest, captions, done), "tagged_now": view.tagged or 0}
    document["examples"] = _examples(captions, done, preview)
    if json:
        render.result_json(document)
    else:
        _print(manifest.title, document, written=view.tagged is not None)


class _View:
    """Shows the tagging and remembers how many captions it was left to do; None where the file stood already."""

    tagged: int | None = None

    def progress(self, total: int, done: int) -> AbstractContextManager[Any]:
        if done:
            render.note(f"Going on after {done:,} captions that are tagged already.")
        self.tagged = total - done
        return render.progress("Tagging", total, "captions", done)


def _summary(manifest: Manifest, captions: list[str], done: PrunedCaptions) -> dict[str, Any]:
    """Where the file is, what made it, and how much it keeps; words are what white space divides.

    `left_whole` counts the captions without a word to keep, which stay as they are; `without_phrase` those without a
    noun, which are read whole as their own one phrase.
    """
    from tiprctl.data.pruning import FILE_NAME
    from tiprctl.data.tagging import NOUN, OTHER

    before, after = (sum(len(text.split()) for text in texts) for texts in (captions, done.pruned))
    return {
        "dataset": manifest.dataset,
        "file": str(manifest.root / FILE_NAME),
        "tagger": done.origin.tagger,
        "version": done.origin.version,
        "captions": len(captions),
        "words_kept": after / before,
        "left_whole": sum(set(classes) <= {OTHER} for classes in done.classes),
        "without_phrase": sum(NOUN not in classes for classes in done.classes),
    }


def _examples(captions: list[str], done: PrunedCaptions, count: int) -> list[dict[str, Any]]:
    """So many captions, from all over the split, before and after, with the phrases that a recipe may read."""
    from tiprctl.data.phrases import noun_phrases

    every = max(1, len(captions) // max(1, count))
    chosen = list(zip(captions, done.pruned, done.classes))[::every][:count]
    return [
        {"caption": caption, "pruned": pruned, "phrases": noun_phrases(caption, classes)}
        for caption, pruned, classes in chosen
    ]


def _print(title: str, document: dict[str, Any], *, written: bool) -> None:
    if document["examples"]:
        rows = [(each["caption"], each["pruned"], ", ".join(each["phrases"])) for each in document["examples"]]
        render.result_table(render.table(title, ("caption", "pruned", "phrases"), rows))
    captions, whole, bare = (f"{document[key]:,}" for key in ("captions", "left_whole", "without_phrase"))
    rows = [(captions, f"{document['words_kept']:.1%}", whole, bare)]
    headings = [(heading, "right") for heading in ("captions", "words kept", "left whole", "without a noun phrase")]
    render.result_table(render.table(None, headings, rows))
    what = "Wrote" if written else "There already is"
    render.note(f"{what} {document['file']}, made with {document['tagger']} {document['version']}.")

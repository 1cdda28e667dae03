"""`tiprctl prepare`: check a data set on disk, or draw the built-in one, and write its manifest."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Json, Root, Seed, Workers
from tiprctl.cores import cores
from tiprctl.data.catalog import DATA_SETS, data_set, locate, places
from tiprctl.data.folder import FOLDER
from tiprctl.data.records import DataSet, Record
from tiprctl.data.synth_pedes import SYNTH_PEDES, Drawing
from tiprctl.errors import CheckError, ImageError, InputError, TiprError, UsageError
from tiprctl.files import check_writable, spell_bytes

if TYPE_CHECKING:
    from tiprctl.data.checks import Finding, Report
    from tiprctl.data.manifest import Manifest

FIRST = 5
"""How many faulty images or identities a message names."""

RANKERS = {
    "oracle_all": "an oracle that knows every attribute a caption mentions",
    "oracle_main": "an oracle that knows gender and main colours alone",
    "baseline": "colour words against mean colours, nothing learnt",
}


def prepare(
    name: Annotated[str, typer.Argument(help=f"Data set: {', '.join(DATA_SETS)}.", show_default=False)],
    root: Root = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", help="Annotation file, where it is not in the data set's folder.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 4 on any fault. Sizes unlike the published are none.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out images that are missing or damaged; keep the rest.")
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache-images",
            help="Also keep all images decoded, at the size that the recipe reads, for training and evaluation.",
        ),
    ] = False,
    cache_size: Annotated[
        str | None,
        typer.Option("--cache-size", metavar="HxW", help="The same at another size.", show_default="the recipe's"),
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
    ids: Annotated[
        int | None, typer.Option(min=0, help="synth-pedes: identities in train.", show_default=str(Drawing.ids))
    ] = None,
    val_ids: Annotated[
        int | None, typer.Option(min=0, help="synth-pedes: identities in val.", show_default=str(Drawing.val_ids))
    ] = None,
    test_ids: Annotated[
        int | None, typer.Option(min=0, help="synth-pedes: identities in test.", show_default=str(Drawing.test_ids))
    ] = None,
    seed: Seed = None,
    hard: Annotated[
        bool,
        typer.Option(
            "--hard", help="synth-pedes: the hard one instead, with look-alikes and longer, noisier captions."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="synth-pedes: draw again what stands already.")] = False,
    report: Annotated[bool, typer.Option("--report", help="synth-pedes: measure how hard the test split is.")] = False,
) -> None:
    """Check a data set on disk, or draw the built-in one, and write its manifest beside it.

    \b
    tiprctl prepare synth-pedes                   draw the built-in data set
    tiprctl prepare synth-pedes --hard --report   draw look-alikes beside it
    tiprctl prepare cuhk-pedes --root data/CUHK   check it, write its manifest
    tiprctl prepare rstpreid --check              check it, write nothing
    tiprctl prepare cuhk-pedes --cache-images     keep its images decoded as well
    tiprctl prepare folder --root crops/ --captions crops.csv

    The table of `folder` is CSV or JSON lines with columns path, caption and, if you like, pid and split.

    In the hard synth-pedes, persons come in families whose members differ in one
    colour or thing alone; captions tell nearly all that is seen, in about 45 words
    instead of 30, and one in seven names a wrong colour instead of one in 25. Its
    folder is its name: `tiprctl train synth-pedes-hard`.

    Decoded images lie in one file beside the manifest. Training and evaluation read
    it by themselves while it fits the model and the images; stopped, it goes on
    where it was when asked for again. Of a data set that is prepared already, this
    caches the images and checks nothing again.
    """
    dataset = data_set(name)
    size = _cache_size(cache, cache_size, dataset)
    if check and size:
        raise UsageError("--check writes nothing, and a cache of images is written", remedy="Leave out one of them.")
    given = {"ids": ids, "val_ids": val_ids, "test_ids": test_ids, "seed": seed}
    threads = cores() if workers is None else max(1, workers)
    if report and test_ids == 0:
        raise UsageError("--report measures the test split, and --test-ids 0 leaves it empty", remedy="Leave out one.")
    asked_more = (
        captions or allow_missing or hard or force or report or any(value is not None for value in given.values())
    )
    if size and not asked_more and (standing := _standing(dataset, root)):
        _cache_standing(dataset, standing, size, threads, as_json=as_json)
        return
    if dataset is SYNTH_PEDES:
        if check:
            _refuse({**given, "force": force or None}, "is for drawing; --check takes synth-pedes as it stands")
        asked = {key: value for key, value in given.items() if value is not None}
        drawing = Drawing(**asked, hard=hard)
        dataset = drawing.dataset
        root = _draw(root, drawing, workers=threads, force=force, check=check)
    else:
        reason = f"belongs to synth-pedes; {dataset.name} is read as it lies on disk"
        _refuse({**given, "force": force or None, "hard": hard or None, "report": report or None}, reason)
    folder, annotation = locate(dataset, root, captions)
    records = dataset.read(annotation)
    if not check:
        _check_writable(folder)
    found = _check(folder, records, threads)
    failure = _failure(found, folder, len(records), check=check, allow_missing=allow_missing)
    manifest = None if check or failure else _write(dataset, folder, records, found)
    difficulty = _difficulty(folder) if report else None
    if not as_json:
        _print(dataset, found, manifest, difficulty)
    images = None
    try:
        images = _cache_images(manifest, size, threads) if manifest and size else None
    finally:
        if as_json:
            render.result_json(_document(dataset, folder, found, manifest, difficulty, images))
    if failure:
        raise failure


def _cache_size(cache: bool, given: str | None, dataset: DataSet) -> tuple[int, int] | None:
    """The height and width of the images to keep decoded, if any."""
    from tiprctl.recipes import find_recipe

    if given is None:
        return find_recipe(None, dataset.name).model.image_size if cache else None
    if not (size := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", given)):
        raise UsageError(
            f"--cache-size takes height and width in pixels, not {given!r}", remedy="Write them as in 384x128."
        )
    return int(size[1]), int(size[2])


def _standing(dataset: DataSet, root: Path | None) -> Manifest | None:
    """The data set as it was prepared before, if it was."""
    from tiprctl.data.manifest import standing_manifest

    found = (standing_manifest(dataset.name, folder) for folder in places(dataset, root))
    return next((manifest for manifest in found if manifest), None)


def _cache_standing(
    dataset: DataSet, manifest: Manifest, size: tuple[int, int], workers: int, *, as_json: bool
) -> None:
    """Cache the images of a data set that is prepared, however it was, and leave its manifest alone."""
    from tiprctl.data.manifest import FILE_NAME

    render.note(
        f"{manifest.root / FILE_NAME} stands, {_extent(manifest)}: nothing is checked again. "
        "To check, prepare it without a cache of images."
    )
    images = _cache_images(manifest, size, workers)
    if as_json:
        render.result_json(_document(dataset, manifest.root, None, manifest, None, images))


def _draw(root: Path | None, drawing: Drawing, *, workers: int, force: bool, check: bool) -> Path:
    """Draw synth-pedes where it does not stand yet, unless only a check was asked for."""
    from tiprctl.data.synth_pedes.drawing import draw, drawing_folder

    folder = drawing_folder(root, drawing.dataset)
    if check:
        return folder
    with render.progress("drawing", drawing.images, "images") as advance:
        drawn = draw(folder, drawing, force=force, workers=workers, on_image=advance)
    render.note(f"Drew synth-pedes in {folder}." if drawn else f"The same synth-pedes stands in {folder} already.")
    return folder


def _refuse(given: dict[str, Any], reason: str) -> None:
    """Options that would otherwise be ignored without a word."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"--{option.replace('_', '-')} {reason}", remedy="Leave it out.")


def _check_writable(folder: Path) -> None:
    """Before all images are looked at, which takes its time."""
    from tiprctl.data.manifest import FILE_NAME

    check_writable(folder / FILE_NAME)


def _check(folder: Path, records: list[Record], workers: int) -> Report:
    from tiprctl.data.checks import check

    with render.progress("checking", len({record.path for record in records}), "images") as advance:
        return check(folder, records, workers=workers, on_image=advance)


def _failure(found: Report, folder: Path, images: int, *, check: bool, allow_missing: bool) -> TiprError | None:
    """The error that the findings amount to, if any: everything counts under --check, else only lost images."""
    from tiprctl.data.checks import UNUSABLE

    unusable = [] if allow_missing else found.of(*UNUSABLE)
    others = [finding for finding in found.findings if finding.fault not in UNUSABLE]
    if check and (unusable or others):
        return CheckError(f"The check found {_plural(len(unusable) + len(others), 'fault')}", where=folder)
    if unusable and not check:
        return InputError(
            f"{len(unusable):,} of {_plural(images, 'image')} missing or damaged: {_first(unusable)}",
            where=folder,
            remedy="Copy them there, or leave them out with --allow-missing.",
        )
    return None


def _write(dataset: DataSet, folder: Path, records: list[Record], found: Report) -> Manifest:
    from tiprctl.data.checks import UNUSABLE
    from tiprctl.data.manifest import build_manifest, write_manifest

    lost = {finding.subject for finding in found.of(*UNUSABLE)}
    manifest = build_manifest(dataset.name, folder, (record for record in records if record.path not in lost))
    if manifest.captions.empty:
        raise InputError("No image with a caption is left", where=folder, remedy="Check the folder and its captions.")
    write_manifest(manifest)
    return manifest


def _cache_images(manifest: Manifest, size: tuple[int, int], workers: int) -> Path:
    from tiprctl.data.image_cache import CachingInterrupted, cache_bytes, cache_images, other_caches

    pixels = f"{size[0]}x{size[1]}"

    def progress(total: int, done: int) -> AbstractContextManager[Any]:
        room = spell_bytes(cache_bytes(total, size))
        render.note(f"{_plural(total, 'image')} of {pixels} pixels will take {room} in {manifest.root}.")
        return render.progress("caching", total, "images", done, told=True)

    try:
        file = cache_images(manifest, size, workers=workers, progress=progress)
    except CachingInterrupted as interrupt:
        render.warning(f"{interrupt}; the same command goes on from there.")
        raise
    except ImageError as error:
        remedy = "Copy it again from its source, or prepare without it, with --allow-missing; what is cached is kept."
        raise ImageError(error.what, where=error.where, remedy=remedy) from error
    render.note(f"The images are decoded in {file}: {spell_bytes(file.stat().st_size)}.")
    for other, room in other_caches(manifest.root, size):
        render.note(f"Not needed for training at {pixels}: remove {other} to free {spell_bytes(room)}.")
    return file


def _difficulty(folder: Path) -> dict[str, Any]:
    from tiprctl.data.synth_pedes import oracle

    return asdict(oracle.report(folder))


def _document(
    dataset: DataSet,
    folder: Path,
    found: Report | None,
    manifest: Manifest | None,
    difficulty: dict[str, Any] | None,
    images: Path | None,
) -> dict[str, Any]:
    """What `--json` prints; `findings` is null where nothing was checked."""
    from tiprctl.data.manifest import FILE_NAME

    sizes = found.sizes if found else manifest.sizes
    findings = found and [{**asdict(finding), "fault": finding.fault.value} for finding in found.findings]

    return {
        "dataset": dataset.name,
        "root": str(folder),
        "manifest": None if manifest is None else str(folder / FILE_NAME),
        "fingerprint": None if manifest is None else manifest.fingerprint,
        "image_cache": None if images is None else str(images),
        "splits": {split: asdict(size) for split, size in sizes.items()},
        "published": {split: asdict(size) for split, size in dataset.published.items()},
        "findings": findings,
        "report": difficulty,
    }


def _print(dataset: DataSet, found: Report, manifest: Manifest | None, difficulty: dict[str, Any] | None) -> None:
    from tiprctl.data.checks import Fault, differs_from_published
    from tiprctl.data.manifest import FILE_NAME

    columns = ("split", *((heading, "right") for heading in ("identities", "images", "captions")), "what is wrong")
    rows = [
        (split, *(f"{number:,}" for number in asdict(size).values()), _wrong(found, split))
        for split, size in found.sizes.items()
    ]
    render.result_table(render.table(dataset.name, columns, rows))
    if difficulty:
        rows = [(who, f"{difficulty[key]:.2f}") for key, who in RANKERS.items()]
        render.result_table(render.table(f"how hard {difficulty['split']} is", ("who ranks", ("R@1", "right")), rows))
    for fault in Fault:
        if findings := found.of(fault):
            render.warning(f"{_plural(len(findings), fault.value)}: {_first(findings)}")
    for sentence in differs_from_published(found.sizes, dataset.published):
        render.note(sentence)
    if dataset is FOLDER and set(found.sizes) == {"test"}:
        render.note("Everything is in the split test. To train, give the table a column split: train, val or test.")
    if manifest is not None:
        render.note(f"Wrote {manifest.root / FILE_NAME}: {_extent(manifest)}.")


def _extent(manifest: Manifest) -> str:
    sizes = manifest.sizes.values()
    captions, images = (sum(getattr(size, noun) for size in sizes) for noun in ("captions", "images"))
    return f"{_plural(captions, 'caption')} of {_plural(images, 'image')}"


def _wrong(found: Report, split: str) -> str:
    faults = {fault: count for (where, fault), count in found.counts.items() if where == split}
    return ", ".join(_plural(count, fault.value) for fault, count in faults.items()) or "nothing"


def _first(findings: list[Finding]) -> str:
    named = "; ".join(f"{finding.subject} ({finding.detail})" for finding in findings[:FIRST])
    rest = len(findings) - FIRST
    return f"{named}; and {rest:,} more (--json lists all)" if rest > 0 else named


def _plural(count: int, noun: str) -> str:
    """A number with its noun: 1 image, 2 images, 3 identities."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") else f"{count:,} {noun}s"

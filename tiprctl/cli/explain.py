"""`tiprctl explain`: an image restored from a part of it and a description, and which patches look at each word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Device, Json, Seed
from tiprctl.cli.sentences import warn_of_long
from tiprctl.errors import UsageError

if TYPE_CHECKING:
    from tiprctl.explanation.restoration import Explanation, Restorer


def explain(
    image: Annotated[Path, typer.Option(help="The crop of a person.")],
    text: Annotated[str, typer.Option(help="Its description, in quotes.")],
    versus: Annotated[str | None, typer.Option(help="Another description, to compare with.")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="A run or a checkpoint trained with tir; without it, the newest finished run."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The picture, a PNG file.")] = Path("explanation.png"),
    seed: Seed = 0,
    json: Json = False,
    device: Device = None,
) -> None:
    """Hide most of an image, restore it with a description, and map its words.

    \b
    tiprctl explain --image crop.jpg --text "a woman in a red coat"
    tiprctl explain --image crop.jpg --text "a red coat" --versus "a green coat"
    tiprctl explain --image crop.jpg --text "a red coat" --seed 7 --output 7.png

    The picture holds the original, the grey part of it that the model sees, what
    it restores with each description and with none, and a heat map for each word.
    The seed chooses what is hidden. The model must have learnt to restore images:
    `tiprctl train --aux tir`.
    """
    texts = [_filled("--text", text), *([] if versus is None else [_filled("--versus", versus)]), ""]
    _check_output(output, image)
    restorer = _load_restorer(run, device)
    render.note(f"Model: {restorer.description}")
    warn_of_long(texts, restorer.encoder.tokenizer)

    from tiprctl.canvas import save_png
    from tiprctl.explanation.picture import draw_explanation

    explanation = restorer.explain(image, texts, seed=seed)
    save_png(draw_explanation(explanation), output)
    _print(
        explanation, {"model": restorer.description, "image": str(image), "seed": seed, "picture": str(output)}, json
    )
    render.note(f"Picture: {output}")


def _filled(option: str, text: str) -> str:
    if not text.strip():
        raise UsageError("The description is empty", where=option, remedy='Describe a person: "woman in red coat".')
    return text.strip()


def _check_output(output: Path, image: Path) -> None:
    """Refuse a file that the picture cannot be written to, or that it must not replace."""
    from tiprctl.files import check_writable

    if output.suffix.lower() != ".png" or output.is_dir():
        raise UsageError("The picture is a PNG file", where=output, remedy="Name a file that ends in .png.")
    if output.resolve() == image.resolve():
        raise UsageError("The picture would replace the image", where=output, remedy="Name another --output.")
    check_writable(output)


def _load_restorer(run: str | None, device: str | None) -> Restorer:
    from tiprctl.explanation.restoration import load_restorer
    from tiprctl.precision import find_device

    return load_restorer(run, device=find_device(device))


def _print(explanation: Explanation, about: dict[str, Any], json: bool) -> None:
    """The squared error of the hidden patches (normalised pixels) with each text.

    In JSON also how the patches look at each word.
    """
    hidden, patches = int(explanation.hidden.sum()), explanation.hidden.size
    if json:
        restored = [{"text": one.text, "error": one.error} for one in explanation.restored]
        words = [{"word": one.word, "share": one.share, "weights": one.weights.tolist()} for one in explanation.words]
        render.result_json({**about, "patches": patches, "hidden": hidden, "restored": restored, "words": words})
        return
    title = f"{hidden} of {patches} patches hidden"
    rows = [(one.text or "(no text)", f"{one.error:.4f}") for one in explanation.restored]
    render.result_table(render.table(title, ["restored with", ("mean squared error", "right")], rows))

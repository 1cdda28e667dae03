"""`tiprctl demo`: the whole way on the built-in data, each step shown as the command that a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tiprctl.cli import render
from tiprctl.data.catalog import data_home
from tiprctl.errors import TiprError
from tiprctl.files import write_text
from tiprctl.interrupt import stop_signal

INTERRUPTED = 130
SENTENCES = (
    "woman in red coat",
    "a man in an orange hoodie and navy trousers with a burgundy backpack",
    "a woman wearing a grey sweater and a yellow skirt, with a pink handbag",
)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the queries and the contact sheet.")] = Path("demo"),
) -> None:
    """Prepare the built-in data, train on it, measure the model, and search it; about six minutes on two cores.

    \b
    tiprctl demo
    """
    queries, sheet = output / "queries.txt", output / "sheet.png"
    write_text(queries, "\n".join(SENTENCES) + "\n")
    gallery = ["--gallery", str(data_home() / "synth-pedes" / "imgs" / "test")]
    steps = [
        ["prepare", "synth-pedes"],
        ["train", "synth-pedes"],
        ["eval", "runs/latest"],
        *(["query", sentence, *gallery, "--top", "3"] for sentence in SENTENCES),
        ["query", "--queries", str(queries), *gallery, "--top", "8", "--sheet", str(sheet)],
    ]
    for step in steps:
        render.heading("$ " + shlex.join(["tiprctl", *step]))
        # A step decides itself what Ctrl-C means (training saves first), so wait for it.
        with stop_signal() as stopped:
            code = subprocess.Popen([sys.executable, "-m", "tiprctl", *step]).wait()
        if stopped or code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            failure = TiprError(
                f"The step ended with exit code {code}",
                where=shlex.join(["tiprctl", *step]),
                remedy="Its own message above says why; run the command again with -v for more.",
            )
            failure.exit_code = code
            raise failure
    render.note(f"The contact sheet: {sheet}")

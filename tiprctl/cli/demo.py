"""`tiprctl demo`: the whole way on the built-in data, each step shown as the command that a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tiprctl.cli import render
from tiprctl.errors import TiprError
from tiprctl.files import write_text

SENTENCES = (
    "woman in red coat",
    "a man in a white shirt and blue jeans with a black backpack",
    "a woman wearing a yellow top and a long black skirt",
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
    gallery = ["--gallery", str(Path("data", "synth-pedes", "imgs", "test"))]
    steps = [
        ["prepare", "synth-pedes", "--root", str(Path("data", "synth-pedes"))],
        ["train", "synth-pedes", "--root", str(Path("data", "synth-pedes"))],
        ["eval", "runs/latest"],
        *(["query", sentence, *gallery, "--top", "3"] for sentence in SENTENCES),
        ["query", "--queries", str(queries), *gallery, "--top", "8", "--sheet", str(sheet)],
    ]
    for step in steps:
        render.heading("$ " + shlex.join(["tiprctl", *step]))
        done = subprocess.run([sys.executable, "-m", "tiprctl", *step], check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode:
            raise TiprError(
                f"The step ended with exit code {done.returncode}",
                where=shlex.join(["tiprctl", *step]),
                remedy="Its own message above says why; run the command again with -v for more.",
            )
    render.note(f"The contact sheet: {sheet}")

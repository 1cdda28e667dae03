"""What every command shares: `-h`, `-v`, `-q`, and options declared once and used by several."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.errors import UsageError
from tiprctl.job import place

SHARED_SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "TIPRCTL"}

Data = Annotated[str | None, typer.Argument(help="A prepared data set; not needed when there is just one.")]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Folder of the data set, or of all data sets.", show_default="$TIPRCTL_DATA, else ./data"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …", show_default="cuda where there is one")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="How many decode images at once.", show_default="the cores")
]
Rerank = Annotated[
    int | None,
    typer.Option(
        "--rerank",
        min=1,
        metavar="K",
        help="Rank the first K images of each description again, by what its phrases find in them (recipe scvd).",
        show_default="none",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any other setting, as in triplet.margin=0.1; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of all randomness.")]


def command(function: Callable[..., None], *, alone: bool = True) -> Callable[..., None]:
    """Add the options that every command has, `-v/--verbose` and `-q/--quiet`, to a command's function.

    One that works `alone` refuses to be one of several processes that do the same.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, verbose: bool, quiet: bool, **kwargs: Any) -> None:
        render.set_verbosity(1 if verbose else -1 if quiet else 0)
        if alone:
            _refuse_company()
        function(*args, **kwargs)

    shared = {
        "verbose": (bool, typer.Option("--verbose", "-v", help="Say more; show the traceback of an error.")),
        "quiet": (bool, typer.Option("--quiet", "-q", help="Say nothing but results, warnings and errors.")),
    }
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    for name, (kind, option) in shared.items():
        hints[name] = Annotated[kind, option]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hints[name])
        )
    wrapper.__signature__ = signature.replace(parameters=parameters)
    wrapper.__annotations__ = hints
    del wrapper.__wrapped__
    return wrapper


def _refuse_company() -> None:
    processes = place().processes
    if processes > 1:
        raise UsageError(
            f"This command runs in one process, not in {processes}",
            where="torchrun",
            remedy="Run it without torchrun; tiprctl train and tiprctl eval run in several.",
        )

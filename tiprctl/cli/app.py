"""The program `tiprctl`: its commands, its shared options and its exit codes."""

from __future__ import annotations

import gc
import os
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

import tiprctl
from tiprctl.cli import render
from tiprctl.cli.options import SHARED_SETTINGS, command
from tiprctl.errors import TiprError, UsageError, unknown_name
from tiprctl.job import place

SETTINGS_FILE = Path("tiprctl.toml")

MORE_MEMORY = "End what else runs, or raise the limit: ulimit -v tells it."

UNLOADED = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
"""What the system's loader says of a library for which there is no memory."""

JOBS = ("train", "eval")
"""The commands that several processes carry out together."""

COMMANDS = {
    "prepare": "prepare:prepare",
    "augment": "augment:augment",
    "train": "train:train",
    "eval": "eval:evaluate",
    "ablate": "ablate:ablate",
    "compare": "compare:compare",
    "query": "query:query",
    "index": {
        "add": "index:add",
        "sync": "index:sync",
        "watch": "index:watch",
        "status": "index_upkeep:status",
        "remove": "index_upkeep:remove",
        "optimise": "index_upkeep:optimise",
    },
    "explain": "explain:explain",
    "export": "export:export",
    "demo": "demo:demo",
}
"""Where the functions of the commands are, below `tiprctl.cli`; loaded when they are asked for."""

GROUPS = {
    "index": """Keep a large gallery of crops searchable.

    tiprctl index add crops/ --gallery gallery.lance
    tiprctl index sync crops/ --gallery gallery.lance
    tiprctl index status --gallery gallery.lance
    tiprctl query "woman in red coat" --gallery gallery.lance
    """
}
"""What the help of a group of commands begins with."""


class Loading(Mapping[str, Any]):
    """The commands of a table such as `COMMANDS`, each loaded when it is asked for."""

    def __init__(self, table: Mapping[str, Any]):
        self._table = table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __getitem__(self, name: str) -> Any:
        place = self._table[name]
        return _command(name, place) if isinstance(place, str) else _group(name, place)


class Commands(TyperGroup):
    """A group of commands: those of a table, and those that are registered with it."""

    table: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands = ChainMap(self.commands, Loading(self.table))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        for parameter in command.params if command else []:
            # Every option has its variable; naming each in the help would bury the help.
            parameter.show_envvar = False
        return command


def _command(name: str, place: str) -> Any:
    """The command whose function is at a place as in `COMMANDS`."""
    module, _, function = place.partition(":")
    alone = typer.Typer(add_completion=False)
    alone.command(name)(command(getattr(import_module(f"tiprctl.cli.{module}"), function), alone=name not in JOBS))
    return typer.main.get_command(alone)


def _group(name: str, table: Mapping[str, str]) -> Any:
    """The group of the commands of a table, as in `tiprctl index add`."""
    kind = type(name.title(), (Commands,), {"table": table})
    group = typer.Typer(cls=kind, name=name, help=GROUPS[name], no_args_is_help=True, add_completion=False)
    group.callback()(lambda: None)
    return typer.main.get_command(group)


class Program(Commands):
    """The group of all commands: turns errors into messages and exit codes, for the shell and for tests alike."""

    table = COMMANDS

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TiprError as error:
            render.last_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            render.last_word(partial(render.note, "Interrupted."))
            raise typer.Exit(130) from interrupt
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as fault:
            if _lacks_memory(fault):
                reason = str(fault).partition("\n")[0]
                exhausted = TiprError(": ".join(filter(None, ["Out of memory", reason])), remedy=MORE_MEMORY)
                render.last_error(exhausted)
                raise typer.Exit(exhausted.exit_code) from fault
            if not _is_usage(fault):
                render.last_word(partial(render.fault, fault))
                raise typer.Exit(1) from fault
            _name_origin(fault)
            if place().processes == 1:
                raise
            render.last_word(fault.show)
            raise typer.Exit(fault.exit_code) from fault


app = typer.Typer(
    cls=Program,
    name="tiprctl",
    help="Describe a person in a sentence; get the matching crops of a gallery, ranked.",
    epilog="Each option can also be set by a variable, as in TIPRCTL_TRAIN_EPOCHS=5, or in ./tiprctl.toml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=SHARED_SETTINGS,
)


def _version(asked: bool) -> None:
    if asked:
        render.result_line(f"tiprctl {tiprctl.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    ctx.default_map = _settings(SETTINGS_FILE, ctx)


def _settings(file: Path, ctx: typer.Context) -> dict[str, dict[str, Any]]:
    """The parameters that `tiprctl.toml` in the working folder sets: a table for each command, as in [index.add].

    Raises:
        UsageError: the file is not TOML, or names a command or an option that does not exist.
    """
    if not file.is_file():
        return {}
    import tomllib

    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Not valid TOML: {error}", where=file, remedy="Mend the file or remove it.") from error
    return _tables(tables, ctx.command, ctx, file)


def _tables(tables: dict[str, Any], group: Any, ctx: typer.Context, file: Path, prefix: str = "") -> dict[str, Any]:
    """The tables of a group's commands; those of a group within it, as in [index.add], have its name in front."""
    where = f"{file}, [{prefix.removesuffix('.')}]" if prefix else file
    commands = group.list_commands(ctx)
    mapped = {}
    for name, table in tables.items():
        command = group.get_command(ctx, _known("command", name, commands, where))
        full = prefix + name
        if not isinstance(table, dict):
            raise UsageError(f"{full!r} is no table", where=file, remedy=f"Write [{full}] and its options below it.")
        if isinstance(command, TyperGroup):
            mapped[name] = _tables(table, command, ctx, file, f"{full}.")
        else:
            mapped[name] = _parameters(table, command, f"{file}, [{full}]")
    return mapped


def _parameters(table: dict[str, Any], command: Any, where: str) -> dict[str, Any]:
    """A command's table by the names of its parameters; the file has them as the flags do, with - or _."""
    names = {one.opts[0].lstrip("-").replace("-", "_"): one.name for one in command.params}
    return {names[_known("option", key.replace("-", "_"), names, where)]: value for key, value in table.items()}


def _known(kind: str, name: str, choices: Iterable[str], where: str | Path) -> str:
    if name not in choices:
        error = unknown_name(kind, name, choices)
        error.where = str(where)
        raise error
    return name


def _name_origin(fault: Exception) -> None:
    """Add to the parser's message where a bad value was set, unless it was on the command line."""
    if not isinstance(fault, typer.BadParameter) or fault.ctx is None or fault.param is None:
        return
    source = fault.ctx.get_parameter_source(fault.param.name)
    if source is not None and source.name == "ENVIRONMENT":
        fault.message += f" (set by {fault.ctx.auto_envvar_prefix}_{fault.param.name.upper()})"
    elif source is not None and source.name == "DEFAULT_MAP":
        fault.message += f" (set in {SETTINGS_FILE})"


def _lacks_memory(fault: Exception) -> bool:
    """Whether there was no memory left, also for loading a library; that has no error of its own."""
    unloaded = isinstance(fault, ImportError) and any(sign in str(fault) for sign in UNLOADED)
    if unloaded or isinstance(fault, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    # Imported only where torch is: what it calls a lack of memory can have come from nowhere else.
    from tiprctl.execution import out_of_memory

    return out_of_memory(fault)


def _is_usage(fault: Exception) -> bool:
    """Whether the parser raised it: it prints such errors itself and exits with 2."""
    return hasattr(fault, "exit_code") and hasattr(fault, "show")


def main() -> None:
    """Run the program; the console script's entry point."""
    if place().process > 0:
        render.mute()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        # The interpreter would look through all that is there for garbage, which takes a tenth of a query's time. What
        # torch loads tells of leaks without that.
        if "torch" not in sys.modules:
            gc.freeze()

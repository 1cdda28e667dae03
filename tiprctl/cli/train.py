"""`tiprctl train`: fine-tune the dual encoder, or train a small one from random weights."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Data, Device, Root, Seed, Settings, Workers
from tiprctl.errors import InputError, UsageError
from tiprctl.job import place

if TYPE_CHECKING:
    from tiprctl.config import TrainConfig
    from tiprctl.data.manifest import Manifest
    from tiprctl.progress import TrainingResult

SPEED = "Speed and memory"
"""The help's heading for what changes how a training is carried out, and results by rounding at most."""


def _lever(flags: str, help: str, metavar: str = " ") -> Any:
    """An option under `SPEED`; it may change when a run is resumed. Long negative flags leave no room for types."""
    return typer.Option(flags, help=help, metavar=metavar, show_default=False, rich_help_panel=SPEED)


class Amp(StrEnum):
    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    off = "off"


class SelectOn(StrEnum):
    val = "val"
    test = "test"
    last = "last"


@dataclass(frozen=True)
class Asked:
    """The options that make the configuration of a new run; `values`: those of single fields, None where not given."""

    recipe: str | None
    losses: str | None
    aux: str | None
    pretrained: str | None
    settings: list[str]
    values: dict[str, Any]


def train(
    ctx: typer.Context,
    data: Data = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A method: baseline, cfine, clip, irra, irra-published, scvd, sen, sen-published, sen-xl, synth.",
            show_default="the data set's own",
        ),
    ] = None,
    aux: Annotated[str | None, typer.Option(help="Objectives to add, separated by commas.")] = None,
    losses: Annotated[str | None, typer.Option(help="Objectives to take instead of the recipe's.")] = None,
    model: Annotated[str | None, typer.Option(help="Size of the encoder: tiny, ViT-B-16, ViT-B-32, ViT-L-14.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Where the weights start: openai, another open_clip tag, a run, a file, or none.")
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            help="What reads the captions: clip, bert, or bert:FOLDER, bert:NAME.", show_default="the recipe's own"
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the data; 0.5 is half of one.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2)] = None,
    lr: Annotated[float | None, typer.Option(help="Base learning rate.")] = None,
    seed: Seed = None,
    amp: Annotated[
        Amp | None,
        typer.Option(
            help="Mixed precision; auto: bf16 where the device computes it natively, else fp16 on CUDA, off on the CPU."
        ),
    ] = None,
    set: Settings = None,
    select_on: Annotated[
        SelectOn | None,
        typer.Option(help="Split that chooses the epoch.", show_default="val; last where there is none"),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run; its own settings hold.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/<data>-<recipe>-<time>")
    ] = None,
    root: Root = None,
    workers: Workers = None,
    device: Device = None,
    compile: Annotated[bool, _lever("--compile/--no-compile", "Fuse the towers' blocks with a compiler.")] = False,
    checkpoint_blocks: Annotated[
        bool,
        _lever(
            "--checkpoint-blocks/--no-checkpoint-blocks",
            "Save memory: compute the towers' blocks again going backward.",
        ),
    ] = False,
    accumulate: Annotated[
        int, _lever("--accumulate", "Save memory: take each batch in N parts; same losses.", metavar="N")
    ] = 1,
    deterministic: Annotated[
        bool,
        _lever("--deterministic/--no-deterministic", "The same bits each time, on this machine; may be slower."),
    ] = False,
) -> None:
    """Train a model on a prepared data set.

    \b
    tiprctl train
    tiprctl train cuhk-pedes --recipe sen
    tiprctl train cuhk-pedes --aux tir,triplet --set triplet.margin=0.1
    tiprctl train cuhk-pedes --aux mlm --pretrained runs/latest
    tiprctl train cuhk-pedes --recipe cfine --text-encoder bert
    tiprctl train cuhk-pedes --batch-size 64 --lr 1e-5 --select-on test
    tiprctl train cuhk-pedes --recipe sen --compile --checkpoint-blocks --accumulate 4
    tiprctl train --resume runs/synth-pedes-synth-20261121-101500
    """
    values = {
        "model.name": model,
        "model.text_encoder": text_encoder,
        "epochs": epochs,
        "batch_size": batch_size,
        "optim.lr": lr,
        "seed": seed,
        "amp": amp and amp.value,
        "select_on": select_on and select_on.value,
    }
    levers = {
        "compile": compile,
        "checkpoint_blocks": checkpoint_blocks,
        "accumulate": accumulate,
        "deterministic": deterministic,
    }
    if resume is not None:
        _refuse_settings(ctx, levers.keys())
        levers = _kept(levers, resume, _typed(ctx))
        config, manifest, folder = _continued(resume, root)
    else:
        config, manifest, folder = _planned(
            data, root, Asked(recipe, losses, aux, pretrained, set or [], values), output
        )
    _check_division(config, levers["accumulate"], resumed=resume is not None)

    from tiprctl.cli.training_view import TrainingView
    from tiprctl.execution import Execution
    from tiprctl.process_group import joined
    from tiprctl.runs import RUN
    from tiprctl.training import Trainer

    with (
        joined(device, render.last_error) as job,
        TrainingView() as view,
        _shared(folder, exclusive=resume is None and output is None) as folder,
    ):
        command = _resuming(ctx, folder)
        job.remedy = lambda: f"Go on with: {command}" if (folder / RUN).is_file() else "Start it again."
        trainer = Trainer(
            config, manifest, folder, device=job.device, workers=workers, listener=view, execution=Execution(**levers)
        )
        render.note(f"{manifest.title}: recipe {config.recipe}, run {folder}")
        result = trainer.run()
        _report(result, command)
    if result.interrupted:
        raise typer.Exit(130)


def _typed(ctx: typer.Context) -> set[str]:
    """The parameters that the command line itself names, and no variable or file."""
    return {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}


def _refuse_settings(ctx: typer.Context, levers: Collection[str]) -> None:
    """A resumed run keeps what it began with; settings from variables and files meant other runs and do not count."""
    fixed = _typed(ctx).difference(levers) - {"resume", "root", "workers", "device", "verbose", "quiet"}
    if fixed:
        flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
        raise UsageError(
            "A resumed run keeps its own data set and settings",
            where=", ".join(sorted(flags[name] for name in fixed)),
            remedy="Leave these out, or start a new run without --resume.",
        )


def _kept(levers: Mapping[str, Any], resume: Path, typed: set[str]) -> dict[str, Any]:
    """The levers as the run was carried out last, but for those that were typed."""
    from tiprctl.runs import Run

    executions = Run(resume).executions
    before = executions[-1] if executions else {}
    return {name: value if name in typed else before.get(name, value) for name, value in levers.items()}


def _check_division(config: TrainConfig, parts: int, *, resumed: bool) -> None:
    """Check, before anything large is loaded, that batches can be divided among the processes and into parts."""
    from tiprctl.data.samplers import check_parts, check_shares

    processes = place().processes
    check_shares(config.batch_size, config.sampling, processes, resumed=resumed)
    check_parts(parts, config.batch_size // processes)


def _resuming(ctx: typer.Context, run: Path) -> str:
    """What to type to go on with a run, in as many processes as now, with the data and on the device typed now."""
    here, typed = place(), _typed(ctx)
    again = [part for name in ("root", "device") if name in typed for part in (f"--{name}", str(ctx.params[name]))]
    command = shlex.join(["tiprctl", "train", "--resume", str(run), *again])
    if here.processes == 1:
        return command
    # How the machines find each other is not known here.
    machines = f"--nnodes {here.processes // here.locals} … " if here.processes > here.locals else ""
    return f"torchrun {machines}--nproc-per-node {here.locals} -m {command}"


@contextmanager
def _shared(folder: Path, *, exclusive: bool) -> Iterator[Path]:
    """The run's folder as `_made` makes it; of several processes the first one does, and tells the others its name.

    A folder in which nothing came about is removed again, by whichever process is left.
    """
    from tiprctl.distributed import first_makes

    folder = first_makes(lambda: _made(folder, exclusive=exclusive))
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def _made(folder: Path, *, exclusive: bool) -> Path:
    """The run's folder, made; `exclusive` takes another name where a run of the same second has it."""
    names = chain([folder.name], (f"{folder.name}-{number}" for number in count(2))) if exclusive else [folder.name]
    for name in names:
        folder = folder.with_name(name)
        try:
            folder.mkdir(parents=True, exist_ok=not exclusive)
            return folder
        except FileExistsError:
            if not exclusive:
                raise UsageError("The run's folder is a file", where=folder, remedy="Name another --output.") from None
        except OSError as error:
            raise InputError(
                f"The run's folder cannot be made: {error.strerror}", where=folder, remedy="Name another --output."
            ) from error


def _planned(
    data: str | None, root: Path | None, asked: Asked, output: Path | None
) -> tuple[TrainConfig, Manifest, Path]:
    """A new run: what the recipe says, changed as the options say, in a folder of its own."""
    from tiprctl.recipes import check_names
    from tiprctl.runs import RUN, RUNS

    check_names(asked.recipe, asked.losses, asked.aux)

    from tiprctl.data.manifest import find_manifest

    manifest = find_manifest(data, root)
    config = _configured(asked, manifest)
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = output or RUNS / f"{manifest.title}-{config.recipe}-{time}"
    if output is not None and (output / RUN).exists():
        remedy = "Continue it with --resume, or choose another."
        raise UsageError("There is a run in this folder", where=output, remedy=remedy)
    return config, manifest, folder


def _configured(asked: Asked, manifest: Manifest) -> TrainConfig:
    """The recipe, then what a checkpoint to start from fixes, then settings, then options with names of their own."""
    from tiprctl.config import override
    from tiprctl.recipes import RECIPES, find_recipe, with_objectives
    from tiprctl.settings import resolve

    config = find_recipe(asked.recipe, manifest.dataset)
    if asked.recipe and config != RECIPES[asked.recipe]:
        render.note(f"{manifest.title}: {asked.recipe} is fitted to a small encoder from random weights")
    config = with_objectives(config, asked.losses, asked.aux)
    return override(resolve(config, asked.settings, pretrained=asked.pretrained), asked.values)


def _continued(resume: Path, root: Path | None) -> tuple[TrainConfig, Manifest, Path]:
    """An unfinished run: its own settings and data set."""
    from tiprctl.data.manifest import find_manifest
    from tiprctl.runs import Run

    run = Run(resume)
    if run.result is not None:
        raise UsageError("The run is finished", where=resume, remedy=f"Measure it with: tiprctl eval {resume}")
    data_root = Path(run.info["data_root"])
    manifest = find_manifest(run.info["dataset"], root or (data_root if data_root.exists() else None))
    return run.config, manifest, resume


def _report(result: TrainingResult, command: str) -> None:
    """Say what came out, and what to do with it; `command` goes on with what was stopped."""
    from tiprctl.distributed import process
    from tiprctl.runs import mark_latest

    if result.epoch is None:
        render.note(f"Stopped and saved. Go on with: {command}")
        return
    if process() == 0:
        mark_latest(result.run)
    chosen = "the last" if result.selected_on == "last" else f"the best on {result.selected_on}"
    render.note(
        f"Trained in {result.seconds:.0f} s; epoch {result.epoch} is {chosen}. Measure it: tiprctl eval {result.run}"
    )
    render.result_line(str(result.run))

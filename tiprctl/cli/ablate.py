"""`tiprctl ablate`: which parts of a method help, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiprctl.cli import experiments, render
from tiprctl.cli.experiments import Budget, Budgets, Seeds
from tiprctl.cli.options import Device, Json, Root, Settings, Workers

if TYPE_CHECKING:
    from tiprctl.ablation.experiment import Experiment
    from tiprctl.ablation.summary import Summary


def ablate(
    data: Annotated[str | None, typer.Argument(help="A prepared data set; not needed when there is just one.")] = None,
    recipe: Annotated[str, typer.Option(help="The method whose parts are compared.")] = "sen",
    parts: Annotated[
        str, typer.Option(help="Objectives, prune (pruned captions) and mask (masked captions), separated by commas.")
    ] = "tir,triplet,prune",
    seeds: Seeds = 3,
    start_epochs: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Epochs, without the parts, of the start that a seed's trainings share; 0: the pretrained weights.",
            show_default="0, or the recipe's epochs from random weights",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(min=0.01, help="Epochs of each subset.", show_default="the recipe's, or 3 after a start"),
    ] = None,
    budget: Budgets = Budget.both,
    output: Annotated[
        Path | None, typer.Option(help="The ablation's folder.", show_default="runs/<data>-<recipe>-ablation")
    ] = None,
    set: Settings = None,
    json: Json = False,
    root: Root = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Train every subset of a method's parts from the same start, and compare in pairs.

    Stopped with Ctrl-C, it goes on when the same command is given again.

    \b
    tiprctl ablate
    tiprctl ablate synth-pedes --recipe sen --parts tir,triplet,prune --seeds 3
    tiprctl ablate cuhk-pedes --recipe irra --parts mlm --budget steps
    tiprctl ablate --start-epochs 4 --epochs 1.5 --set tir.weight=5 --json
    """
    from tiprctl.ablation.parts import OPTION, parse_parts, plan_subsets, with_all
    from tiprctl.recipes import check_names, find_recipe

    chosen = parse_parts(parts)
    check_names(recipe, None, None)

    from tiprctl.data.manifest import find_manifest
    from tiprctl.runs import RUNS
    from tiprctl.settings import resolve

    manifest = find_manifest(data, root)
    fixed = {"recipe": "--recipe", "objectives": OPTION, "seed": "--seeds"}
    plan = plan_subsets(
        resolve(with_all(find_recipe(recipe, manifest.dataset), chosen), set or [], fixed=fixed),
        chosen,
        seeds=seeds,
        start_epochs=start_epochs,
        epochs=epochs,
        budgets=budget.asked,
    )

    from tiprctl.ablation.experiment import Experiment
    from tiprctl.precision import find_device

    folder = output or RUNS / f"{manifest.title}-{recipe}-ablation"
    experiment = Experiment(plan, manifest, folder, device=find_device(device), workers=workers)
    render.note(f"{manifest.title}: recipe {recipe}, {len(plan.contenders)} subsets of its parts")
    experiments.carry_out(experiment)
    if json:
        asked = {"recipe": recipe, "parts": chosen}
        render.result_json(experiments.document(experiment, "subset", asked))
    else:
        _print_tables(experiment)


def _print_tables(experiment: Experiment) -> None:
    from tiprctl.ablation.summary import COMPARED
    from tiprctl.recipes import FIGURES

    numbers = ["epochs", *FIGURES, *(f"{figure} vs plain" for figure in COMPARED), "cost", "parameters"]
    columns = ["subset", *((name, "right") for name in numbers)]
    for budget, lines in experiments.summaries(experiment).items():
        rows = (_cells(experiment, summary) for summary in lines)
        render.result_table(render.table(experiments.title(experiment, budget), columns, rows))
    render.note("vs plain: mean difference, paired by seed, ± its standard error. cost: a step's time over plain's.")


def _cells(experiment: Experiment, summary: Summary) -> list[str]:
    from tiprctl.ablation.summary import COMPARED

    name = summary.contender
    return [
        name,
        f"{summary.epochs:.2f}",
        *(f"{value:.2f}" for value in summary.figures.values()),
        *experiments.gains(experiment, summary, COMPARED),
        f"{experiment.ratios[name]:.2f}",
        f"{experiment.costs[name].parameters:,}",
    ]

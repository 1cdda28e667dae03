"""`tiprctl compare`: whole methods side by side, and what they cost."""

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

SHOWN = ("R@1", "mAP", "mINP")
MEGABYTE = 1e6


def compare(
    data: Annotated[str | None, typer.Argument(help="A prepared data set; not needed when there is just one.")] = None,
    recipes: Annotated[
        str, typer.Option(help="The methods, separated by commas; the others are compared with the first.")
    ] = "clip,irra,sen,cfine,scvd",
    seeds: Seeds = 3,
    start_epochs: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Epochs, with recipe clip, of the start that a seed's trainings share; 0: the pretrained weights.",
            show_default="0, or the recipe's epochs from random weights",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(min=0.01, help="Epochs of the first recipe.", show_default="the recipe's, or 3 after a start"),
    ] = None,
    budget: Budgets = Budget.both,
    output: Annotated[
        Path | None, typer.Option(help="The comparison's folder.", show_default="runs/<data>-comparison")
    ] = None,
    set: Settings = None,
    json: Json = False,
    root: Root = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Train whole methods from the same start, and compare in pairs what they find and what they cost.

    Stopped with Ctrl-C, it goes on when the same command is given again.

    On photographs cfine has another input and batch size than the others: --set gives the same to all, as below.

    \b
    tiprctl compare
    tiprctl compare synth-pedes --recipes clip,irra,sen --seeds 3
    tiprctl compare cuhk-pedes --recipes irra,sen --budget steps
    tiprctl compare --set batch_size=128 --set 'model.image_size=[384,128]'
    tiprctl compare --start-epochs 4 --epochs 1.5 --set batch_size=32 --json
    """
    from tiprctl.ablation.methods import FIXED, START_RECIPE, parse_recipes, plan_recipes, settings_of
    from tiprctl.recipes import find_recipe

    names = parse_recipes(recipes)

    from tiprctl.data.manifest import find_manifest
    from tiprctl.runs import RUNS
    from tiprctl.settings import resolve

    manifest = find_manifest(data, root)
    found = {name: find_recipe(name, manifest.dataset) for name in (*names, START_RECIPE)}
    resolved = {
        name: resolve(recipe, settings_of(recipe, set or [], found.values()), fixed=FIXED)
        for name, recipe in found.items()
    }
    plan = plan_recipes(
        {name: resolved[name] for name in names},
        resolved[START_RECIPE],
        seeds=seeds,
        start_epochs=start_epochs,
        epochs=epochs,
        budgets=budget.asked,
    )

    from tiprctl.ablation.experiment import Experiment
    from tiprctl.precision import find_device

    folder = output or RUNS / f"{manifest.title}-comparison"
    experiment = Experiment(plan, manifest, folder, device=find_device(device), workers=workers)
    render.note(f"{manifest.title}: recipes {', '.join(names)}")
    experiments.carry_out(experiment)
    if json:
        asked = {"recipes": names, "device": experiment.device_name}
        render.result_json(experiments.document(experiment, "recipe", asked))
    else:
        _print_tables(experiment)


def _print_tables(experiment: Experiment) -> None:
    first = experiment.plan.first
    numbers = ["epochs", *SHOWN, f"R@1 vs {first}", "s/step", "cost", "memory", "width", "parameters"]
    columns = ["recipe", *((name, "right") for name in numbers)]
    for budget, lines in experiments.summaries(experiment).items():
        rows = (_cells(experiment, summary) for summary in lines)
        render.result_table(render.table(experiments.title(experiment, budget), columns, rows))
    kind = "GPU memory" if experiment.device.type == "cuda" else "resident memory"
    render.note(
        f"vs {first}: mean difference, paired by seed, ± its standard error. cost: a step's time over {first}'s."
    )
    render.note(f"memory: peak {kind} that a training's weights, optimiser and first steps took. width: of a feature.")


def _cells(experiment: Experiment, summary: Summary) -> list[str]:
    name = summary.contender
    cost = experiment.costs[name]
    return [
        name,
        f"{summary.epochs:.2f}",
        *(f"{summary.figures[figure]:.2f}" for figure in SHOWN),
        *experiments.gains(experiment, summary, SHOWN[:1]),
        f"{cost.seconds:.3g}",
        f"{experiment.ratios[name]:.2f}",
        "–" if cost.memory is None else f"{cost.memory / MEGABYTE:,.0f} MB",
        str(cost.width),
        f"{cost.parameters:,}",
    ]

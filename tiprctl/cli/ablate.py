"""`tiprctl ablate`: which parts of a method help, and what they cost."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render
from tiprctl.cli.options import Device, Json, Root, Settings, Workers

if TYPE_CHECKING:
    from tiprctl.ablation.experiment import Ablation
    from tiprctl.ablation.plan import Training
    from tiprctl.ablation.summary import Difference, Summary
    from tiprctl.progress import Listener


class Budget(StrEnum):
    steps = "steps"
    time = "time"
    both = "both"


def ablate(
    data: Annotated[str | None, typer.Argument(help="A prepared data set; not needed when there is just one.")] = None,
    recipe: Annotated[str, typer.Option(help="The method whose parts are compared.")] = "sen",
    parts: Annotated[
        str, typer.Option(help="Objectives, prune (pruned captions) and mask (masked captions), separated by commas.")
    ] = "tir,triplet,prune",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; more can be added later.")] = 3,
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
    budget: Annotated[Budget, typer.Option(help="Compare at equal steps, at equal time, or both.")] = Budget.both,
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
    from tiprctl.ablation.parts import OPTION, parse_parts, with_all
    from tiprctl.recipes import check_names

    chosen = parse_parts(parts)
    check_names(recipe, None, None)

    from tiprctl.ablation.plan import BUDGETS, make_plan
    from tiprctl.data.manifest import find_manifest
    from tiprctl.recipes import find_recipe
    from tiprctl.runs import RUNS
    from tiprctl.settings import resolve

    manifest = find_manifest(data, root)
    fixed = {"recipe": "--recipe", "objectives": OPTION, "seed": "--seeds"}
    plan = make_plan(
        resolve(with_all(find_recipe(recipe, manifest.dataset), chosen), set or [], fixed=fixed),
        chosen,
        seeds=seeds,
        start_epochs=start_epochs,
        epochs=epochs,
        budgets=BUDGETS if budget is Budget.both else (budget.value,),
    )

    from tiprctl.ablation.experiment import Ablation
    from tiprctl.precision import find_device

    folder = output or RUNS / f"{manifest.title}-{recipe}-ablation"
    ablation = Ablation(plan, manifest, folder, device=find_device(device), workers=workers)
    _carry_out(ablation)
    if json:
        render.result_json(_document(ablation))
    else:
        _print_tables(ablation)


def _carry_out(ablation: Ablation) -> None:
    """Train and measure what is left, and say what is going on."""
    from tiprctl.cli.training_view import SubsetView

    plan = ablation.plan
    render.note(f"{ablation.manifest.title}: recipe {plan.recipe.recipe}, {len(plan.subsets)} subsets of its parts")
    render.note(f"Costs of a step on {ablation.device_name}, measured side by side once:")
    for name, ratio in ablation.ratios.items():
        render.note(f"  {name} x {ratio:.2f}")
    left = [training for training in ablation.trainings if not ablation.is_finished(training)]
    _announce(ablation, left)
    for number, training in enumerate(left, start=len(ablation.trainings) - len(left) + 1):
        epochs = f"{training.config.epochs:.4g} epochs"
        render.heading(f"{number} of {len(ablation.trainings)}: {training.name}, {epochs}")
        with SubsetView(training.parts if plan.start_epochs else ()) as view:
            _train(ablation, training, view)


def _announce(ablation: Ablation, left: list[Training]) -> None:
    """The plan: how much there is to train, and how long that takes."""
    every = ablation.trainings
    epochs = sum(training.config.epochs for training in every)
    time = timedelta(seconds=round(sum(map(ablation.seconds, left))))
    render.note(
        f"{len(every)} trainings of {epochs:.4g} epochs in all, {len(left)} of them left: "
        f"about {time} without evaluations; in {ablation.folder}"
    )


def _train(ablation: Ablation, training: Training, view: Listener) -> None:
    from tiprctl.ablation.plan import START

    if not ablation.train(training, view):
        render.note("Stopped and saved. Go on with the same command.")
        raise typer.Exit(130)
    if training.budget != START:
        row = ablation.measure(training)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in row.figures.items())
        render.note(f"{training.name}: {shown} on {row.split}; epoch {row.epoch}, chosen on {row.selected_on}")


def _print_tables(ablation: Ablation) -> None:
    from tiprctl.ablation.summary import COMPARED
    from tiprctl.recipes import FIGURES

    numbers = ["epochs", *FIGURES, *(f"{figure} vs plain" for figure in COMPARED), "cost", "parameters"]
    columns = ["subset", *((name, "right") for name in numbers)]
    for budget, summaries in _summaries(ablation).items():
        table = render.table(_title(ablation, budget), columns, (_cells(ablation, summary) for summary in summaries))
        render.result_table(table)
    render.note("vs plain: mean difference, paired by seed, ± its standard error. cost: a step's time over plain's.")


def _title(ablation: Ablation, budget: str) -> str:
    """What the table is of, and how its figures came about."""
    row = ablation.rows[0]
    chosen = "the last epoch" if row.selected_on == "last" else f"the epoch best on {row.selected_on}"
    return (
        f"{ablation.manifest.title}, {row.split} split, percent; "
        f"equal {budget}, {chosen}, mean over seeds: {ablation.plan.seeds}"
    )


def _cells(ablation: Ablation, summary: Summary) -> list[str]:
    from tiprctl.ablation.parts import label

    name = label(summary.parts)
    return [
        name,
        f"{summary.epochs:.2f}",
        *(f"{value:.2f}" for value in summary.figures.values()),
        *(_gain(difference) if summary.parts else "" for difference in summary.differences.values()),
        f"{ablation.ratios[name]:.2f}",
        f"{ablation.costs[name].parameters:,}",
    ]


def _gain(difference: Difference) -> str:
    error = "–" if difference.error is None else f"{difference.error:.2f}"
    return f"{difference.mean:+.2f} ± {error}"


def _summaries(ablation: Ablation) -> dict[str, list[Summary]]:
    from tiprctl.ablation.summary import summarise

    plan = ablation.plan
    return {budget: summarise(ablation.rows, plan.subsets, budget) for budget in plan.budgets}


def _document(ablation: Ablation) -> dict[str, Any]:
    from tiprctl.ablation.parts import label

    plan = ablation.plan
    return {
        "data": ablation.manifest.title,
        "recipe": plan.recipe.recipe,
        "parts": plan.parts,
        "seeds": plan.seeds,
        "start_epochs": plan.start_epochs,
        "epochs": plan.epochs,
        "costs": {name: {**asdict(cost), "ratio": ablation.ratios[name]} for name, cost in ablation.costs.items()},
        "results": {
            budget: [{"subset": label(summary.parts), **asdict(summary)} for summary in summaries]
            for budget, summaries in _summaries(ablation).items()
        },
        "runs": [row.as_result() for row in ablation.rows],
    }

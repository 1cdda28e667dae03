"""What `ablate` and `compare` share: their options, carrying an experiment out, and its figures as text and JSON."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render

if TYPE_CHECKING:
    from tiprctl.ablation.cost import Cost
    from tiprctl.ablation.experiment import Experiment
    from tiprctl.ablation.plan import Plan, Training
    from tiprctl.ablation.summary import Difference, Summary
    from tiprctl.data.manifest import Manifest
    from tiprctl.progress import Listener


class Budget(StrEnum):
    steps = "steps"
    time = "time"
    both = "both"

    @property
    def asked(self) -> tuple[str, ...]:
        """The budgets that a plan is to have."""
        return tuple(each.value for each in Budget if each is not Budget.both and self in (each, Budget.both))


Seeds = Annotated[int, typer.Option("--seeds", min=1, help="How many seeds; more can be added later.")]
StartEpochs = Annotated[
    float | None,
    typer.Option(
        "--start-epochs",
        min=0,
        help="Epochs of the start that a seed's trainings share; 0: the pretrained weights.",
        show_default="0, or the recipe's epochs from random weights",
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        "--epochs",
        min=0.01,
        help="Epochs of the first; the others get as many steps, or as much time.",
        show_default="the recipe's, or 3 after a start",
    ),
]
Budgets = Annotated[Budget, typer.Option("--budget", help="Compare at equal steps, at equal time, or both.")]


FIGURES = ("R@1", "mAP", "mINP")
"""The figures in the tables; R@5 and R@10 are in the JSON document."""

MILLION = 1e6


def run(
    plan: Plan,
    manifest: Manifest,
    folder: Path,
    *,
    about: str,
    asked: dict[str, Any],
    json: bool,
    workers: int | None,
    device: str | None,
) -> None:
    """Carry a plan out in its folder, and print what came of it, as tables or as one JSON document.

    Args:
        about: what is compared, for people.
        asked: what was asked for, for the document.
    """
    from tiprctl.ablation.experiment import Experiment
    from tiprctl.precision import find_device

    meter = partial(render.progress, told=True)
    experiment = Experiment(plan, manifest, folder, device=find_device(device), workers=workers, meter=meter)
    render.note(f"{manifest.title}: {about}")
    _carry_out(experiment)
    if json:
        render.result_json(_document(experiment, asked))
    else:
        _print_results(experiment)


def _carry_out(experiment: Experiment) -> None:
    """Train and measure what is left, and say what is going on."""
    from tiprctl.cli.training_view import ContenderView

    _tell_costs(experiment)
    left = [training for training in experiment.trainings if not experiment.is_finished(training)]
    _announce(experiment, left)
    for number, training in enumerate(left, start=len(experiment.trainings) - len(left) + 1):
        epochs = f"{training.config.epochs:.4g} epochs"
        render.heading(f"{number} of {len(experiment.trainings)}: {training.name}, {epochs}")
        with ContenderView(experiment.plan.new_to_start(training.config)) as view:
            _train(experiment, training, view)


def _tell_costs(experiment: Experiment) -> None:
    """What a step of each contender costs beside the first one's; measured now, unless that was done before."""
    try:
        ratios = experiment.ratios
    except KeyboardInterrupt as interrupt:
        render.note("Stopped while the costs were being measured: nothing is kept. The same command begins again.")
        raise typer.Exit(130) from interrupt
    render.note(f"Costs of a step on {experiment.device_name}, measured side by side once:")
    for name, ratio in ratios.items():
        render.note(f"  {name} x {ratio:.2f}")


def _announce(experiment: Experiment, left: list[Training]) -> None:
    """The plan: how much there is to train, and how long that takes."""
    every = experiment.trainings
    epochs = sum(training.config.epochs for training in every)
    time = timedelta(seconds=round(sum(map(experiment.seconds, left))))
    render.note(
        f"{len(every)} trainings of {epochs:.4g} epochs in all, {len(left)} of them left: "
        f"about {time} without evaluations; in {experiment.folder}"
    )


def _train(experiment: Experiment, training: Training, view: Listener) -> None:
    from tiprctl.ablation.plan import START

    if not experiment.train(training, view):
        render.note("Stopped and saved. Go on with the same command.")
        raise typer.Exit(130)
    if training.budget != START:
        row = experiment.measure(training)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in row.figures.items())
        render.note(f"{training.name}: {shown} on {row.split}; epoch {row.epoch}, chosen on {row.selected_on}")


def _summaries(experiment: Experiment) -> dict[str, list[Summary]]:
    """A line for each contender, by budget."""
    from tiprctl.ablation.summary import summarise

    plan = experiment.plan
    return {budget: summarise(experiment.rows, plan.names, budget) for budget in plan.budgets}


def _print_results(experiment: Experiment) -> None:
    """A table for each budget, one of the costs, and what their columns mean."""
    from tiprctl.ablation.summary import COMPARED

    first = experiment.plan.first
    numbers = ["epochs", *FIGURES, *(f"{figure} vs {first}" for figure in COMPARED)]
    headings = [experiment.plan.compared, *((name, "right") for name in numbers)]
    render.result_line(_about_figures(experiment))
    for budget, lines in _summaries(experiment).items():
        rows = (_cells(summary, is_first=summary.contender == first) for summary in lines)
        render.result_table(render.table(f"equal {budget}", headings, rows))
    _print_costs(experiment)
    render.note(
        f"vs {first}: mean difference, paired by seed, ± its standard error. cost: a step's time over {first}'s."
    )
    if experiment.plan.memory:
        memory = "GPU memory" if experiment.device.type == "cuda" else "resident memory"
        render.note(f"memory: peak {memory} that a training's weights, optimiser and first steps took.")
    render.note("width: of a feature.")


def _about_figures(experiment: Experiment) -> str:
    """What the figures are of, and how they came about."""
    row = experiment.rows[0]
    chosen = "the last epoch" if row.selected_on == "last" else f"the epoch best on {row.selected_on}"
    return (
        f"{experiment.manifest.title}, {row.split} split, percent; {chosen}, mean over seeds: {experiment.plan.seeds}"
    )


def _cells(summary: Summary, *, is_first: bool) -> list[str]:
    """A contender's line; the first one has no differences to show."""
    return [
        summary.contender,
        f"{summary.epochs:.2f}",
        *(f"{summary.figures[figure]:.2f}" for figure in FIGURES),
        *("" if is_first else _gain(difference) for difference in summary.differences.values()),
    ]


def _print_costs(experiment: Experiment) -> None:
    """What each contender costs; without the columns that were not measured."""
    lines = {name: _costs(cost, experiment.ratios[name]) for name, cost in experiment.costs.items()}
    measured = [column for column in next(iter(lines.values())) if any(line[column] for line in lines.values())]
    headings = [experiment.plan.compared, *((column, "right") for column in measured)]
    rows = ([name, *(line[column] or "–" for column in measured)] for name, line in lines.items())
    render.result_table(render.table(f"costs on {experiment.device_name}", headings, rows))


def _costs(cost: Cost, ratio: float) -> dict[str, str]:
    """The cells of a contender's costs by their columns, empty where nothing was measured."""
    return {
        "s/step": f"{cost.seconds:.3g}",
        "cost": f"{ratio:.2f}",
        "memory": "" if cost.memory is None else _millions(cost.memory) + "B",
        "width": "" if cost.width is None else str(cost.width),
        "parameters": _millions(cost.parameters),
    }


def _millions(number: int) -> str:
    """Three figures at least, as in `1.23 M` and `149 M`."""
    millions = number / MILLION
    return f"{millions:,.{0 if millions >= 100 else 1 if millions >= 10 else 2}f} M"


def _gain(difference: Difference) -> str:
    error = "–" if difference.error is None else f"{difference.error:.2f}"
    return f"{difference.mean:+.2f} ± {error}"


def _document(experiment: Experiment, asked: dict[str, Any]) -> dict[str, Any]:
    """All that is known of an experiment: what was asked for, costs, results by budget and every run."""
    plan = experiment.plan
    return {
        "data": experiment.manifest.title,
        **asked,
        "device": experiment.device_name,
        "seeds": plan.seeds,
        "start_epochs": plan.start_epochs,
        "epochs": plan.epochs,
        "costs": {name: {**asdict(cost), "ratio": experiment.ratios[name]} for name, cost in experiment.costs.items()},
        "results": {
            budget: [_result(summary, plan.compared) for summary in lines]
            for budget, lines in _summaries(experiment).items()
        },
        "runs": [row.as_result(plan.compared) for row in experiment.rows],
    }


def _result(summary: Summary, kind: str) -> dict[str, Any]:
    values = asdict(summary)
    return {kind: values.pop("contender"), **values}

"""What `ablate` and `compare` share: their budgets, carrying an experiment out, and its figures as text and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render

if TYPE_CHECKING:
    from tiprctl.ablation.experiment import Experiment
    from tiprctl.ablation.plan import Training
    from tiprctl.ablation.summary import Difference, Summary
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
Budgets = Annotated[Budget, typer.Option("--budget", help="Compare at equal steps, at equal time, or both.")]


def carry_out(experiment: Experiment) -> None:
    """Train and measure what is left, and say what is going on."""
    from tiprctl.cli.training_view import ContenderView

    render.note(f"Costs of a step on {experiment.device_name}, measured side by side once:")
    for name, ratio in experiment.ratios.items():
        render.note(f"  {name} x {ratio:.2f}")
    left = [training for training in experiment.trainings if not experiment.is_finished(training)]
    _announce(experiment, left)
    for number, training in enumerate(left, start=len(experiment.trainings) - len(left) + 1):
        epochs = f"{training.config.epochs:.4g} epochs"
        render.heading(f"{number} of {len(experiment.trainings)}: {training.name}, {epochs}")
        with ContenderView(experiment.plan.new_to_start(training.config)) as view:
            _train(experiment, training, view)


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


def summaries(experiment: Experiment) -> dict[str, list[Summary]]:
    """A line for each contender, by budget."""
    from tiprctl.ablation.summary import summarise

    plan = experiment.plan
    return {budget: summarise(experiment.rows, plan.names, budget) for budget in plan.budgets}


def title(experiment: Experiment, budget: str) -> str:
    """What a table is of, and how its figures came about."""
    row = experiment.rows[0]
    chosen = "the last epoch" if row.selected_on == "last" else f"the epoch best on {row.selected_on}"
    return (
        f"{experiment.manifest.title}, {row.split} split, percent; "
        f"equal {budget}, {chosen}, mean over seeds: {experiment.plan.seeds}"
    )


def gains(experiment: Experiment, summary: Summary, figures: Iterable[str]) -> list[str]:
    """The differences to the first contender, which itself has none to show."""
    if summary.contender == experiment.plan.first:
        return ["" for _ in figures]
    return [_gain(summary.differences[figure]) for figure in figures]


def _gain(difference: Difference) -> str:
    error = "–" if difference.error is None else f"{difference.error:.2f}"
    return f"{difference.mean:+.2f} ± {error}"


def document(experiment: Experiment, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    """All that is known of an experiment: what was `asked` for, costs, results by budget and every run.

    `kind` is what its contenders are.
    """
    plan = experiment.plan
    return {
        "data": experiment.manifest.title,
        **asked,
        "seeds": plan.seeds,
        "start_epochs": plan.start_epochs,
        "epochs": plan.epochs,
        "costs": {name: {**asdict(cost), "ratio": experiment.ratios[name]} for name, cost in experiment.costs.items()},
        "results": {
            budget: [_result(summary, kind) for summary in lines] for budget, lines in summaries(experiment).items()
        },
        "runs": [row.as_result(kind) for row in experiment.rows],
    }


def _result(summary: Summary, kind: str) -> dict[str, Any]:
    values = asdict(summary)
    return {kind: values.pop("contender"), **values}

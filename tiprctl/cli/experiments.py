"""What `ablate` and `compare` share: their options, carrying an experiment out, and its figures as text and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiprctl.cli import render

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class Columns:
    """What the tables of an experiment show beside the epochs.

    `figures`; of those `compared` the differences to the first contender; and what a contender of a name `costs`, each
    cell by its column.
    """

    figures: Sequence[str]
    compared: Sequence[str]
    costs: Callable[[Experiment, str], dict[str, str]]


def run(
    plan: Plan,
    manifest: Manifest,
    folder: Path,
    *,
    about: str,
    kind: str,
    asked: dict[str, Any],
    columns: Columns,
    json: bool,
    workers: int | None,
    device: str | None,
) -> Experiment:
    """Carry a plan out in its folder, and print what came of it, as tables or as one JSON document.

    Args:
        about: what is compared, for people.
        kind: what its contenders are, as in `recipe`.
        asked: what was asked for, for the document.
    """
    from tiprctl.ablation.experiment import Experiment
    from tiprctl.precision import find_device

    experiment = Experiment(plan, manifest, folder, device=find_device(device), workers=workers)
    render.note(f"{manifest.title}: {about}")
    _carry_out(experiment)
    if json:
        render.result_json(_document(experiment, kind, asked))
    else:
        _print_tables(experiment, kind, columns)
    return experiment


def _carry_out(experiment: Experiment) -> None:
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


def _summaries(experiment: Experiment) -> dict[str, list[Summary]]:
    """A line for each contender, by budget."""
    from tiprctl.ablation.summary import summarise

    plan = experiment.plan
    return {budget: summarise(experiment.rows, plan.names, budget) for budget in plan.budgets}


def _print_tables(experiment: Experiment, kind: str, columns: Columns) -> None:
    """A table for each budget, and what its columns mean."""
    first = experiment.plan.first
    differences = (f"{figure} vs {first}" for figure in columns.compared)
    numbers = ["epochs", *columns.figures, *differences, *columns.costs(experiment, first)]
    headings = [kind, *((name, "right") for name in numbers)]
    for budget, lines in _summaries(experiment).items():
        rows = (_cells(experiment, summary, columns) for summary in lines)
        render.result_table(render.table(_title(experiment, budget), headings, rows))
    render.note(
        f"vs {first}: mean difference, paired by seed, ± its standard error. cost: a step's time over {first}'s."
    )


def _title(experiment: Experiment, budget: str) -> str:
    """What a table is of, and how its figures came about."""
    row = experiment.rows[0]
    chosen = "the last epoch" if row.selected_on == "last" else f"the epoch best on {row.selected_on}"
    return (
        f"{experiment.manifest.title}, {row.split} split, percent; "
        f"equal {budget}, {chosen}, mean over seeds: {experiment.plan.seeds}"
    )


def _cells(experiment: Experiment, summary: Summary, columns: Columns) -> list[str]:
    """A contender's line; the first one has no differences to show."""
    is_first = summary.contender == experiment.plan.first
    return [
        summary.contender,
        f"{summary.epochs:.2f}",
        *(f"{summary.figures[figure]:.2f}" for figure in columns.figures),
        *("" if is_first else _gain(summary.differences[figure]) for figure in columns.compared),
        *columns.costs(experiment, summary.contender).values(),
    ]


def _gain(difference: Difference) -> str:
    error = "–" if difference.error is None else f"{difference.error:.2f}"
    return f"{difference.mean:+.2f} ± {error}"


def _document(experiment: Experiment, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
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
            budget: [_result(summary, kind) for summary in lines] for budget, lines in _summaries(experiment).items()
        },
        "runs": [row.as_result(kind) for row in experiment.rows],
    }


def _result(summary: Summary, kind: str) -> dict[str, Any]:
    values = asdict(summary)
    return {kind: values.pop("contender"), **values}

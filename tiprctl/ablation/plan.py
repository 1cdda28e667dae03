"""What an experiment trains: a start for each seed, from it every contender for equal steps, and for equal time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiprctl.ablation.cost import Cost, paces, ratios
from tiprctl.config import TrainConfig, override
from tiprctl.errors import UsageError
from tiprctl.runs import LAST

START, STEPS, TIME = "start", "steps", "time"
BUDGETS = (STEPS, TIME)
"""What the contenders have alike: the number of steps, or the time that the first one takes for that number."""

GONE_ON = 3.0
"""Epochs of the contenders where their start is trained here: enough to settle, few enough to repeat."""


@dataclass(frozen=True)
class Contender:
    """What is compared with others, by its name: a subset of a recipe's parts, or a whole recipe."""

    name: str
    config: TrainConfig


@dataclass(frozen=True)
class Training:
    """One training of the plan. `budget`: `start`, `steps` or `time`; a start is of no contender: its name is empty."""

    seed: int
    budget: str
    contender: str
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its folder below the experiment's own: `seed0/start`, `seed0/steps/tir+triplet`."""
        return training_name(self.seed, self.budget, self.contender)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment as it was asked for.

    Args:
        kind: what it is called before people and in its folder, as in `ablation`.
        compared: what each contender is, as in `recipe`.
        contenders: what is compared, by names that differ; all others are measured against the first.
        start: what is trained for the shared start of a seed.
        settings: what tells it from other experiments of its kind, beside the epochs: configurations and plain values.
        seeds: how many, from 0.
        start_epochs: how long the start is trained; 0 leaves it to the contenders' pretrained weights.
        epochs: of the first contender.
        budgets: of `steps` and `time`, what is asked for.
        memory: whether the peak memory of each contender's steps is measured, beside their time.

    Raises:
        UsageError: there is nothing to start from, or a number is out of range.
    """

    kind: str
    compared: str
    contenders: tuple[Contender, ...]
    start: TrainConfig
    settings: Mapping[str, Any]
    seeds: int
    start_epochs: float
    epochs: float
    budgets: tuple[str, ...] = BUDGETS
    memory: bool = False

    def __post_init__(self) -> None:
        override(self.start, {"epochs": self.epochs})
        if self.start_epochs == 0 and from_random_weights(self.start):
            raise UsageError(
                "Random weights are no start to compare from",
                where="--start-epochs 0",
                remedy="Let the start be trained for some epochs.",
            )

    @property
    def names(self) -> list[str]:
        return [contender.name for contender in self.contenders]

    @property
    def first(self) -> str:
        """The contender that the others are measured against."""
        return self.names[0]

    def rehearsal(self, contender: Contender) -> TrainConfig:
        """How a contender is trained, but for its start: enough to see what a step of it costs."""
        return override(contender.config, {"seed": 0, "epochs": self.epochs})

    def new_to_start(self, config: TrainConfig) -> set[str]:
        """The objectives of a training that its start is trained without; none from pretrained weights."""
        known = {objective.name for objective in self.start.objectives}
        return {objective.name for objective in config.objectives} - known if self.start_epochs else set()

    def trainings(self, folder: Path, costs: Mapping[str, Cost]) -> list[Training]:
        """All trainings, seed by seed, each after the start that it needs.

        `costs` are those of the contenders, by name and in their order. For equal steps one whose epochs are longer is
        trained for fewer of them, for equal time one is trained for that much shorter as a step takes longer. At equal
        time the training of the first is the one at equal steps.
        """
        pace, ratio = paces(costs), ratios(costs)
        epochs = {
            STEPS: {name: self.epochs * pace[name] for name in self.names},
            TIME: {name: self.epochs * pace[name] / ratio[name] for name in self.names},
        }
        return [training for seed in range(self.seeds) for training in self._of_seed(seed, folder, epochs)]

    def _of_seed(self, seed: int, folder: Path, epochs: Mapping[str, Mapping[str, float]]) -> list[Training]:
        trainings, pretrained = [], None
        if self.start_epochs:
            start = Training(seed, START, "", override(self.start, {"seed": seed, "epochs": self.start_epochs}))
            trainings.append(start)
            pretrained = str((folder / start.name / LAST).absolute())
        for budget in BUDGETS:
            for contender in self._trained(budget):
                changes = {"seed": seed, "epochs": epochs[budget][contender.name], "model.pretrained": pretrained}
                trainings.append(Training(seed, budget, contender.name, override(contender.config, changes)))
        return trainings

    def _trained(self, budget: str) -> list[Contender]:
        """The contenders that a budget trains: the first one always, but once."""
        first, *others = self.contenders
        return [*([first] if budget == STEPS else []), *(others if budget in self.budgets else [])]


def training_name(seed: int, budget: str, contender: str) -> str:
    place = f"seed{seed}/{budget}"
    return f"{place}/{contender}" if contender else place


def from_random_weights(recipe: TrainConfig) -> bool:
    return recipe.model.pretrained == "none"


def durations(recipe: TrainConfig, start_epochs: float | None, epochs: float | None) -> dict[str, float]:
    """The epochs of the start and of the contenders; those that are None follow from the recipe.

    Random weights are trained for the recipe's epochs and gone on with for a few; pretrained ones are the start, and
    trained for the recipe's epochs.
    """
    if start_epochs is None:
        start_epochs = recipe.epochs if from_random_weights(recipe) else 0.0
    if epochs is None:
        epochs = GONE_ON if start_epochs else recipe.epochs
    return {"start_epochs": start_epochs, "epochs": epochs}

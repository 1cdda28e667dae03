"""What an ablation trains: a start for each seed, from it every subset for equal steps, and again for equal time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiprctl.ablation.parts import PLAIN, Parts, label, lasting, subsets, with_all, with_parts
from tiprctl.config import TrainConfig, override, to_dict
from tiprctl.errors import UsageError
from tiprctl.runs import LAST

START, STEPS, TIME = "start", "steps", "time"
BUDGETS = (STEPS, TIME)
"""What the subsets have alike: the number of steps, or the time that the plain training takes for that number."""

GONE_ON = 3.0
"""Epochs of the subsets where their start is trained here: enough to settle, few enough to repeat."""


@dataclass(frozen=True)
class Training:
    """One training of the plan. `budget` is `start`, `steps` or `time`; a start has no parts."""

    seed: int
    budget: str
    parts: Parts
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its folder below the ablation's own: `seed0/start`, `seed0/steps/tir+triplet`."""
        place = f"seed{self.seed}/{self.budget}"
        return place if self.budget == START else f"{place}/{label(self.parts)}"


@dataclass(frozen=True)
class Plan:
    """An ablation as it was asked for.

    Args:
        recipe: the method as it fits the data, with all the parts.
        parts: what is taken out and put in.
        seeds: how many, from 0.
        start_epochs: how long the recipe without any part is trained for the shared start of a seed; 0 leaves the
            start to the recipe's pretrained weights.
        epochs: of each subset, at equal steps.
        budgets: of `steps` and `time`, what is asked for.

    Raises:
        UsageError: there is nothing to start from, or a number is out of range.
    """

    recipe: TrainConfig
    parts: Parts
    seeds: int
    start_epochs: float
    epochs: float
    budgets: tuple[str, ...] = BUDGETS

    def __post_init__(self) -> None:
        override(self.recipe, {"epochs": self.epochs})
        if self.start_epochs == 0 and from_random_weights(self.recipe):
            raise UsageError(
                "Random weights are no start to compare from",
                where="--start-epochs 0",
                remedy="Let the start be trained for some epochs.",
            )

    @property
    def subsets(self) -> list[Parts]:
        return subsets(self.parts)

    def settings(self) -> dict[str, Any]:
        """What all trainings in one folder share; seeds and budgets may be added to it later."""
        return {
            "recipe": to_dict(self.recipe),
            "parts": list(self.parts),
            "start_epochs": self.start_epochs,
            "epochs": self.epochs,
        }

    def subset(
        self, parts: Parts, *, seed: int = 0, epochs: float | None = None, pretrained: str | None = None
    ) -> TrainConfig:
        """The configuration of one subset; what is None stays as the plan and the recipe have it."""
        config = with_parts(lasting(self.recipe, self.parts), self.parts, parts)
        return override(config, {"seed": seed, "epochs": epochs or self.epochs, "model.pretrained": pretrained})

    def trainings(self, folder: Path, ratios: Mapping[str, float]) -> list[Training]:
        """All trainings, seed by seed, each after the start that it needs.

        `ratios` are the costs of a step by the subsets' names, relative to the plain one's: for equal time a subset is
        trained for that much shorter. At equal time the plain training is the one at equal steps.
        """
        return [training for seed in range(self.seeds) for training in self._of_seed(seed, folder, ratios)]

    def _of_seed(self, seed: int, folder: Path, ratios: Mapping[str, float]) -> list[Training]:
        trainings, pretrained = [], None
        if self.start_epochs:
            config = with_parts(self.recipe, self.parts, ())
            start = Training(seed, START, (), override(config, {"seed": seed, "epochs": self.start_epochs}))
            trainings.append(start)
            pretrained = str((folder / start.name / LAST).absolute())
        for budget in BUDGETS:
            for parts in self._trained(budget):
                epochs = self.epochs / ratios[label(parts)] if budget == TIME else self.epochs
                config = self.subset(parts, seed=seed, epochs=epochs, pretrained=pretrained)
                trainings.append(Training(seed, budget, parts, config))
        return trainings

    def _trained(self, budget: str) -> list[Parts]:
        """The subsets that a budget trains: the plain one always, but once."""
        asked = self.subsets if budget in self.budgets else [()]
        return [parts for parts in asked if parts or budget == STEPS]


def from_random_weights(recipe: TrainConfig) -> bool:
    return recipe.model.pretrained == "none"


def make_plan(
    recipe: TrainConfig,
    parts: Parts,
    *,
    seeds: int,
    start_epochs: float | None = None,
    epochs: float | None = None,
    budgets: tuple[str, ...] = BUDGETS,
) -> Plan:
    """A plan with defaults: parts that the recipe lacks are added; random weights are trained for the recipe's epochs
    and gone on with for a few, pretrained ones are the start and trained for the recipe's epochs.

    Raises:
        UsageError: no objective is left without the parts, or as `Plan`.
    """
    recipe = with_all(recipe, parts)
    random = from_random_weights(recipe)
    start_epochs = (recipe.epochs if random else 0.0) if start_epochs is None else start_epochs
    epochs = (GONE_ON if start_epochs else recipe.epochs) if epochs is None else epochs
    return Plan(recipe, parts, seeds, start_epochs, epochs, budgets)


def relative(seconds: Mapping[str, float]) -> dict[str, float]:
    """Costs by the subsets' names, as multiples of the plain one's."""
    return {name: value / seconds[PLAIN] for name, value in seconds.items()}

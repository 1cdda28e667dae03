"""What a training costs, and how long others may train to have cost as much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a training costs: seconds a step (median), steps an epoch, and the parameters that it trains.

    `width` is how many numbers a feature has, `memory` the peak of some steps in bytes; None where not measured.
    """

    seconds: float
    steps: int
    parameters: int
    width: int | None = None
    memory: int | None = None


def ratios(costs: Mapping[str, Cost]) -> dict[str, float]:
    """The costs of a step by name, as multiples of the first one's."""
    first = next(iter(costs.values()))
    return {name: cost.seconds / first.seconds for name, cost in costs.items()}


def paces(costs: Mapping[str, Cost]) -> dict[str, float]:
    """The epochs, by name, that have as many steps as one epoch of the first: a sampler may make them longer."""
    first = next(iter(costs.values()))
    return {name: first.steps / cost.steps for name, cost in costs.items()}

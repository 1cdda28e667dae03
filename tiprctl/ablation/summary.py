"""The figures of an ablation: means over seeds, and differences to the plain training paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from tiprctl.ablation.parts import Parts, label
from tiprctl.ablation.plan import STEPS
from tiprctl.recipes import FIGURES

COMPARED = ("R@1", "mAP")
"""The figures whose paired differences are shown."""


@dataclass(frozen=True)
class Row:
    """A finished training: `epoch` of its `epochs` was chosen on `selected_on`; its figures are of `split`, in percent."""

    seed: int
    budget: str
    parts: Parts
    epochs: float
    epoch: int
    selected_on: str
    split: str
    figures: dict[str, float]

    def as_result(self) -> dict[str, Any]:
        """The row with a subset's name and its figures side by side, rounded."""
        return {
            "subset": label(self.parts),
            **{name: getattr(self, name) for name in ("budget", "seed", "epochs", "epoch", "selected_on", "split")},
            **{name: round(value, 2) for name, value in self.figures.items()},
        }


@dataclass(frozen=True)
class Difference:
    """A mean difference over pairs and its standard error, None for a single pair."""

    mean: float
    error: float | None


@dataclass(frozen=True)
class Summary:
    """A subset over its seeds: mean epochs and figures, and the figures' differences to the plain training."""

    parts: Parts
    seeds: int
    epochs: float
    figures: dict[str, float]
    differences: dict[str, Difference]


def paired_difference(values: Sequence[float], plain: Sequence[float]) -> Difference:
    """The mean of `values - plain`, paired by position; standard error: their standard deviation / sqrt(n)."""
    differences = [value - other for value, other in zip(values, plain, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else None
    return Difference(mean(differences), error)


def summarise(rows: Iterable[Row], subsets: Iterable[Parts], budget: str) -> list[Summary]:
    """One line for each subset that has been trained with `budget`, over the seeds that the plain one was trained for."""
    found = {(row.budget, row.parts, row.seed): row for row in rows}
    plain = {row.seed: row for row in found.values() if row.budget == STEPS and not row.parts}
    summaries = []
    for parts in subsets:
        # At equal time the plain training is the one at equal steps.
        own = {seed: found.get((budget, parts, seed)) for seed in plain} if parts else plain
        pairs = [(row, plain[seed]) for seed, row in own.items() if row]
        if pairs:
            summaries.append(_summary(parts, pairs))
    return summaries


def _summary(parts: Parts, pairs: Sequence[tuple[Row, Row]]) -> Summary:
    def over_seeds(figure: str) -> tuple[list[float], list[float]]:
        return [row.figures[figure] for row, _ in pairs], [plain.figures[figure] for _, plain in pairs]

    return Summary(
        parts=parts,
        seeds=len(pairs),
        epochs=mean(row.epochs for row, _ in pairs),
        figures={figure: mean(over_seeds(figure)[0]) for figure in FIGURES},
        differences={figure: paired_difference(*over_seeds(figure)) for figure in COMPARED},
    )

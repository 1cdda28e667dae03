"""The figures of an experiment: means over seeds, and differences to the first contender paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from tiprctl.ablation.parts import label
from tiprctl.ablation.plan import STEPS, training_name
from tiprctl.config import from_dict
from tiprctl.recipes import FIGURES

COMPARED = ("R@1", "mAP")
"""The figures whose paired differences are shown."""


@dataclass(frozen=True)
class Row:
    """A finished training: `epoch` of `epochs` was chosen on `selected_on`; its figures are of `split`, in percent."""

    seed: int
    budget: str
    contender: str
    epochs: float
    epoch: int
    selected_on: str
    split: str
    figures: dict[str, float]

    @property
    def training(self) -> str:
        """The name of the training whose figures these are."""
        return training_name(self.seed, self.budget, self.contender)

    def as_result(self, kind: str) -> dict[str, Any]:
        """The row with its contender under the name of its kind (`subset`, `recipe`) and its figures, rounded."""
        return {
            kind: self.contender,
            **{name: getattr(self, name) for name in ("budget", "seed", "epochs", "epoch", "selected_on", "split")},
            **{name: round(value, 2) for name, value in self.figures.items()},
        }


def read_row(values: Mapping[str, Any], where: str) -> Row:
    """A row as it was kept; older versions kept the parts of a subset in place of its name.

    Raises:
        UsageError: a value is missing or of the wrong type.
    """
    values = dict(values)
    if "parts" in values:
        values["contender"] = label(tuple(values.pop("parts")))
    return from_dict(Row, values, where=where)


@dataclass(frozen=True)
class Difference:
    """A mean difference over pairs and its standard error, None for a single pair."""

    mean: float
    error: float | None


@dataclass(frozen=True)
class Summary:
    """A contender over its seeds: mean epochs and figures, and the figures' differences to the first contender."""

    contender: str
    seeds: int
    epochs: float
    figures: dict[str, float]
    differences: dict[str, Difference]


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """The mean of `values - others`, paired by position; standard error: their standard deviation / sqrt(n)."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else None
    return Difference(mean(differences), error)


def summarise(rows: Iterable[Row], names: Sequence[str], budget: str) -> list[Summary]:
    """One line for each contender that was trained with `budget`, over the seeds that the first was trained for."""
    found = {(row.budget, row.contender, row.seed): row for row in rows}
    first = {row.seed: row for row in found.values() if (row.budget, row.contender) == (STEPS, names[0])}
    summaries = []
    for name in names:
        # At equal time the training of the first is the one at equal steps.
        own = first if name == names[0] else {seed: found.get((budget, name, seed)) for seed in first}
        pairs = [(row, first[seed]) for seed, row in own.items() if row]
        if pairs:
            summaries.append(_summary(name, pairs))
    return summaries


def _summary(name: str, pairs: Sequence[tuple[Row, Row]]) -> Summary:
    def over_seeds(figure: str) -> tuple[list[float], list[float]]:
        return [row.figures[figure] for row, _ in pairs], [first.figures[figure] for _, first in pairs]

    return Summary(
        contender=name,
        seeds=len(pairs),
        epochs=mean(row.epochs for row, _ in pairs),
        figures={figure: mean(over_seeds(figure)[0]) for figure in FIGURES},
        differences={figure: paired_difference(*over_seeds(figure)) for figure in COMPARED},
    )

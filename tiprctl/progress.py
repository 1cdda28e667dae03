"""Where a training stands, what it tells while it runs, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tiprctl.config import TrainConfig
from tiprctl.evaluation import Evaluation


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch (from 1): mean losses by name, learning rate, speed, and figures of the selection split."""

    epoch: int
    losses: dict[str, float]
    learning_rate: float
    samples_per_second: float
    evaluation: Evaluation | None
    best: bool

    @property
    def score(self) -> float:
        """What the selection compares: R@1, or without a selection split the epoch, so that the last one wins."""
        return self.evaluation.text_to_image.recall[1] if self.evaluation else float(self.epoch)


@dataclass(frozen=True)
class Step:
    """One descent: how many pairs it saw, its learning rate, and the mean losses of its batch by name."""

    pairs: int
    learning_rate: float
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to. `selected_on` is `val`, `test` or `last`; seconds count this process alone.

    `interrupted`: Ctrl-C was pressed; `epoch`, the selected one, is None where that was before the training's end.
    """

    run: Path
    interrupted: bool
    selected_on: str
    seconds: float
    epoch: int | None = None
    evaluation: Evaluation | None = None


class Listener:
    """What a training tells while it runs; the defaults listen to nothing."""

    def on_warning(self, text: str, *, objective: str | None = None) -> None:
        """Something that the user should know of though the training goes on; the `objective` that it is about."""

    def on_note(self, text: str) -> None:
        """Something about how the training is carried out."""

    def on_start(self, *, config: TrainConfig, folder: Path, epochs: int, steps: int, done: int) -> None:
        """`steps` in all, of which `done` were taken by an earlier process; `epochs` counts a last, cut one too."""

    def on_step(self, samples: int) -> None:
        """A step over so many pairs is done."""

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is done, measured and saved."""


@dataclass
class Progress:
    """Where a training stands; saved with the checkpoint, so that another process can go on from here.

    `sums` and `counts` make the mean losses of the epoch under way; `trained` holds what is known of the last epoch
    that was trained through, until it is measured.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)

    def add(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def close_epoch(self, *, learning_rate: float, samples_per_second: float) -> None:
        self.trained = {
            "epoch": self.epoch + 1,
            "losses": {name: total / self.counts[name] for name, total in self.sums.items()},
            "learning_rate": learning_rate,
            "samples_per_second": samples_per_second,
        }
        self.epoch, self.step, self.sums, self.counts = self.epoch + 1, 0, {}, {}

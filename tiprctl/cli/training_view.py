"""What a training shows while it runs: a bar, a row an epoch, and TensorBoard where it is installed."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiprctl.cli import render
from tiprctl.config import TrainConfig
from tiprctl.progress import EpochRecord, Listener


class TrainingView(Listener):
    """A listener that prints on stderr; use it as a context manager around the training."""

    def __enter__(self) -> TrainingView:
        self.stack = ExitStack()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    def on_warning(self, text: str, *, objective: str) -> None:
        render.warning(text)

    def on_start(self, *, config: TrainConfig, folder: Path, epochs: int, steps: int, done: int) -> None:
        from tiprctl.objectives.composition import loss_names

        self.advance = self.stack.enter_context(render.progress("Training", steps, "steps", done))
        self.board = self.stack.enter_context(_board(folder)) if find_spec("tensorboard") else None
        self.epochs = epochs
        self.losses = loss_names(config.objectives)
        self.header_shown = False

    def on_step(self, samples: int) -> None:
        self.advance()

    def on_epoch(self, record: EpochRecord) -> None:
        figures = _figures(record)
        losses = {name: figures.get(name, "") for name in self.losses}
        row = {"epoch": f"{record.epoch}/{self.epochs}", **losses, **figures, "": "best" if record.best else ""}
        if not self.header_shown:
            render.row(row)
            self.header_shown = True
        render.row(row.values())
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, record.epoch)


class ContenderView(TrainingView):
    """The view of one training of an experiment: that its start has no weights for what is `new` is no surprise."""

    def __init__(self, new: Collection[str]):
        self.new = new

    def on_warning(self, text: str, *, objective: str) -> None:
        if objective not in self.new:
            super().on_warning(text, objective=objective)


def _figures(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch, by the names they are shown under."""
    figures = {name: value for name, value in record.losses.items() if "/" not in name}
    figures |= {"lr": record.learning_rate, "pairs/s": record.samples_per_second}
    if record.evaluation is not None:
        measured = record.evaluation.text_to_image
        split = record.evaluation.split
        figures |= {f"{split} R@1": measured.recall[1], f"{split} mAP": measured.mean_ap}
    return figures


def _board(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))

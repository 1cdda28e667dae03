"""What a training shows while it runs: a bar, a row an epoch, and TensorBoard where it is installed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiprctl.cli import render
from tiprctl.config import TrainConfig
from tiprctl.progress import EpochRecord, Listener
from tiprctl.runs import METRICS

WIDTH = 100
"""How many characters a row takes at most."""

GAP, NUMBER = 2, 6
"""Characters between two columns, and of a number in one."""


class TrainingView(Listener):
    """A listener that prints on stderr; use it as a context manager around the training."""

    def __enter__(self) -> TrainingView:
        self.stack = ExitStack()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    def on_warning(self, text: str, *, objective: str | None = None) -> None:
        render.warning(text)

    def on_note(self, text: str) -> None:
        render.note(text)

    def on_start(self, *, config: TrainConfig, folder: Path, epochs: int, steps: int, done: int) -> None:
        from tiprctl.objectives.composition import loss_names

        self.advance = self.stack.enter_context(render.progress("Training", steps, "steps", done))
        self.board = self.stack.enter_context(_board(folder)) if find_spec("tensorboard") else None
        self.epochs = epochs
        self.losses = loss_names(config.objectives)
        self.columns: dict[str, int] = {}

    def on_step(self, samples: int) -> None:
        self.advance()

    def on_epoch(self, record: EpochRecord) -> None:
        figures = _figures(record)
        losses = {name: figures.get(name, "") for name in self.losses}
        row = {"epoch": f"{record.epoch}/{self.epochs}", **losses, **figures, "": "best" if record.best else ""}
        if not self.columns:
            self._begin_table(row)
        render.row((_cell(name, row[name]) for name in self.columns), self.columns.values())
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, record.epoch)

    def _begin_table(self, row: Iterable[str]) -> None:
        """Choose the columns, print their headings, and tell which losses have none."""
        self.columns = _columns(row, self.losses, self.epochs)
        render.row(self.columns, self.columns.values())
        if left_out := [name for name in self.losses if name not in self.columns]:
            render.note(f"There is no room for {', '.join(left_out)}: see {METRICS} in the run's folder.")


class ContenderView(TrainingView):
    """The view of one training of an experiment: that its start has no weights for what is `new` is no surprise."""

    def __init__(self, new: Collection[str]):
        self.new = new

    def on_warning(self, text: str, *, objective: str | None = None) -> None:
        if objective not in self.new:
            super().on_warning(text, objective=objective)


def _columns(names: Iterable[str], losses: Sequence[str], epochs: int) -> dict[str, int]:
    """The columns of these names with their widths; the last of the `losses` have none where a row has no room."""
    widths = {"epoch": len(f"{epochs}/{epochs}"), "lr": len("1.23e-05"), "": len("best")}
    columns = {name: GAP + max(len(name), widths.get(name, NUMBER)) for name in names}
    for loss in reversed(losses):
        if sum(columns.values()) <= WIDTH:
            break
        del columns[loss]
    return columns


def _cell(name: str, value: float | str) -> str:
    """A value in about `NUMBER` characters; only a learning rate is told by its exponent."""
    if isinstance(value, str):
        return value
    if name == "lr":
        return f"{value:.3g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 0.1 else f"{value:.4f}"


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

"""The training loop. It knows batches, a composition of objectives and an optimiser; it reports and never prints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiprctl.checkpoint import (
    ENCODER,
    build_encoder,
    encoder_header,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    weights_fingerprint,
)
from tiprctl.config import TrainConfig, from_dict, to_dict
from tiprctl.data.batches import TrainingBatches, step_generator
from tiprctl.data.manifest import Manifest
from tiprctl.errors import InputError, TrainingError, UsageError
from tiprctl.evaluation import Evaluation, EvaluationData, evaluate
from tiprctl.interrupt import StopFlag, stop_signal
from tiprctl.models.embedder import Embedder
from tiprctl.objectives.composition import Composition, Losses
from tiprctl.optimisation import build_optimizer, clip_gradients, schedule_factor, set_learning_rate
from tiprctl.precision import amp_dtype, autocast
from tiprctl.runs import (
    BEST,
    LAST,
    METRICS,
    RESULT,
    RUN,
    Run,
    append_record,
    describe_run,
    mark_latest,
    trim_records,
    write_json,
)
from tiprctl.tokenizer import default_tokenizer

CHECK_EVERY = 20
"""Steps between two looks at the losses: each look waits for the device."""


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch (from 1): mean losses by name, learning rate, speed, and figures of the selection split."""

    epoch: int
    losses: dict[str, float]
    learning_rate: float
    samples_per_second: float
    evaluation: Evaluation | None
    best: bool


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to. `selected_on` is `val`, `test` or `last`; seconds count this process alone."""

    run: Path
    interrupted: bool
    selected_on: str
    seconds: float
    epoch: int | None = None
    evaluation: Evaluation | None = None


class Listener:
    """What a training tells while it runs; the defaults listen to nothing."""

    def on_start(self, *, config: TrainConfig, folder: Path, steps: int, done: int) -> None:
        """`steps` in all, of which `done` were taken by an earlier process."""

    def on_step(self, samples: int) -> None:
        """A step over so many pairs is done."""

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""


@dataclass
class Progress:
    """Where a training stands; saved with the checkpoint, so that another process can go on from here."""

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    best_evaluation: dict[str, Any] | None = None
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def next_epoch(self) -> None:
        self.epoch, self.step, self.sums, self.counts = self.epoch + 1, 0, {}, {}


class Trainer:
    """One training run in a folder of its own.

    Args:
        config: the resolved configuration.
        manifest: the data; its `train` split is learned from, the selection split is measured after each epoch.
        folder: the run's folder. Where it holds an unfinished run, that one is continued.
        workers: processes that decode images, where they do not fit in memory; None takes the cores.
    """

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        folder: Path,
        *,
        device: torch.device,
        workers: int | None = None,
        listener: Listener | None = None,
    ):
        self.config = config
        self.manifest = manifest
        self.folder = folder
        self.device = device
        self.workers = workers
        self.listener = listener or Listener()
        self.selected_on = selection_split(config, manifest)
        self.progress = Progress()
        self.batches = TrainingBatches(manifest.split("train"), config, default_tokenizer(), workers=workers)
        self.composition = self._compose()
        self.optimizer = build_optimizer(self.composition.roles(), config.optim)
        self.dtype = amp_dtype(config.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        if (folder / LAST).is_file():
            self._restore()

    def run(self) -> TrainingResult:
        """Train to the end, or until Ctrl-C, which saves and returns.

        Raises:
            TrainingError: a loss is not finite.
        """
        started = time.perf_counter()
        steps = self.batches.steps
        done = self.progress.epoch * steps + self.progress.step
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / RUN).is_file():
            write_json(self.folder / RUN, self._description())
        self.batches.images.keep_if_small()
        judge = self._judge()
        self.listener.on_start(config=self.config, folder=self.folder, steps=steps * self.config.epochs, done=done)
        with stop_signal() as stopped:
            while self.progress.epoch < self.config.epochs:
                if not self._train_epoch(stopped):
                    self._save(LAST, resumable=True)
                    return TrainingResult(self.folder, True, self.selected_on, time.perf_counter() - started)
                self._close_epoch(judge)
        return self._finish(time.perf_counter() - started)

    def _description(self) -> dict[str, Any]:
        manifest = self.manifest
        return describe_run(self.config, dataset=manifest.dataset, root=manifest.root, fingerprint=manifest.fingerprint)

    def _compose(self) -> Composition:
        """The encoder and its objectives; initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            encoder = build_encoder(self.config.model, torch.Generator().manual_seed(self.config.seed))
            composition = Composition(encoder, self.config.objectives, identities=self.batches.identities)
        return composition.to(self.device)

    def _judge(self) -> EvaluationData | None:
        if self.selected_on == "last":
            return None
        split = self.manifest.split(self.selected_on)
        return EvaluationData(split, self.config.model.image_size, workers=self.workers)

    def _train_epoch(self, stopped: StopFlag) -> bool:
        """Train what is left of the epoch; False when it was asked to stop before the end."""
        self.composition.train()
        self.epoch_started, self.epoch_samples = time.perf_counter(), 0
        pending: list[dict[str, Tensor]] = []
        for batch in self.batches.epoch(self.progress.epoch, skip=self.progress.step, device=self.device):
            pending.append(self._step(batch).parts)
            self.progress.step += 1
            self.epoch_samples += len(batch.pids)
            self.listener.on_step(len(batch.pids))
            if len(pending) == CHECK_EVERY or stopped:
                self._look(pending)
            if stopped and self.progress.step < self.batches.steps:
                return False
        self._look(pending)
        return True

    def _step(self, batch: Any) -> Losses:
        """One descent on one batch."""
        progress, steps = self.progress, self.batches.steps
        epochs_done = progress.epoch + progress.step / steps
        self.rate = self.config.optim.lr * schedule_factor(epochs_done, self.config.epochs, self.config.optim)
        set_learning_rate(self.optimizer, self.rate)
        generator = step_generator(self.config.seed, progress.epoch, progress.step, purpose=1)
        with autocast(self.device, self.dtype):
            losses = self.composition(batch, epochs_done / self.config.epochs, generator)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.total).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.composition, self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def _look(self, pending: list[dict[str, Tensor]]) -> None:
        """Fetch the losses of the last steps, add them to the epoch's means, and empty the list."""
        first = self.progress.step - len(pending)
        for offset, parts in enumerate(pending):
            values = dict(zip(parts, torch.stack([value.float() for value in parts.values()]).tolist()))
            for name, value in values.items():
                if not math.isfinite(value):
                    step = self.progress.epoch * self.batches.steps + first + offset + 1
                    raise TrainingError(
                        f"The loss {name} is {value} at step {step} (epoch {self.progress.epoch + 1})",
                        where=self.folder,
                        remedy="Lower --lr, or train with --amp off; the last finished epoch is kept.",
                    )
            self.progress.add(values)
        pending.clear()

    def _close_epoch(self, judge: EvaluationData | None) -> None:
        """Measure, record and save the finished epoch."""
        seconds = time.perf_counter() - self.epoch_started
        losses = self.progress.means()
        self.progress.next_epoch()
        epoch = self.progress.epoch
        evaluation = evaluate(self._embedder(), judge) if judge else None
        score = evaluation.text_to_image.recall[1] if evaluation else float(epoch)
        best = score > self.progress.best_score
        if best:
            self.progress.best_score, self.progress.best_epoch = score, epoch
            self.progress.best_evaluation = asdict(evaluation) if evaluation else None
            self._save(BEST, resumable=False)
        record = EpochRecord(epoch, losses, self.rate, self.epoch_samples / seconds, evaluation, best)
        append_record(self.folder / METRICS, asdict(record))
        self._save(LAST, resumable=True)
        self.listener.on_epoch(record)

    def _embedder(self) -> Embedder:
        return Embedder(self.composition.encoder, device=self.device, amp=self.config.amp)

    def _finish(self, seconds: float) -> TrainingResult:
        epoch, stored = self.progress.best_epoch, self.progress.best_evaluation
        write_json(
            self.folder / RESULT,
            {
                "epoch": epoch,
                "selected_on": self.selected_on,
                "seconds": round(seconds, 1),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "evaluation": stored,
            },
        )
        mark_latest(self.folder)
        evaluation = from_dict(Evaluation, stored) if stored else None
        return TrainingResult(self.folder, False, self.selected_on, seconds, epoch, evaluation)

    def _save(self, name: str, *, resumable: bool) -> None:
        """Write a checkpoint: encoder and objectives, and where it should be continued the optimiser as well."""
        weights = self.composition.state_dict()
        header = {
            **encoder_header(self.composition.encoder),
            "config": to_dict(self.config),
            "dataset": self.manifest.dataset,
            "epoch": self.progress.epoch,
            "selected_on": self.selected_on,
            "fingerprint": weights_fingerprint(
                {key: value for key, value in weights.items() if key.startswith(ENCODER)}
            ),
        }
        if resumable:
            optimizer = self.optimizer.state_dict()
            weights |= {
                f"optimizer.{index}.{key}": value
                for index, state in optimizer["state"].items()
                for key, value in state.items()
            }
            header |= {
                "progress": asdict(self.progress),
                "scaler": self.scaler.state_dict(),
                "groups": optimizer["param_groups"],
            }
        save_checkpoint(self.folder / name, weights, header)

    def _restore(self) -> None:
        """Take up the run where its last checkpoint left it.

        Raises:
            InputError: the data set is not the one that the run began with.
        """
        file = self.folder / LAST
        known = Run(self.folder).info["data_fingerprint"]
        if known != self.manifest.fingerprint:
            raise InputError(
                f"The data set has changed since the run began (fingerprint {self.manifest.fingerprint}, was {known})",
                where=self.manifest.root,
                remedy="Train anew, or prepare the data set as it was.",
            )
        tensors, header = read_checkpoint(file)
        states: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = tensors.pop(name)
        load_weights(self.composition, tensors, file)
        self.optimizer.load_state_dict({"state": states, "param_groups": header["groups"]})
        self.scaler.load_state_dict(header["scaler"])
        self.progress = Progress(**header["progress"])
        trim_records(self.folder / METRICS, self.progress.epoch)


def selection_split(config: TrainConfig, manifest: Manifest) -> str:
    """The split on which the epoch is chosen: `val` where there is one; `last` chooses none.

    Raises:
        UsageError: the split that was asked for is not in the data set.
    """
    if config.select_on == "auto":
        return "val" if "val" in manifest.splits else "last"
    if config.select_on != "last" and config.select_on not in manifest.splits:
        raise UsageError(
            f"{manifest.dataset} has no {config.select_on} split to select on",
            where="--select-on",
            remedy=f"Choose one of: {', '.join([*(s for s in manifest.splits if s != 'train'), 'last'])}.",
        )
    return config.select_on

"""The training loop. It knows batches, a composition of objectives and an optimiser; it reports and never prints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiprctl.checkpoint import (
    ENCODER,
    empty_encoder,
    encoder_header,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    weights_fingerprint,
)
from tiprctl.checkpoint_file import read_header
from tiprctl.config import TrainConfig, from_dict, to_dict
from tiprctl.data.batches import TrainingBatches, step_generator
from tiprctl.data.captions import captions_origin
from tiprctl.data.manifest import Manifest
from tiprctl.data.samplers import check_shares
from tiprctl.descent import Descent
from tiprctl.distributed import anyone, average, first_goes_ahead, first_makes, process, processes
from tiprctl.errors import InputError, TrainingError, UsageError
from tiprctl.evaluation import EvaluationData, evaluate
from tiprctl.execution import Execution, faults_told, memory_savers, repeatable
from tiprctl.interrupt import StopFlag, stop_signal
from tiprctl.models.compilation import run_uncompiled
from tiprctl.models.embedder import Embedder
from tiprctl.objectives.composition import Composition, Losses
from tiprctl.optimisation import schedule_factor
from tiprctl.precision import amp_dtype
from tiprctl.progress import EpochRecord, Listener, Progress, Step, TrainingResult
from tiprctl.runs import (
    BEST,
    LAST,
    METRICS,
    RESULT,
    RUN,
    Run,
    describe_run,
    read_records,
    write_json,
    write_records,
)
from tiprctl.starting import Start, build_start
from tiprctl.tokenizer import Tokenizer

OPTIMIZER = "optimizer."
REMEDY = "Lower optim.lr, or train with amp=off (--set). What was saved before stays as it is."
ROOM = (
    "The epoch's weights are saved. Give the device more room, such as by ending what else it runs, and go on with "
    "--resume; or start anew with --select-on last, which measures nothing."
)
REPEATABLE = (
    "--deterministic: kernels whose sums depend on the order of threads, and cuDNN's search for the fastest ones, are "
    "off, and new memory is filled. A step may take longer: `python benchmarks/train_step.py "
    "--deterministic` measures by how much."
)
CHECK_EVERY = 20
"""Steps between two looks at the losses: each look waits for the device."""


class Trainer:
    """One training run in a folder of its own; of several processes in a job the first one tells and writes.

    Args:
        config: the resolved configuration.
        manifest: the data; its `train` split is learned from, the selection split is measured after each epoch.
        folder: the run's folder. Where it holds an unfinished run, that one is continued.
        workers: processes that decode images, where they do not fit in memory; None takes the cores.
        execution: what makes the training faster, smaller or repeatable.
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
        execution: Execution | None = None,
    ):
        check_shares(config.batch_size, config.sampling, processes())
        self.config = config
        self.manifest = manifest
        self.folder = folder
        self.device = device
        self.workers = workers
        self.leads = process() == 0
        self.listener = listener if listener and self.leads else Listener()
        self.execution = execution or Execution()
        self.selected_on = selection_split(config, manifest)
        self.begun = first_makes((folder / LAST).is_file)
        self.progress = Progress()
        self.records: list[EpochRecord] = []
        self.dtype = amp_dtype(config.amp, device, training=True)
        self.batches, self.composition = self._compose()
        self.steps = whole_steps(config.epochs, self.batches.steps)
        self.epochs = math.ceil(self.steps / self.batches.steps)
        state = self._restore() if self.begun else None
        self._uncompiled = False
        with self._faults_told("at the start"):
            self.descent = self._descent()
            self._compile_everywhere_or_nowhere()
            if state:
                self.descent.load_state(*state)

    def run(self) -> TrainingResult:
        """Train to the end, or until Ctrl-C, which saves and returns; in the last evaluation it comes too late to stop.

        Raises:
            TrainingError: a loss is not finite.
        """
        started = time.perf_counter()
        if self.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RUN, self._description())
        with self._faults_told("at the start"):
            self.batches.images.keep_if_small()
            judge = self._judge()
        if self.batches.images.remark:
            self.listener.on_warning(self.batches.images.remark)
        if self.execution.deterministic:
            self.listener.on_note(REPEATABLE)
        self.listener.on_start(
            config=self.config, folder=self.folder, epochs=self.epochs, steps=self.steps, done=self._steps_done()
        )
        with repeatable(self.execution.deterministic), stop_signal() as stopped:
            self._measure(judge)
            while self.progress.epoch < self.epochs:
                self._train_epoch(stopped)
                self._save(LAST, resumable=True)
                if anyone(bool(stopped)):
                    return TrainingResult(self.folder, True, self.selected_on, time.perf_counter() - started)
                self._measure(judge)
        return self._finish(time.perf_counter() - started, interrupted=anyone(bool(stopped)))

    def _description(self) -> dict[str, Any]:
        """What `run.json` says: how the run began, and how each session so far, with this one, carries it out."""
        run = Run(self.folder).info if self.begun else self._beginning()
        session = {"first_step": self._steps_done() + 1, **self._executed()}
        return run | {"executions": [*run.get("executions", []), session]}

    def _beginning(self) -> dict[str, Any]:
        manifest = self.manifest
        return describe_run(
            self.config,
            dataset=manifest.dataset,
            root=manifest.root,
            fingerprint=manifest.fingerprint,
            captions=captions_origin(manifest, self.config.captions),
        )

    def _executed(self) -> dict[str, Any]:
        """How the training is carried out here."""
        return self.execution.describe(self.device, self.dtype) | {"processes": processes()}

    def _compose(self) -> tuple[TrainingBatches, Composition]:
        """The batches as the encoder reads them, and the encoder with its objectives.

        Initial weights depend on the seed alone. A run goes on from its own.
        """
        # What the first process downloads or tokenises, the others find.
        with first_goes_ahead(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            if self.begun:
                start = Start(empty_encoder(read_header(self.folder / LAST)))
            else:
                start = build_start(self.config.model, torch.Generator().manual_seed(self.config.seed))
            batches = self._read_batches(start.encoder.tokenizer)
            composition = Composition(start.encoder, self.config.objectives, identities=batches.identities)
            composition.check_captions(self.config.captions)
        for name, remark in start.load_objectives(composition.objectives, self.manifest.fingerprint):
            self.listener.on_warning(remark, objective=name)
        with self._faults_told("at the start"):
            return batches, composition.to(self.device)

    @property
    def _rows(self) -> int:
        """How many rows of a batch each process has at least."""
        return self.config.batch_size // processes()

    def _descent(self) -> Descent:
        return Descent(
            self.composition,
            self.config.optim,
            self.execution,
            rows=self._rows,
            device=self.device,
            dtype=self.dtype,
            on_uncompiled=self._go_on_uncompiled,
        )

    def _faults_told(self, place: str, remedy: str | None = None) -> AbstractContextManager:
        """Within the block what the machine refuses is explained; see `tiprctl.execution.faults_told`."""
        remedy = remedy or memory_savers(self.execution, self.dtype, rows=self._rows)
        return faults_told(self.execution, place, device=self.device, remedy=remedy)

    def _read_batches(self, tokenizer: Tokenizer) -> TrainingBatches:
        return TrainingBatches(self.manifest, self.config, tokenizer, workers=self.workers)

    def _go_on_uncompiled(self, reason: str) -> None:
        """Say why the blocks are not compiled, and what to do about it."""
        self._uncompiled = True
        wanted = "Triton" if self.device.type == "cuda" else "a C++ compiler (g++, or the one that CXX names)"
        self.listener.on_warning(
            f"--compile: the training goes on without, since the compiler failed ({reason}). It needs {wanted}."
        )

    def _compile_everywhere_or_nowhere(self) -> None:
        """Run the blocks as they are where any process cannot compile them: the first one alone can tell of it."""
        if self.execution.compile and anyone(self._uncompiled):
            run_uncompiled(self.composition)
            if not self._uncompiled:
                self._go_on_uncompiled("in another process")

    def _judge(self) -> EvaluationData | None:
        if self.selected_on == "last":
            return None
        split = self.manifest.split(self.selected_on)
        return EvaluationData(split, self.config.model.image_size, workers=self.workers)

    def take_steps(self) -> Iterator[Step]:
        """The steps that are left of the epoch under way, each taken when it is asked for; nothing is saved."""
        self.composition.train()
        skip = self.progress.step
        batches = self.batches.epoch(self.progress.epoch, skip=skip, device=self.device)
        for _ in range(self._steps_of_epoch() - skip):
            with self._faults_told(f"at step {self._steps_done() + 1}"):
                batch = next(batches)
                rate = self._set_learning_rate()
                losses = self._step(batch)
            self.progress.step += 1
            yield Step(batch.share.total, rate, losses.parts)

    def _train_epoch(self, stopped: StopFlag) -> None:
        """Train what is left of the epoch, or until asked to stop: all processes after the same step."""
        started, pairs, rate = time.perf_counter(), 0, 0.0
        pending: list[dict[str, Tensor]] = []
        for step in self.take_steps():
            pending.append(step.losses)
            pairs, rate = pairs + step.pairs, step.learning_rate
            self.listener.on_step(step.pairs)
            if len(pending) == CHECK_EVERY:
                self._look(pending)
            if anyone(bool(stopped)):
                break
        self._look(pending)
        self._check_weights()
        if self.progress.step == self._steps_of_epoch():
            speed = pairs / (time.perf_counter() - started)
            self.progress.close_epoch(learning_rate=rate, samples_per_second=speed)

    def _steps_of_epoch(self) -> int:
        """How many steps the epoch under way has: the last one may be cut."""
        return min(self.batches.steps, self.steps - self.progress.epoch * self.batches.steps)

    def _steps_done(self) -> int:
        return min(self.steps, self.progress.epoch * self.batches.steps + self.progress.step)

    def _set_learning_rate(self) -> float:
        done, epochs = self._steps_done() / self.batches.steps, self.steps / self.batches.steps
        rate = self.config.optim.lr * schedule_factor(done, epochs, self.config.optim)
        self.descent.set_rate(rate)
        return rate

    def _step(self, batch: Any) -> Losses:
        """One descent on one batch."""
        place = self.config.seed, self.progress.epoch, self.progress.step
        of_objectives, of_dropout = (step_generator(*place, purpose=purpose) for purpose in (1, 3))
        return self.descent(batch, self._steps_done() / self.steps, of_objectives, of_dropout)

    def _look(self, pending: list[dict[str, Tensor]]) -> None:
        """Fetch the losses of the last steps, add them to the epoch's means, and empty the list."""
        if not pending:
            return
        first = self._steps_done() - len(pending)
        fetched = iter(average(torch.stack([value.float() for parts in pending for value in parts.values()])).tolist())
        for offset, parts in enumerate(pending):
            values = {name: next(fetched) for name in parts}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingError(
                        f"The loss {name} is {value} at step {first + offset + 1} (epoch {self.progress.epoch + 1})",
                        where=self.folder,
                        remedy=REMEDY,
                    )
            self.progress.add(values)
        pending.clear()

    def _check_weights(self) -> None:
        """Refuse weights that a last update has ruined, before they are saved over good ones."""
        for name, parameter in self.composition.named_parameters():
            if not parameter.isfinite().all():
                active = ", ".join(config.name for config in self.config.objectives)
                raise TrainingError(
                    f"The weights are not finite after step {self._steps_done()} ({name}; objectives {active})",
                    where=self.folder,
                    remedy=REMEDY,
                )

    def _measure(self, judge: EvaluationData | None) -> None:
        """Measure and record the last epoch that was trained through, unless that is done; keep it if it is the best.

        Its weights are saved before: whoever stops the evaluation loses no training.
        """
        trained = self.progress.trained
        if not trained or len(self.records) == trained["epoch"]:
            return
        with self._faults_told(f"measuring epoch {trained['epoch']}", ROOM):
            evaluation = evaluate(self._embedder(), judge) if judge else None
        record = EpochRecord(**trained, evaluation=evaluation, best=False)
        if self.best is None or record.score > self.best.score:
            record = replace(record, best=True)
            self._save(BEST, resumable=False)
        self.records.append(record)
        if self.leads:
            write_records(self.folder / METRICS, map(asdict, self.records))
        self.listener.on_epoch(record)

    @property
    def best(self) -> EpochRecord | None:
        """The epoch that is selected so far."""
        return next((record for record in reversed(self.records) if record.best), None)

    def _embedder(self) -> Embedder:
        return Embedder(self.composition.encoder, device=self.device, amp=self.config.amp)

    def _finish(self, seconds: float, *, interrupted: bool) -> TrainingResult:
        best = self.best
        if self.leads:
            write_json(
                self.folder / RESULT,
                {
                    "epoch": best.epoch,
                    "selected_on": self.selected_on,
                    "seconds": round(seconds, 1),
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                    "evaluation": asdict(best.evaluation) if best.evaluation else None,
                },
            )
        return TrainingResult(self.folder, interrupted, self.selected_on, seconds, best.epoch, best.evaluation)

    def _save(self, name: str, *, resumable: bool) -> None:
        """Write a checkpoint: encoder and objectives, and where it should be continued the optimiser as well."""
        if not self.leads:
            return
        weights = self.composition.state_dict()
        header = {
            **encoder_header(self.composition.encoder),
            "config": to_dict(self.config),
            "dataset": self.manifest.dataset,
            "data_root": str(self.manifest.root),
            "data_fingerprint": self.manifest.fingerprint,
            "captions": Run(self.folder).info.get("captions"),
            "epoch": self.progress.epoch,
            "selected_on": self.selected_on if name == BEST else "last",
            "fingerprint": weights_fingerprint(
                {key: value for key, value in weights.items() if key.startswith(ENCODER)}
            ),
        }
        if resumable:
            tensors, values = self.descent.state()
            weights |= {OPTIMIZER + key: tensor for key, tensor in tensors.items()}
            header |= {"progress": asdict(self.progress), **values}
        save_checkpoint(self.folder / name, weights, header)

    def _restore(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take up the run where its last checkpoint left it; what it holds for the descent is returned.

        Raises:
            InputError: the data set, or its pruned captions, are not those that the run began with.
        """
        file = self.folder / LAST
        info = Run(self.folder).info
        known = info["data_fingerprint"]
        if known != self.manifest.fingerprint:
            raise InputError(
                f"The data set has changed since the run began (fingerprint {self.manifest.fingerprint}, was {known})",
                where=self.manifest.root,
                remedy="Train anew, or prepare the data set as it was.",
            )
        self._check_captions(info)
        self._compare_executions()
        tensors, header = read_checkpoint(file)
        moments = {name: tensors.pop(name) for name in list(tensors) if name.startswith(OPTIMIZER)}
        load_weights(self.composition, tensors, file)
        self.progress = Progress(**header["progress"])
        lines = read_records(self.folder / METRICS)[: self.progress.epoch]
        self.records = [from_dict(EpochRecord, line) for line in lines]
        if len(lines) < self.progress.epoch - 1:
            raise InputError(
                f"{len(lines)} epochs are recorded, {self.progress.epoch} were trained: the best one is not known",
                where=self.folder / METRICS,
                remedy="Put the file back as it was, or train anew.",
            )
        return {name.removeprefix(OPTIMIZER): value for name, value in moments.items()}, header

    def _compare_executions(self) -> None:
        """Tell what this session does otherwise than the one before; runs of older versions do not tell."""
        executions, here = Run(self.folder).executions, self._executed()
        before = executions[-1] if executions else here
        changed = [
            f"{name.replace('_', ' ')} {_said(here[name])} (was {_said(before[name])})"
            for name in here
            if name in before and name != "threads" and before[name] != here[name]
        ]
        if changed:
            self.listener.on_note(f"The run goes on otherwise than so far: {', '.join(changed)}.")
        known = before["threads"]
        if known != here["threads"]:
            self.listener.on_warning(
                f"The run used {known} threads so far and goes on with {here['threads']}: sums may differ in their "
                f"last digits. OMP_NUM_THREADS={known} repeats them."
            )

    def _check_captions(self, info: Mapping[str, Any]) -> None:
        """Refuse captions that another tagger pruned; runs of older versions do not tell."""
        origin = captions_origin(self.manifest, self.config.captions)
        known = info.get("captions", origin)
        if known != origin:
            raise InputError(
                f"The run began with captions pruned by {known['tagger']} {known['version']}, "
                f"now they are by {origin['tagger']} {origin['version']}",
                where=self.manifest.root,
                remedy=f"Train anew, or prune them as they were: tiprctl augment {self.manifest.root} "
                f"--tagger {known['tagger']}",
            )


def _said(value: object) -> str:
    """A lever's value as people say it."""
    return str(value) if not isinstance(value, bool) else "on" if value else "off"


def whole_steps(epochs: float, steps: int) -> int:
    """How many steps a training of so many epochs, of so many steps each, takes."""
    return max(1, round(epochs * steps))


def selection_split(config: TrainConfig, manifest: Manifest) -> str:
    """The split on which the epoch is chosen: `val` where there is one; `last` chooses none.

    Raises:
        UsageError: the split that was asked for is not in the data set.
    """
    if config.select_on == "auto":
        return "val" if "val" in manifest.splits else "last"
    if config.select_on != "last" and config.select_on not in manifest.splits:
        raise UsageError(
            f"{manifest.title} has no {config.select_on} split to select on",
            where="select_on",
            remedy=f"Choose one of: {', '.join([*(s for s in manifest.splits if s != 'train'), 'last'])}.",
        )
    return config.select_on

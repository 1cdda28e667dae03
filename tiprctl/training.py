"""The training loop. It knows batches, a composition of objectives and an optimiser; it reports and never prints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
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
    read_header,
    save_checkpoint,
    weights_fingerprint,
)
from tiprctl.config import TrainConfig, from_dict, to_dict
from tiprctl.data.batches import TrainingBatches, step_generator
from tiprctl.data.captions import captions_origin
from tiprctl.data.manifest import Manifest
from tiprctl.data.samplers import check_shares
from tiprctl.distributed import anyone, average, first_goes_ahead, first_makes, process, processes
from tiprctl.errors import InputError, TrainingError, UsageError
from tiprctl.evaluation import EvaluationData, evaluate
from tiprctl.execution import Execution, faults_told, repeatable
from tiprctl.gradients import Gradients, gradients_of
from tiprctl.interrupt import StopFlag, stop_signal
from tiprctl.models.compilation import checkpoint_blocks, compile_blocks
from tiprctl.models.embedder import Embedder
from tiprctl.objectives.composition import Composition, Losses
from tiprctl.optimisation import (
    build_optimizer,
    clip_gradients,
    pack_optimizer,
    schedule_factor,
    set_learning_rate,
    unpack_optimizer,
)
from tiprctl.precision import amp_dtype, autocast
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
REPEATABLE = (
    "--deterministic: kernels whose sums depend on the order of threads, and cuDNN's search for the fastest ones, are "
    "off, and new memory is filled. A step may take longer."
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
        self.batches, self.composition = self._compose()
        self.steps = whole_steps(config.epochs, self.batches.steps)
        self.epochs = math.ceil(self.steps / self.batches.steps)
        self.optimizer = build_optimizer(self.composition.roles(), config.optim)
        self.dtype = amp_dtype(config.amp, device, training=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        if self.begun:
            self._restore()
        self._change_blocks()
        self.gradients = self._gradients()

    def run(self) -> TrainingResult:
        """Train to the end, or until Ctrl-C, which saves and returns; in the last evaluation it comes too late to stop.

        Raises:
            TrainingError: a loss is not finite.
        """
        started = time.perf_counter()
        if self.leads and not self.begun:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RUN, self._description())
        self.batches.images.keep_if_small()
        if self.batches.images.remark:
            self.listener.on_warning(self.batches.images.remark)
        if self.execution.deterministic:
            self.listener.on_note(REPEATABLE)
        judge = self._judge()
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
        manifest = self.manifest
        run = describe_run(
            self.config,
            dataset=manifest.dataset,
            root=manifest.root,
            fingerprint=manifest.fingerprint,
            captions=captions_origin(manifest, self.config.captions),
        )
        return run | {"execution": self._executed()}

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
        return batches, composition.to(self.device)

    def _gradients(self) -> Gradients:
        return gradients_of(
            self.composition,
            parts=self.execution.accumulate,
            rows=self.config.batch_size // processes(),
            device=self.device,
            dtype=self.dtype,
            scale=self.scaler.scale,
        )

    def _read_batches(self, tokenizer: Tokenizer) -> TrainingBatches:
        return TrainingBatches(self.manifest, self.config, tokenizer, workers=self.workers)

    def _change_blocks(self) -> None:
        """Have the towers' and decoders' blocks run as the execution asks for."""
        if self.execution.checkpoint_blocks:
            checkpoint_blocks(self.composition)
        if self.execution.compile:
            with autocast(self.device, self.dtype):
                compile_blocks(self.composition, self._go_on_uncompiled)

    def _go_on_uncompiled(self, reason: str) -> None:
        """Say why the blocks are not compiled, and what to do about it."""
        wanted = "Triton" if self.device.type == "cuda" else "a C++ compiler (g++, or the one that CXX names)"
        self.listener.on_warning(
            f"--compile: the training goes on without, since the compiler failed ({reason}). It needs {wanted}."
        )

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
        for batch in islice(batches, self._steps_of_epoch() - skip):
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
        set_learning_rate(self.optimizer, rate)
        return rate

    def _step(self, batch: Any) -> Losses:
        """One descent on one batch."""
        place = self.config.seed, self.progress.epoch, self.progress.step
        of_objectives, of_dropout = (step_generator(*place, purpose=purpose) for purpose in (1, 3))
        with faults_told(self.execution, self._steps_done() + 1, device=self.device, dtype=self.dtype):
            self.optimizer.zero_grad(set_to_none=True)
            losses = self.gradients(batch, self._steps_done() / self.steps, of_objectives, of_dropout)
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.composition, self.config.optim.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return losses

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
            tensors, groups = pack_optimizer(self.optimizer)
            weights |= {OPTIMIZER + key: tensor for key, tensor in tensors.items()}
            header |= {"progress": asdict(self.progress), "scaler": self.scaler.state_dict(), "groups": groups}
        save_checkpoint(self.folder / name, weights, header)

    def _restore(self) -> None:
        """Take up the run where its last checkpoint left it.

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
        self._compare_threads(info)
        tensors, header = read_checkpoint(file)
        moments = {name: tensors.pop(name) for name in list(tensors) if name.startswith(OPTIMIZER)}
        load_weights(self.composition, tensors, file)
        unpack_optimizer(
            self.optimizer, {name.removeprefix(OPTIMIZER): value for name, value in moments.items()}, header["groups"]
        )
        if header["scaler"]:
            self.scaler.load_state_dict(header["scaler"])
        self.progress = Progress(**header["progress"])
        lines = read_records(self.folder / METRICS)[: self.progress.epoch]
        self.records = [from_dict(EpochRecord, line) for line in lines]
        if len(lines) < self.progress.epoch - 1:
            raise InputError(
                f"{len(lines)} epochs are recorded, {self.progress.epoch} were trained: the best one is not known",
                where=self.folder / METRICS,
                remedy="Put the file back as it was, or train anew.",
            )

    def _compare_threads(self, info: Mapping[str, Any]) -> None:
        """Warn where sums come out otherwise than in the run so far; runs of older versions do not tell."""
        known, here = info.get("execution", {}).get("threads"), torch.get_num_threads()
        if known not in (None, here):
            self.listener.on_warning(
                f"The run began with {known} threads and goes on with {here}: sums may differ in their last digits. "
                f"OMP_NUM_THREADS={known} repeats them."
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

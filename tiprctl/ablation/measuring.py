"""What a step of each training costs: time side by side, so that a noisy machine hits all alike; memory one by one."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median

import torch

from tiprctl.ablation.cost import Cost
from tiprctl.config import TrainConfig
from tiprctl.data.batches import TrainingBatches
from tiprctl.data.manifest import Manifest
from tiprctl.errors import TrainingError
from tiprctl.interrupt import ignore_interrupt
from tiprctl.meter import Meter, unseen
from tiprctl.objectives.composition import Composition
from tiprctl.progress import Progress
from tiprctl.tokenizer import Tokenizer
from tiprctl.training import Trainer

WARM_UP, MEASURED = 4, 60
"""Steps of each training that are not counted, and that are."""

WEIGHED = 16
"""Steps of each training whose memory is measured."""

STATUS = Path("/proc/self/status")
"""Where Linux tells what a process has in memory."""

REHEARSAL = Path("rehearsal")
"""The folder of trainings that are never saved."""


def measure_costs(trainers: Mapping[str, Trainer], meter: Meter = unseen) -> dict[str, Cost]:
    """The costs of trainings on the same images, by name. Takes steps with them; their weights are of no use after.

    All of them are in memory together, since their steps are taken in turn.
    """
    rounds = WARM_UP + MEASURED
    with meter("Time of a step, in turn", rounds * len(trainers), "steps") as advance:
        images = next(iter(trainers.values())).batches.images
        images.keep_if_small()
        for trainer in trainers.values():
            trainer.batches.images = images
        walks = {name: _waited_for(trainer) for name, trainer in trainers.items()}
        seconds = median_seconds(walks, rounds, advance)
    return {
        name: Cost(
            seconds=seconds[name],
            steps=trainer.batches.steps,
            parameters=sum(parameter.numel() for parameter in trainer.composition.parameters()),
            width=trainer.composition.encoder.head.width,
        )
        for name, trainer in trainers.items()
    }


def median_seconds(
    walks: Mapping[str, Iterator[None]], rounds: int, advance: Callable[[int], None]
) -> dict[str, float]:
    """The median duration of each walk's steps, taken in turn; the first `WARM_UP` are not counted.

    `advance` is told each step, off the clock. Each round begins with another walk: what runs after a heavy step finds
    emptier caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in walks}
    order = deque(walks)
    for _ in range(rounds):
        for name in order:
            started = time.perf_counter()
            next(walks[name])
            seconds[name].append(time.perf_counter() - started)
            advance(1)
        order.rotate(-1)
    return {name: median(values[WARM_UP:]) for name, values in seconds.items()}


def _waited_for(trainer: Trainer) -> Iterator[None]:
    """The steps of a training's first epoch, over and over, each given when the device is done with it."""
    while True:
        trainer.progress = Progress()
        for _ in trainer.take_steps():
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)
            yield


def peak_memory(config: TrainConfig, manifest: Manifest, *, device: torch.device, workers: int | None) -> int | None:
    """The bytes that weights, optimiser and `WEIGHED` steps of a training take at most, in a fresh process.

    On a CUDA device: what tensors took of its memory. On the CPU: how far the process's resident memory grew, but for
    the captions that the batches hold, which are the data set's and not the recipe's doing; None where the system does
    not tell (only Linux does). Ctrl-C ends the process.

    Raises:
        TrainingError: the process was ended from outside. TiprError: the training cannot be built, or take its steps.
    """
    # A fresh process, since neither freed memory nor the caches of an allocator go back to the system for sure.
    others = set(active_children())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=ignore_interrupt) as pool:
        try:
            return pool.submit(weigh, config, manifest, device, workers).result()
        except KeyboardInterrupt:
            # Left to itself it would take its steps to the end, and leaving the block would wait for that.
            for process in set(active_children()) - others:
                process.terminate()
            raise
        except BrokenProcessPool as error:
            raise TrainingError(
                f"The memory of recipe {config.recipe} was being measured when that process was ended from outside",
                where=str(device),
                remedy="Free some memory, or start again with a smaller batch_size (--set).",
            ) from error


def weigh(config: TrainConfig, manifest: Manifest, device: torch.device, workers: int | None) -> int | None:
    """What `peak_memory` tells, measured in this process, whose allocator must not have memory to spare."""
    on_cuda = device.type == "cuda"
    if not on_cuda and not STATUS.exists():
        return None
    _import_what_optimisers_do()
    kind = Trainer if on_cuda else _Weighed
    trainer = kind(config, manifest, REHEARSAL, device=device, workers=workers)
    for _ in islice(trainer.take_steps(), WEIGHED):
        pass
    return torch.cuda.max_memory_allocated(device) if on_cuda else _resident("VmHWM") - trainer.resident


class _Weighed(Trainer):
    """A training that remembers what of the resident memory is not its own: what was there before, and its batches."""

    def _compose(self) -> tuple[TrainingBatches, Composition]:
        self.resident = _resident("VmRSS")
        return super()._compose()

    def _read_batches(self, tokenizer: Tokenizer) -> TrainingBatches:
        # They need the tokenizer, which comes with the weights, so these are there already.
        weights = _resident("VmRSS") - self.resident
        batches = super()._read_batches(tokenizer)
        self.resident = _resident("VmRSS") - weights
        _forget_peak()
        return batches


def _import_what_optimisers_do() -> None:
    """Torch imports its compiler with the first step of an optimiser: 100 MB that no training is to blame for."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()


def _forget_peak() -> None:
    """Let the peak of resident memory start anew, from what is resident now (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident(entry: str) -> int:
    """The bytes that are resident now (`VmRSS`), or were at a time at most (`VmHWM`): proc_pid_status(5)."""
    return 1024 * int(re.search(rf"{entry}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))[1])

"""What a step of each subset costs, measured side by side so that a noisy machine hits all alike."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from tiprctl.progress import Progress
from tiprctl.training import Trainer

WARM_UP, MEASURED = 4, 60
"""Steps of each training that are not counted, and that are."""


@dataclass(frozen=True)
class Cost:
    """What a training costs: seconds a step (median), steps an epoch, and the parameters that it trains."""

    seconds: float
    steps: int
    parameters: int


def measure_costs(trainers: Mapping[str, Trainer]) -> dict[str, Cost]:
    """The costs of trainings on the same images, by name. Takes steps with them; their weights are of no use after.

    All of them are in memory together, since their steps are taken in turn.
    """
    images = next(iter(trainers.values())).batches.images
    images.keep_if_small()
    for trainer in trainers.values():
        trainer.batches.images = images
    walks = {name: _waited_for(trainer) for name, trainer in trainers.items()}
    seconds = median_seconds(walks, WARM_UP + MEASURED)
    return {
        name: Cost(seconds[name], trainer.batches.steps, sum(p.numel() for p in trainer.composition.parameters()))
        for name, trainer in trainers.items()
    }


def median_seconds(walks: Mapping[str, Iterator[None]], rounds: int) -> dict[str, float]:
    """The median duration of each walk's steps, taken in turn; the first `WARM_UP` are not counted.

    Each round begins with another walk: what runs after a heavy step finds emptier caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in walks}
    order = deque(walks)
    for _ in range(rounds):
        for name in order:
            started = time.perf_counter()
            next(walks[name])
            seconds[name].append(time.perf_counter() - started)
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

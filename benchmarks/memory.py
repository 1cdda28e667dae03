"""Memory that a training step takes at most, and its time, with what saves memory; a process for each.

python benchmarks/memory.py                     # SEN on ViT-B/16, batch 8 on the CPU or 128 on CUDA: minutes
python benchmarks/memory.py --quick             # a tiny encoder: seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import median

import torch
from _report import Report, Variant, megabytes, parser, publish, reset_peak, survey
from _step import TRAINABLE, TYPES, OurStep, chosen_names, compose, configure, draw_batch

from tiprctl.execution import Execution, peak_memory
from tiprctl.models.clip import SIZES


@dataclass(frozen=True)
class Way:
    """A way to take the same step."""

    name: str
    precision: str
    execution: Execution


@dataclass(frozen=True)
class Cost:
    """What weights, optimiser and steps take at most, in bytes, and the median seconds of a step."""

    way: Way
    peak: int
    seconds: float


class Weighed:
    """A training in a fresh process, and what was in that process's memory before it came."""

    def __init__(self, recipe: str, model: str, batch: int, device: str, way: Way):
        # Torch imports its compiler with the first step of an optimiser: 100 MB that no training is to blame for.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()
        self._device = torch.device(device)
        self._way = way
        config = configure(recipe, model)
        pairs = draw_batch(config, batch, device)
        reset_peak()
        self._before = 0 if self._device.type == "cuda" else self._peak()
        composition = compose(config, device)
        self._step = OurStep(composition, config, pairs, device, way.execution, (way.precision,))

    def take(self, steps: int) -> tuple[int, list[float]]:
        """The peak so far in bytes, and the seconds of each of some steps."""
        seconds = []
        for _ in range(steps):
            self._step.take(self._way.precision)
            seconds.append(self._step.clock.read()["step"])
        return self._peak() - self._before, seconds

    def _peak(self) -> int:
        return peak_memory(self._device) or 0


def weigh(way: Way, chosen: argparse.Namespace) -> Cost:
    """The cost of a way, in a process of its own; the first step, which is not timed, makes the optimiser's state."""
    prepare = partial(Weighed, chosen.recipe, chosen.model, chosen.batch, chosen.device, way)
    with closing(Variant(prepare, Weighed.take, threads=chosen.threads)) as process:
        first, _ = process.measure(1).result
        later, seconds = process.measure(chosen.rounds).result
    return Cost(way, max(first, later), median(seconds))


def ways(precisions: Sequence[str], parts: int) -> Iterator[Way]:
    """All that saves memory, alone and together, in each precision; first what saves nothing."""
    for precision, checkpoint, accumulate in product(precisions, (False, True), (1, parts)):
        saving = [
            *(["--checkpoint-blocks"] if checkpoint else []),
            *([f"--accumulate {accumulate}"] if accumulate > 1 else []),
        ]
        execution = Execution(checkpoint_blocks=checkpoint, accumulate=accumulate)
        yield Way(" ".join(saving) or "as it is", precision, execution)


def row(cost: Cost, first: Cost) -> tuple[str, ...]:
    return (
        f"{cost.way.name}, {cost.way.precision}",
        megabytes(cost.peak),
        f"{cost.peak / first.peak:.0%}",
        f"{cost.seconds:.3f}",
        f"{cost.seconds / first.seconds:.2f} x",
    )


def as_figures(cost: Cost, first: Cost) -> Mapping[str, object]:
    return {
        "name": cost.way.name,
        "precision": cost.way.precision,
        **asdict(cost.way.execution),
        "peak": cost.peak,
        "share_of_first": cost.peak / first.peak,
        "seconds": cost.seconds,
        "times_first": cost.seconds / first.seconds,
    }


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="a tiny encoder, in bf16 alone, one step each")
    on_cuda = torch.cuda.is_available()
    known.add_argument("--recipe", default="sen", choices=TRAINABLE)
    known.add_argument("--model", default="ViT-B-16", choices=SIZES)
    known.add_argument("--device", default="cuda" if on_cuda else "cpu")
    known.add_argument("--batch", type=int, default=128 if on_cuda else 8, help="pairs")
    known.add_argument("--precisions", type=partial(chosen_names, known=tuple(TYPES)), default="fp32,bf16")
    known.add_argument("--accumulate", type=int, default=4, help="parts of a batch")
    known.add_argument("--rounds", type=int, default=2, help="steps each; the median counts")
    known.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = known.parse_args()
    if chosen.quick:
        chosen.model, chosen.precisions, chosen.rounds = "tiny", ("bf16",), 1
    if min(chosen.rounds, chosen.threads) < 1 or not 2 <= chosen.accumulate <= chosen.batch:
        known.error("a batch has at least 2 parts, no more than pairs; every other number is at least 1")
    return chosen


def main() -> int:
    chosen = options()
    costs = [weigh(way, chosen) for way in ways(chosen.precisions, chosen.accumulate)]
    first = costs[0]
    report = Report(
        f"Memory of {chosen.recipe} on {chosen.model}, batch {chosen.batch}",
        ("", "at most", "of the first", "seconds", "time"),
        [row(cost, first) for cost in costs],
        {
            "recipe": chosen.recipe,
            "model": chosen.model,
            "batch": chosen.batch,
            "runs": [as_figures(cost, first) for cost in costs],
        },
        ["Weights, optimiser and steps together; each way in a process of its own, one after the other"],
    )
    publish(report, survey(chosen.threads, device=chosen.device), as_json=chosen.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

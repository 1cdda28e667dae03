"""Time of a training step, whole and by part: ours against a plain one in the order of the published code.

python benchmarks/train_step.py                     # ViT-B/16, batch 8 on the CPU or 128 on CUDA: minutes
python benchmarks/train_step.py --quick             # a tiny encoder: seconds
python benchmarks/train_step.py --compile --recipes sen
"""

from __future__ import annotations

import argparse
import gc
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from _report import Report, parser, publish, share_of_ceiling, survey, verdict
from _step import (
    TRAINABLE,
    TYPES,
    OurStep,
    PlainStep,
    Step,
    chosen_names,
    compose,
    configure,
    deviation,
    draw_batch,
    has_plain,
    lengths,
)
from torch.utils.flop_counter import FlopCounterMode

from tiprctl.execution import Execution
from tiprctl.models.clip import SIZES

PARTS = ("image", "masked image", "text", "objectives", "backward", "optimiser")
GOALS = {("cpu", "fp32"): 1.25, ("cpu", "bf16"): 2.0, ("cuda", "fp16"): 1.5, ("cuda", "bf16"): 1.5}
"""How many times as fast as the plain step, by device and precision; the plain one is in `REFERENCE`."""

REFERENCE = {"cpu": "fp32", "cuda": "fp16"}
TOLERANCE = 1e-4  # of a loss


@dataclass(frozen=True)
class Contestant:
    """A way to take a step; `flops` are the floating-point operations of its matrix products and attention."""

    name: str
    step: Step
    precision: str
    flops: float


@dataclass(frozen=True)
class Outcome:
    """The median seconds of a contestant's step, whole and by part; `ratio`: how many times as fast as plain."""

    contestant: Contestant
    seconds: float
    parts: Mapping[str, float]
    ratio: float | None


def compare(recipe: str, chosen: argparse.Namespace) -> tuple[list[Outcome], str]:
    """Take the steps of a recipe in turn; what came of it, and a note on the batch and the losses."""
    config = configure(recipe, chosen.model)
    batch = draw_batch(config, chosen.batch, chosen.device)
    composition = compose(config, chosen.device)
    ours = OurStep(composition, config, batch, chosen.device, precisions=chosen.precisions)
    counts = lengths(batch.token_ids)
    note = f"{recipe}: captions of {counts.mean:.0f} tokens on average, the longest {counts.longest}"
    contestants = []
    if has_plain(config):
        # The copy of the weights is taken before anything is learnt.
        plain = PlainStep(composition, config, batch, chosen.device)
        off = deviation(ours.losses(), plain.losses())
        note += f"; the losses of both differ by {off:.0e} of a loss at most"
        if off > TOLERANCE:
            raise SystemExit(f"{note}, which is more than {TOLERANCE}: not the same step")
        contestants.append(Contestant("plain", plain, chosen.reference, operations(plain, chosen.reference)))
    flops = operations(ours, chosen.precisions[0])
    contestants += [Contestant("tiprctl", ours, precision, flops) for precision in chosen.precisions]
    for name, execution in chosen.others.items():
        other = OurStep(compose(config, chosen.device), config, batch, chosen.device, execution, chosen.precisions)
        contestants += [Contestant(name, other, precision, flops) for precision in chosen.precisions]
    return race(contestants, chosen.rounds), note


def operations(step: Step, precision: str) -> float:
    """What a step computes, by taking one: this warms it up too."""
    with FlopCounterMode(display=False) as counter:
        step.take(precision)
    return counter.get_total_flops()


def race(contestants: Sequence[Contestant], rounds: int) -> list[Outcome]:
    """Take `rounds` steps of each, in turn, after one that is not counted; each round begins with another."""
    seconds: list[list[dict[str, float]]] = [[] for _ in contestants]
    order = deque(range(len(contestants)))
    for number in range(rounds + 1):
        for index in order:
            contestant = contestants[index]
            contestant.step.clock.read()
            contestant.step.take(contestant.precision)
            if number:
                seconds[index].append(contestant.step.clock.read())
        order.rotate(-1)
    return list(outcomes(contestants, seconds))


def outcomes(contestants: Sequence[Contestant], seconds: Sequence[Sequence[Mapping[str, float]]]) -> Iterator[Outcome]:
    """The medians of each contestant's readings, against those of the plain one, which comes first."""
    wholes = [median(each["step"] for each in readings) for readings in seconds]
    for contestant, readings, whole in zip(contestants, seconds, wholes):
        parts = [split(each) for each in readings]
        of_plain = contestants[0].name == "plain" and contestant.name != "plain"
        yield Outcome(
            contestant,
            whole,
            {part: median(each[part] for each in parts) for part in PARTS},
            wholes[0] / whole if of_plain else None,
        )


def split(reading: Mapping[str, float]) -> dict[str, float]:
    """A reading by `PARTS`: what the forward pass takes beside the towers is the objectives'."""
    towers = {part: reading.get(part, 0.0) for part in PARTS[:3]}
    return {
        **towers,
        "objectives": reading["forward"] - sum(towers.values()),
        "backward": reading["gradients"] - reading["forward"],
        "optimiser": reading["optimiser"],
    }


def shortfalls(recipe: str, outcomes: Sequence[Outcome], kind: str) -> list[str]:
    """What falls short of the goals on a kind of device (`cpu`, `cuda`), a sentence each."""
    found = []
    for each in outcomes:
        precision = each.contestant.precision
        goal = GOALS.get((kind, precision))
        if each.ratio is not None and goal is not None and each.ratio < goal:
            found.append(
                f"{recipe}: a step in {precision} is {each.ratio:.2f} times as fast as the plain one, not {goal}"
            )
    return found


def row(recipe: str, outcome: Outcome, ceiling: Mapping[str, float]) -> tuple[str, ...]:
    contestant = outcome.contestant
    share = share_of_ceiling(outcome.seconds, contestant.flops, ceiling[contestant.precision])
    return (
        f"{recipe}, {contestant.name} {contestant.precision}",
        *(f"{outcome.parts[part]:.3f}" for part in PARTS),
        f"{outcome.seconds:.3f}",
        f"{share:.0%}",
        "" if outcome.ratio is None else f"{outcome.ratio:.2f} x",
    )


def as_figures(recipe: str, outcome: Outcome, ceiling: Mapping[str, float]) -> dict[str, object]:
    contestant = outcome.contestant
    return {
        "recipe": recipe,
        "name": contestant.name,
        "precision": contestant.precision,
        "seconds": outcome.seconds,
        "parts": dict(outcome.parts),
        "flops": contestant.flops,
        "share_of_ceiling": share_of_ceiling(outcome.seconds, contestant.flops, ceiling[contestant.precision]),
        "ratio": outcome.ratio,
    }


@dataclass(frozen=True)
class Finding:
    """What is kept of a recipe once its models are let go."""

    rows: list[tuple[str, ...]]
    figures: list[dict[str, object]]
    missed: list[str]
    note: str


def find(recipe: str, chosen: argparse.Namespace, ceiling: Mapping[str, float]) -> Finding:
    """Compare the steps of a recipe, and free their memory for those of the next."""
    results, note = compare(recipe, chosen)
    finding = Finding(
        [row(recipe, each, ceiling) for each in results],
        [as_figures(recipe, each, ceiling) for each in results],
        shortfalls(recipe, results, chosen.kind),
        note,
    )
    del results
    gc.collect()
    return finding


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="a tiny encoder, batch 4, two rounds; the goals are not enforced")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    recipes = partial(chosen_names, known=TRAINABLE)
    known.add_argument("--recipes", type=recipes, default="baseline,irra,sen", help=f"of {', '.join(TRAINABLE)}")
    known.add_argument("--model", default="ViT-B-16", choices=SIZES)
    known.add_argument("--device", default=default)
    known.add_argument("--batch", type=int, help="pairs (default: 8 on the CPU, 128 on CUDA)")
    known.add_argument("--precisions", type=partial(chosen_names, known=tuple(TYPES)), help="of ours")
    known.add_argument("--reference", choices=TYPES, help="precision of the plain step (default: fp32; fp16 on CUDA)")
    known.add_argument("--compile", action="store_true", help="ours with compiled blocks too")
    known.add_argument("--deterministic", action="store_true", help="ours with repeatable kernels too")
    known.add_argument("--rounds", type=int, help="steps each, in turn; the median counts (default: 3; 20 on CUDA)")
    known.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = known.parse_args()
    chosen.kind = torch.device(chosen.device).type
    on_cuda = chosen.kind == "cuda"
    chosen.batch = chosen.batch or (128 if on_cuda else 8)
    chosen.precisions = chosen.precisions or (("fp16", "bf16") if on_cuda else ("fp32", "bf16"))
    chosen.reference = chosen.reference or REFERENCE.get(chosen.kind, "fp32")
    chosen.rounds = chosen.rounds or (20 if on_cuda else 3)
    levers = {"compiled": (chosen.compile, Execution(compile=True))}
    levers["deterministic"] = (chosen.deterministic, Execution(deterministic=True))
    chosen.others = {name: execution for name, (asked, execution) in levers.items() if asked}
    if chosen.quick:
        chosen.model, chosen.batch, chosen.rounds = "tiny", 4, 2
    if min(chosen.batch // 2, chosen.rounds, chosen.threads) < 1:
        known.error("a batch is of at least 2, every other number at least 1")
    if not on_cuda and "fp16" in (*chosen.precisions, chosen.reference):
        known.error("fp16 is for CUDA")
    return chosen


def main() -> int:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    machine = survey(chosen.threads, device=chosen.device)
    findings = [find(recipe, chosen, machine.ceiling) for recipe in chosen.recipes]
    report = Report(
        f"A training step of {chosen.model}, batch {chosen.batch}, seconds",
        ("", *PARTS, "step", "of ceiling", "faster"),
        [line for each in findings for line in each.rows],
        {"model": chosen.model, "batch": chosen.batch, "runs": [run for each in findings for run in each.figures]},
        [each.note for each in findings],
    )
    publish(report, machine, as_json=chosen.json)
    # Of so small an encoder the fixed costs are the larger part.
    return verdict([sentence for each in findings for sentence in each.missed], enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())

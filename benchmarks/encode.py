"""Images and captions that the encoder reads in a second: ours against a plain one, captions padded, sequence first.

python benchmarks/encode.py                     # ViT-B/16 at 384 x 128: a minute or two on a CPU
python benchmarks/encode.py --quick             # a tiny encoder: seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from _report import Report, parser, publish, share_of_ceiling, survey, timed
from _step import AMP, TYPES, captions, chosen_names, compose, configure, lengths
from plain_step import PlainClip
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tiprctl.models.clip import SIZES, ClipConfig
from tiprctl.models.embedder import Embedder, over_captions
from tiprctl.pixels import normalise
from tiprctl.precision import autocast
from tiprctl.tokenizer import default_tokenizer

TOLERANCE = 1e-4  # of a cosine, in full precision


class PlainEncoder:
    """The towers in the published order: all captions padded to the context, as many as there are in one batch."""

    def __init__(self, clip: PlainClip, device: str):
        self.clip, self.device = clip.to(device).eval(), torch.device(device)

    @torch.no_grad()
    def images(self, pixels: Tensor, precision: str) -> Tensor:
        """Images `(B, 3, H, W)` uint8 to unit features `(B, D)`."""
        with autocast(self.device, TYPES[precision]):
            tokens = self.clip.encode_image(normalise(pixels.to(self.device)))
        return F.normalize(tokens[:, 0].float(), dim=1)

    @torch.no_grad()
    def texts(self, token_ids: Tensor, precision: str) -> Tensor:
        """Padded captions `(B, 77)` to unit features `(B, D)`."""
        token_ids = token_ids.to(self.device)
        with autocast(self.device, TYPES[precision]):
            tokens = self.clip.encode_text(token_ids)
        rows = torch.arange(len(token_ids), device=self.device)
        return F.normalize(tokens[rows, token_ids.argmax(dim=1)].float(), dim=1)


@dataclass(frozen=True)
class Work:
    """Something to encode, in each of the ways that are compared."""

    kind: str
    batch: int
    ours: Callable[[str], Tensor]
    plain: Callable[[str], Tensor]


@dataclass(frozen=True)
class Rate:
    """Items a second and the share of the ceiling; `flops` are those that this way of encoding does itself.

    `ratio`: how many times as fast as the plain encoder in the first precision.
    """

    work: Work
    name: str
    precision: str
    flops: float
    per_second: float
    share: float
    ratio: float | None


class Encoders:
    """Both encoders with the same random weights, and what they encode."""

    def __init__(self, model: str, device: str):
        composition = compose(configure("baseline", model), device)
        encoder = composition.encoder
        self.clip: ClipConfig = encoder.clip.config
        self.device = torch.device(device)
        self.embedders = {precision: Embedder(encoder, device=self.device, amp=amp) for precision, amp in AMP.items()}
        plain = PlainClip(self.clip)
        plain.load_state_dict(encoder.clip.state_dict())
        self.plain = PlainEncoder(plain, device)

    def images(self, batch: int) -> Work:
        """A batch of noise."""
        generator = Generator().manual_seed(0)
        pixels = torch.randint(256, (batch, 3, *self.clip.image_size), generator=generator, dtype=torch.uint8)
        return Work(
            "images",
            batch,
            lambda precision: self.embedders[precision].image_features(pixels),
            lambda precision: self.plain.images(pixels, precision),
        )

    def texts(self, batch: int) -> Work:
        """Built-in captions."""
        token_ids = torch.from_numpy(default_tokenizer()(captions(batch)))
        padded = F.pad(token_ids, (0, self.clip.context_length - token_ids.shape[1]))
        return Work(
            "captions",
            batch,
            lambda precision: over_captions(self.embedders[precision].text_features, token_ids),
            lambda precision: self.plain.texts(padded, precision),
        )


def measure(work: Work, precisions: tuple[str, ...], rounds: int, device: str, ceiling: dict[str, float]) -> list[Rate]:
    """Both encoders in each precision, in turn; the medians.

    Raises:
        SystemExit: their features differ in full precision.
    """
    off = float((work.ours("fp32") - work.plain("fp32")).abs().max())
    if off > TOLERANCE:
        raise SystemExit(f"The features of {work.kind} differ by {off}: not the same encoder")
    runs = [(name, precision) for precision in precisions for name in ("plain", "tiprctl")]
    ways = {run: partial(work.plain if run[0] == "plain" else work.ours, run[1]) for run in runs}
    flops = {name: operations(ways[name, precisions[0]]) for name in ("plain", "tiprctl")}
    for way in ways.values():
        way()
    taken = [[timed(ways[run], device) for run in runs] for _ in range(rounds)]
    seconds = {run: median(column) for run, column in zip(runs, zip(*taken))}
    first = seconds[runs[0]]
    return [
        Rate(
            work,
            *run,
            flops=flops[run[0]],
            per_second=work.batch / each,
            share=share_of_ceiling(each, flops[run[0]], ceiling[run[1]]),
            ratio=first / each if run != runs[0] else None,
        )
        for run, each in seconds.items()
    ]


def operations(way: Callable[[], Tensor]) -> float:
    """The floating-point operations of matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def row(rate: Rate) -> tuple[str, ...]:
    return (
        f"{rate.work.kind}, {rate.name} {rate.precision}",
        f"{rate.work.batch}",
        f"{rate.per_second:,.1f}",
        f"{rate.share:.0%}",
        "" if rate.ratio is None else f"{rate.ratio:.2f} x",
    )


def as_figures(rate: Rate) -> dict[str, object]:
    return {
        "kind": rate.work.kind,
        "name": rate.name,
        "precision": rate.precision,
        "batch": rate.work.batch,
        "flops": rate.flops,
        "per_second": rate.per_second,
        "share_of_ceiling": rate.share,
        "ratio": rate.ratio,
    }


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="a tiny encoder, small batches, three rounds")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    known.add_argument("--model", default="ViT-B-16", choices=SIZES)
    known.add_argument("--device", default=default)
    known.add_argument("--batches", type=numbers, help="images at a time (default: 1,8,32 on the CPU, 32,128,512)")
    known.add_argument("--captions", type=int, help="captions in all (default: 64 on the CPU, 2048)")
    known.add_argument("--precisions", type=partial(chosen_names, known=tuple(TYPES)))
    known.add_argument("--rounds", type=int, default=5, help="times each, in turn; the median counts")
    known.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = known.parse_args()
    on_cuda = torch.device(chosen.device).type == "cuda"
    chosen.batches = chosen.batches or ((32, 128, 512) if on_cuda else (1, 8, 32))
    chosen.captions = chosen.captions or (2048 if on_cuda else 64)
    chosen.precisions = chosen.precisions or (("fp32", "bf16", "fp16") if on_cuda else ("fp32", "bf16"))
    if chosen.quick:
        chosen.model, chosen.batches, chosen.captions, chosen.rounds = "tiny", (8,), 16, 3
    if min(*chosen.batches, chosen.captions, chosen.rounds, chosen.threads) < 1:
        known.error("every number is at least 1")
    if not on_cuda and "fp16" in chosen.precisions:
        known.error("fp16 is for CUDA")
    return chosen


def numbers(text: str) -> tuple[int, ...]:
    """A list such as `8,32`."""
    return tuple(int(number) for number in text.split(","))


def main() -> int:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    machine = survey(chosen.threads, device=chosen.device)
    encoders = Encoders(chosen.model, chosen.device)
    work = [*map(encoders.images, chosen.batches), encoders.texts(chosen.captions)]
    rates = [
        rate
        for each in work
        for rate in measure(each, chosen.precisions, chosen.rounds, chosen.device, machine.ceiling)
    ]
    counts = lengths(torch.from_numpy(default_tokenizer()(captions(chosen.captions))))
    report = Report(
        f"Encoding with {chosen.model}",
        ("", "batch", "a second", "of ceiling", "faster"),
        [row(rate) for rate in rates],
        {"model": chosen.model, "runs": [as_figures(rate) for rate in rates]},
        [
            f"Captions of {counts.mean:.0f} tokens on average, the longest {counts.longest}",
            f"The features of both encoders differ by less than {TOLERANCE} in fp32",
        ],
    )
    publish(report, machine, as_json=chosen.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

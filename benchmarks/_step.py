"""What the benchmarks of training share: a method with random weights, a batch of it, and its step, ours and plain."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any, Protocol

import torch
from _report import synchronise
from plain_step import OBJECTIVES, PlainModel, plain_adam, plain_batch
from torch import Generator, Tensor, nn

from tiprctl.config import TrainConfig
from tiprctl.data.batches import Batch
from tiprctl.data.synth_pedes.people import VIEWS, hidden_attributes, unique_people
from tiprctl.data.synth_pedes.wording import describe
from tiprctl.descent import Descent
from tiprctl.execution import Execution, repeatable
from tiprctl.models.clip import SIZES
from tiprctl.objectives.composition import Composition
from tiprctl.optimisation import clip_gradients
from tiprctl.precision import DTYPES, autocast
from tiprctl.recipes import RECIPES
from tiprctl.shares import Share
from tiprctl.starting import build_start
from tiprctl.tokenizer import default_tokenizer, row_lengths

IDENTITIES = 11_003
"""The training identities of CUHK-PEDES, which the classifier tells."""

AMP = {"fp32": "off", "bf16": "bf16", "fp16": "fp16"}
"""The modes of mixed precision by what the benchmarks call them."""

TYPES = {name: DTYPES[mode] for name, mode in AMP.items()}
SEED = 0
TRAINABLE = tuple(
    name
    for name, config in RECIPES.items()
    if not (config.captions.phrases or config.captions.mask_content or config.captions.mask_other)
)
"""The recipes whose batches need nothing but images and whole captions."""


def configure(recipe: str, model: str) -> TrainConfig:
    """A recipe with random weights on another size: `ViT-B-16`, `tiny` and so on; its own where that is the size."""
    config = RECIPES[recipe]
    encoder = replace(config.model, pretrained="none")
    if model != encoder.name:
        encoder = replace(encoder, name=model, image_size=SIZES[model].image_size)
    return replace(config, model=encoder)


def compose(config: TrainConfig, device: str) -> Composition:
    """The recipe's encoder and objectives with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        encoder = build_start(config.model, Generator().manual_seed(SEED)).encoder
        composition = Composition(encoder, config.objectives, identities=IDENTITIES)
    return composition.to(device).train()


def captions(count: int) -> list[str]:
    """Captions of different people in the built-in wording, the same each time."""
    rng = Random(SEED)
    people = islice(unique_people(SEED), count)
    views = (rng.choice(VIEWS) for _ in range(count))
    return [describe(person, hidden_attributes(person, view), view, rng).text for person, view in zip(people, views)]


def draw_batch(config: TrainConfig, size: int, device: str) -> Batch:
    """Noise for images, built-in captions cut to the longest; two neighbours are of one identity."""
    pixels = torch.randn(size, 3, *config.model.image_size, generator=Generator().manual_seed(SEED))
    token_ids = default_tokenizer()(captions(size))
    token_ids = torch.from_numpy(token_ids)[:, : int(row_lengths(token_ids).max())]
    pids = torch.arange(size) // 2
    return Batch(pixels.to(device), token_ids, pids.to(device), Share.whole(size))


class Clock:
    """Adds up the time of the named parts of a step: by the events of a CUDA device, which is not waited for."""

    def __init__(self, device: str):
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self._spans.append((part, start, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading, once the device is done."""
        synchronise(self._device)
        seconds: dict[str, float] = defaultdict(float)
        for part, start, end in self._spans:
            seconds[part] += start.elapsed_time(end) / 1e3 if isinstance(start, torch.cuda.Event) else end - start
        self._spans.clear()
        return dict(seconds)

    def watch(self, owner: object, method: str, part: str) -> None:
        """Take the time of each call of a method, or of what is called like one, from now on."""
        original = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return original(*args, **kwargs)

        setattr(owner, method, watched)

    def watch_towers(self, clip: nn.Module) -> None:
        """Take the time of each pass through the towers from now on: image, masked image, text."""
        encode_image = clip.encode_image

        def image(pixels: Tensor, keep: Tensor | None = None, **named: Any) -> Tensor:
            with self("image" if keep is None else "masked image"):
                return encode_image(pixels, keep, **named)

        clip.encode_image = image
        self.watch(clip, "encode_text", "text")

    def _now(self) -> Any:
        if not self._device.startswith("cuda"):
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Step(Protocol):
    """A step that can be taken again and again on the same batch, its parts on `clock`."""

    clock: Clock

    def losses(self) -> Mapping[str, Tensor]:
        """The weighted losses of the batch, by name, in full precision; nothing is learnt."""

    def take(self, precision: str) -> None:
        """Descend once; `precision` is a name in `TYPES`."""


class OurStep:
    """The step as `Trainer` takes it: its descent, one for each precision, all on the same weights."""

    def __init__(
        self,
        composition: Composition,
        config: TrainConfig,
        batch: Batch,
        device: str,
        execution: Execution | None = None,
        precisions: Sequence[str] = tuple(TYPES),
    ):
        self.composition, self.batch, self.execution = composition, batch, execution or Execution()
        self.clock = Clock(device)
        self.clock.watch_towers(composition.encoder.clip)
        self.clock.watch(composition, "forward", "forward")
        self._descents = {
            name: Descent(
                composition,
                config.optim,
                self.execution,
                rows=len(batch.pids),
                device=torch.device(device),
                dtype=TYPES[name],
                on_uncompiled=_refuse,
            )
            for name in precisions
        }
        for descent in self._descents.values():
            self.clock.watch(descent, "gradients", "gradients")
            self.clock.watch(descent, "update", "optimiser")

    @torch.no_grad()
    def losses(self) -> dict[str, Tensor]:
        parts = self.composition(self.batch, 0.0, Generator().manual_seed(SEED)).parts
        return {each.name: each.weight * parts[each.name] for each in self.composition.configs}

    def take(self, precision: str) -> None:
        with repeatable(self.execution.deterministic), self.clock("step"):
            masks, dropout = (Generator().manual_seed(SEED) for _ in range(2))
            self._descents[precision](self.batch, 0.0, masks, dropout)


class PlainStep:
    """The same as the published code orders it, from the same weights."""

    def __init__(self, composition: Composition, config: TrainConfig, batch: Batch, device: str):
        self.device = torch.device(device)
        self.model = PlainModel(composition).to(device)
        self.batch = plain_batch(batch, composition, Generator().manual_seed(SEED))
        self.optimizer = plain_adam(self.model, composition, config.optim)
        self.clock = Clock(device)
        self.clock.watch_towers(self.model.encoder["clip"])
        self._limit = config.optim.clip_norm
        self._scalers = {name: torch.amp.GradScaler(self.device.type, enabled=name == "fp16") for name in TYPES}

    @torch.no_grad()
    def losses(self) -> dict[str, Tensor]:
        return self.model(self.batch)

    def take(self, precision: str) -> None:
        scaler = self._scalers[precision]
        with self.clock("step"):
            with self.clock("gradients"):
                with self.clock("forward"), autocast(self.device, TYPES[precision]):
                    losses = self.model(self.batch)
                for loss in losses.values():
                    loss.item()
                self.optimizer.zero_grad(set_to_none=False)
                scaler.scale(sum(losses.values())).backward()
            with self.clock("optimiser"):
                scaler.unscale_(self.optimizer)
                clip_gradients(self.model, self._limit)
                scaler.step(self.optimizer)
                scaler.update()


def _refuse(reason: str) -> None:
    """A benchmark of compiled blocks means nothing without a compiler."""
    raise SystemExit(f"The blocks cannot be compiled: {reason}")


def has_plain(config: TrainConfig) -> bool:
    """Whether the plain step can train a recipe."""
    return config.model.head == "global" and {each.name for each in config.objectives} <= OBJECTIVES


def deviation(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> float:
    """The largest relative difference of a loss."""
    return max(abs(float(ours[name]) / float(plain[name]) - 1) for name in plain)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the captions of a batch, start and end included."""

    mean: float
    longest: int


def lengths(token_ids: Tensor) -> Lengths:
    """How long the captions of a batch are."""
    counts = row_lengths(token_ids.cpu())
    return Lengths(float(counts.float().mean()), int(counts.max()))


def chosen_names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """A list such as `baseline,sen`, for an option of argparse.

    Raises:
        ValueError: a name is not known; argparse tells it.
    """
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(known)}")
    return names

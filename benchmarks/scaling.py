"""Memory and communication of training on many devices: arithmetic, from what one pair makes autograd keep, and from
what the losses of a recipe read of two pairs.

python benchmarks/scaling.py                 # ViT-B/16 and ViT-L/14 on 8 devices, batches of 128 to 4096: half a minute
python benchmarks/scaling.py --processes 32
python benchmarks/scaling.py --quick         # the tiny encoder
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from _report import Report, parser, publish, show, survey
from torch import Generator, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from tiprctl.data.batches import Batch
from tiprctl.models import attention
from tiprctl.models.clip import SIZES, Block, Clip, ClipConfig
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import encode as encode_batch
from tiprctl.models.rows import Gathered, GatheredEncodings
from tiprctl.objectives.composition import Composition
from tiprctl.precision import autocast
from tiprctl.prompts import Prompts
from tiprctl.recipes import RECIPES
from tiprctl.shares import Share

MODELS = ("ViT-B-16", "ViT-L-14")
METHODS = ("sen", "irra", "cfine", "scvd")
BATCHES = (128, 256, 512, 1024, 2048, 4096)
TYPES = {"fp32": None, "bf16": torch.bfloat16}
FLOAT = 4
"""Bytes of a float32, in which weights, gradients and the optimiser's states are held."""

ADAM_STATES = 2
BANDWIDTHS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "400 GB/s": 400e9}
"""Bytes a second that a device sends: Ethernet, InfiniBand, NVLink."""


@dataclass(frozen=True)
class Sizes:
    """A model's fixed bytes, and those that each pair of the batch adds to what autograd keeps."""

    model: str
    parameters: int
    kept: Mapping[str, int]
    checkpointed: Mapping[str, int]

    @property
    def weights(self) -> int:
        return FLOAT * self.parameters

    @property
    def held(self) -> int:
        """Weights, gradients and the optimiser's states."""
        return (2 + ADAM_STATES) * self.weights


@dataclass(frozen=True)
class Load:
    """What a batch of `batch` pairs asks of each of `processes` devices, in bytes and seconds."""

    model: str
    batch: int
    processes: int
    pairs: int
    memory: Mapping[str, int]
    checkpointed: Mapping[str, int]
    reduced: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Traffic:
    """What the losses of a recipe make the devices tell each other of each pair of the batch, in bytes.

    `gathered`: what all devices get of it; `returned`: the part of this whose gradients go back where it came from.
    """

    model: str
    recipe: str
    gathered: int
    returned: int

    def sent(self, batch: int, processes: int) -> int:
        """Bytes that each device sends in a step, as it sends to all others in a ring.

        An all-gather forward, a reduce-scatter backward. Unequal shares are summed whole, at twice the bytes.
        """
        return batch * (self.gathered + self.returned) * (processes - 1) // processes


def measure(model: str) -> Sizes:
    """Run the towers of a model over one pair and two, with captions of full length, and see what autograd keeps."""
    config = SIZES[model]
    clip = Clip(config).train()
    return Sizes(
        model,
        parameters=sum(parameter.numel() for parameter in clip.parameters()),
        kept={name: per_pair(partial(encode, clip, config), clip, dtype) for name, dtype in TYPES.items()},
        checkpointed={name: checkpointed(clip, config, dtype) for name, dtype in TYPES.items()},
    )


def per_pair(run: Callable[[int], object], module: nn.Module, dtype: torch.dtype | None) -> int:
    """Bytes that each further pair makes autograd keep; what does not grow with it, as cast weights, is left out."""
    one, two = (kept_bytes(partial(run, pairs), module, dtype) for pairs in (1, 2))
    return two - one


def kept_bytes(run: Callable[[], object], module: nn.Module, dtype: torch.dtype | None) -> int:
    """Bytes that autograd keeps of a forward pass for its backward pass, without the module's parameters."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(torch.device("cpu"), dtype), fused_attention():
        # The result holds the graph until everything is counted.
        result = run()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    del result
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within the block attention is PyTorch's, as on a GPU, where the CPU would else write out and keep its weights."""

    def fused(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        mask = None if visible is None else visible[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)

    with patch.object(attention, "_written_out", fused):
        yield


def encode(clip: Clip, config: ClipConfig, pairs: int) -> tuple[Any, Any]:
    """The tokens of so many images and captions of full length."""
    pixels = torch.zeros(pairs, 3, *config.image_size)
    token_ids = torch.ones(pairs, config.context_length, dtype=torch.int64)
    return clip.encode_image(pixels), clip.encode_text(token_ids)


def checkpointed(clip: Clip, config: ClipConfig, dtype: torch.dtype | None) -> int:
    """Bytes a pair where only what enters each block is kept, and one block at a time is computed again."""
    towers = (
        (clip.visual.transformer, 1 + config.grid[0] * config.grid[1], config.vision_width),
        (clip.transformer, config.context_length, config.text_width),
    )
    for transformer, _, _ in towers:
        transformer.checkpointed = True
    outside = per_pair(partial(encode, clip, config), clip, dtype)
    for transformer, _, _ in towers:
        transformer.checkpointed = False
    entering = sum(len(tower.resblocks) * length * width * FLOAT for tower, length, width in towers)
    again = max(
        per_pair(partial(_through, tower.resblocks[0], length, width), tower, dtype) for tower, length, width in towers
    )
    return outside + entering + again


def _through(block: Block, length: int, width: int, pairs: int) -> Tensor:
    return block(torch.zeros(pairs, length, width, requires_grad=True), causal=False)


def traffic(model: str, recipe: str) -> Traffic:
    """Let the losses of a recipe read two pairs, and see what of them a device would have to have of all pairs."""
    composition = shallow(model, recipe)
    batch = full_batch(composition.encoder.clip.config, recipe)
    own = encode_batch(composition.encoder, batch, composition.needs(0), Generator().manual_seed(0))
    wholes = GatheredEncodings(own, len(batch.share)), Gathered(batch, len(batch.share))
    for term in composition.terms(0):
        if term.count is None:
            term.loss(*wholes)
    read = [tensor for whole in wholes for tensor in gathered_in(whole)]
    size, floats = (
        sum(tensor.nbytes for tensor in tensors) // len(batch.share)
        for tensors in (read, filter(torch.is_floating_point, read))
    )
    return Traffic(model, recipe, size, floats)


def shallow(model: str, recipe: str) -> Composition:
    """A recipe with towers of one block on a model's size: what is read of their tokens is the same at any depth."""
    config, size = RECIPES[recipe], SIZES[model]
    # To the pixel, as SEN restores images: the rest makes no patch anyway.
    whole = tuple(side // size.patch_size * size.patch_size for side in size.image_size)
    clip = Clip(replace(size, image_size=whole, vision_layers=1, text_layers=1))
    clip.initialise(Generator().manual_seed(0))
    encoder = DualEncoder(clip, config.model.head, config.model.head_options)
    return Composition(encoder, config.objectives, identities=2).train()


def full_batch(config: ClipConfig, recipe: str, pairs: int = 2) -> Batch:
    """Noise: images of different people, with captions of full length and as many phrases as the recipe takes."""
    generator = Generator().manual_seed(0)
    token_ids = torch.randint(1, 1000, (pairs, config.context_length), generator=generator)
    token_ids[:, -1] = config.vocab_size - 1
    phrases = RECIPES[recipe].captions.phrases
    index = torch.arange(pairs * phrases).view(pairs, phrases) % pairs
    return Batch(
        pixels=torch.randn(pairs, 3, *config.image_size, generator=generator),
        token_ids=token_ids,
        pids=torch.arange(pairs),
        share=Share.whole(pairs),
        prompts=Prompts(token_ids, index, torch.ones_like(index, dtype=torch.bool)) if phrases else None,
    )


def gathered_in(whole: Gathered) -> Iterator[Tensor]:
    """The tensors of all rows that were asked for, which a `Gathered` keeps, but for what it made of them itself."""
    for name, value in vars(whole).items():
        if name.startswith("_") or hasattr(type(whole), name):
            continue
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Gathered):
            yield from gathered_in(value)


def load(sizes: Sizes, batch: int, processes: int) -> Load:
    """What a batch of that size asks of each of so many processes."""
    pairs = -(-batch // processes)
    reduced = 2 * (processes - 1) * sizes.weights // processes
    return Load(
        sizes.model,
        batch,
        processes,
        pairs,
        memory={name: sizes.held + pairs * size for name, size in sizes.kept.items()},
        checkpointed={name: sizes.held + pairs * size for name, size in sizes.checkpointed.items()},
        reduced=reduced,
        seconds={name: reduced / speed for name, speed in BANDWIDTHS.items()},
    )


def report(sizes: list[Sizes], batches: tuple[int, ...], processes: int) -> Report:
    """The loads of all models and batches as a table."""
    loads = [load(each, batch, processes) for each in sizes for batch in batches]
    ways = [f"{way} {name}" for way in ("memory", "checkpointed") for name in TYPES]
    return Report(
        title=f"Training on {processes} devices, in GB a device; computed, not measured",
        columns=["model, batch", "pairs", *ways],
        rows=[
            [
                f"{each.model}, {each.batch}",
                str(each.pairs),
                *(gigabytes(size) for size in (*each.memory.values(), *each.checkpointed.values())),
            ]
            for each in loads
        ],
        figures={"sizes": [asdict(each) for each in sizes], "loads": [asdict(each) for each in loads]},
        notes=[
            *(note for each in sizes for note in notes(each, load(each, batches[0], processes))),
            "memory: that and the pairs' activations, of both towers over whole captions of 77 tokens. checkpointed: "
            "with --checkpoint-blocks. Objectives with networks of their own, and what kernels take for a moment, come "
            "on top.",
        ],
    )


def traffic_report(found: list[Traffic], batches: tuple[int, ...], processes: int) -> Report:
    """What the losses make each device send, as a table."""
    return Report(
        title=f"Features and tokens that each of {processes} devices sends in a step, in GB; computed, not measured",
        columns=["model, recipe", "KB a pair", "back", *(str(batch) for batch in batches)],
        rows=[
            [
                f"{each.model}, {each.recipe}",
                *(f"{size / 1e3:,.1f}" for size in (each.gathered, each.returned)),
                *(gigabytes(each.sent(batch, processes)) for batch in batches),
            ]
            for each in found
        ],
        figures={},
        notes=[
            "KB a pair: what every device holds of each pair of the batch once it is gathered, in float32, of whole "
            "captions; back: of this, what has a gradient.",
            "Columns: batches, forward and backward together, in equal shares. Where these are not equal, as with the "
            "sampler `pairs`, the way back takes twice that.",
        ],
    )


def notes(sizes: Sizes, anyone: Load) -> list[str]:
    """A model's fixed bytes, those of a pair, and what is sent of its gradients whatever the batch, for people."""
    states = ", ".join(
        f"{name} {gigabytes(size)} GB"
        for name, size in (
            ("weights", sizes.weights),
            ("gradients", sizes.weights),
            ("Adam's states", ADAM_STATES * sizes.weights),
        )
    )
    pairs = ", ".join(
        f"{name} {sizes.kept[name] / 1e6:,.0f} MB, checkpointed {sizes.checkpointed[name] / 1e6:,.1f} MB"
        for name in TYPES
    )
    sent = ", ".join(f"{seconds:.3f} s at {name}" for name, seconds in anyone.seconds.items())
    return [
        f"{sizes.model}: {sizes.parameters / 1e6:,.1f} M parameters; {states}",
        f"  activations of a pair: {pairs}",
        f"  gradients: a device sends {gigabytes(anyone.reduced)} GB a step, mostly behind the backward pass: {sent}",
    ]


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size >= 1e7 else f"{size / 1e9:,.4f}"


def options() -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0], quick="the tiny encoder alone")
    made.add_argument("--processes", type=int, default=8, help="devices that train together (8)")
    return made.parse_args()


def main() -> None:
    asked = options()
    models = ("tiny",) if asked.quick else MODELS
    sizes = [measure(model) for model in models]
    found = [traffic(model, recipe) for model in models for recipe in METHODS]
    if not asked.json:
        show(traffic_report(found, BATCHES, asked.processes))
    made = report(sizes, BATCHES, asked.processes)
    made.figures["traffic"] = [asdict(each) for each in found]
    publish(made, survey(torch.get_num_threads()), as_json=asked.json)


if __name__ == "__main__":
    main()

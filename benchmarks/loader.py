"""Training samples that one core makes ready in a second: ours against a plain loader in the published order.

python benchmarks/loader.py              # 512 person crops at 384 x 128, three times: about a minute
python benchmarks/loader.py --quick      # 128 crops, twice: seconds
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import Report, Variant, parser, publish, survey, verdict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tiprctl.config import TrainConfig, override
from tiprctl.data.batches import TrainingBatches
from tiprctl.data.image_cache import cache_images
from tiprctl.data.manifest import build_manifest, read_manifest, write_manifest
from tiprctl.data.pruning import prune_captions, read_pruned
from tiprctl.data.records import Record
from tiprctl.pixels import MEAN, STD
from tiprctl.recipes import RECIPES
from tiprctl.tokenizer import default_tokenizer

LEAST_RATIO = 3
"""How many times as many samples a second and core as the plain loader."""

BATCH = 64
CONTEXT = 77
MASKED = 0.15
CONFIG = override(
    RECIPES["sen"],
    {
        "batch_size": BATCH,
        "sampling.sampler": "random",
        "captions.mask_content": MASKED,
        "captions.mask_other": MASKED,
    },
)
HEIGHTS = 150, 700
SLENDERNESS = 0.33, 0.42
"""Person crops as those of CUHK-PEDES: their height in pixels, and their width as a share of it."""

NAMES = {
    "plain": "plain loader",
    "files": "tiprctl, from the files",
    "cache": "tiprctl, from the image cache",
    "memory": "tiprctl, from memory",
}


def make_people(folder: Path, count: int) -> None:
    """A prepared data set of so many synthetic crops with a caption each, pruned, its images cached as well."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(count):
        path = f"imgs/{number:05}.jpg"
        save_crop(folder / path, generator)
        records.append(Record("train", number, path, (describe(generator),)))
    manifest = build_manifest("cuhk-pedes", folder, records)
    write_manifest(manifest)
    prune_captions(manifest, "hanta")
    cache_images(manifest, CONFIG.model.image_size)


def save_crop(path: Path, generator: np.random.Generator) -> None:
    """A blurred picture with the noise of a camera, as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height = int(generator.integers(*HEIGHTS, endpoint=True))
    width = int(height * generator.uniform(*SLENDERNESS))
    coarse = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + generator.normal(0, 6, smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def describe(generator: np.random.Generator) -> str:
    """Two sentences of about 30 words, as an annotator writes them."""
    colours = generator.choice(["black", "grey", "dark blue", "light green", "red and white", "brown", "pink"], 5)
    who = generator.choice(["man", "woman", "young girl", "boy"])
    top = generator.choice(["short-sleeved t-shirt", "zip-up jacket", "plaid shirt", "knee-length coat"])
    carried = generator.choice(["backpack over the left shoulder", "handbag", "plastic bag in one hand", "umbrella"])
    return (
        f"A {who} with short {colours[0]} hair is wearing a {colours[1]} {top}, {colours[2]} trousers and a pair of "
        f"{colours[3]} shoes. The {who} is walking away and carries a {colours[4]} {carried}."
    )


@dataclass(frozen=True)
class Epoch:
    """The shapes of the batches of an epoch, and the seconds that they kept a core busy."""

    shapes: list[tuple[int, ...]]
    seconds: float

    @property
    def samples(self) -> int:
        return sum(shape[0] for shape in self.shapes)

    @property
    def rate(self) -> float:
        return self.samples / self.seconds


class PlainSamples(Dataset):
    """The order of the published code: each image opened, resized and changed on its own, each caption tokenised twice.

    The caption is tokenised whole and pruned, and one of the two taken; then its tokens are masked one by one, as the
    code of IRRA does it, which lists the whole vocabulary for each caption. The tokenizer is open_clip's, which is
    OpenAI's and remembers the words that it has met.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        from open_clip.tokenizer import SimpleTokenizer
        from torchvision import transforms

        manifest = read_manifest(folder)
        split = manifest.split("train")
        self.paths, self.whole, self.pruned = split.image_paths, split.captions, read_pruned(manifest).pruned
        self.prune = config.captions.prune
        self.tokenizer = SimpleTokenizer(context_length=CONTEXT)
        change = config.augment
        self.resize = transforms.Resize(config.model.image_size)
        self.change = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(change.flip),
                transforms.Pad(change.pad),
                transforms.RandomCrop(config.model.image_size),
            ]
        )
        self.normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.erase = transforms.RandomErasing(change.erase, scale=change.erase_area, value=list(MEAN))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.resize(Image.open(self.paths[index]).convert("RGB"))
        whole, pruned = (self.tokenizer([text[index]])[0] for text in (self.whole, self.pruned))
        token_ids, labels = self.mask((pruned if random.random() < self.prune else whole).tolist())
        return {
            "pids": index,
            "images": self.erase(self.normalise(self.change(image))),
            "caption_ids": torch.tensor(token_ids),
            "labels": torch.tensor(labels),
        }

    def mask(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """The tokens, some of them masked, exchanged or kept (8 : 1 : 1), and the original ones of these."""
        others = list(range(1, self.tokenizer.vocab_size - 3))
        labels = [0] * len(tokens)
        for place, token in enumerate(tokens):
            if 0 < token < self.tokenizer.vocab_size - 3 and random.random() < MASKED:
                labels[place] = token
                fate = random.random()
                if fate < 0.8:
                    tokens[place] = self.tokenizer.vocab_size - 3
                elif fate < 0.9:
                    tokens[place] = random.choice(others)
        return tokens, labels


def plain_loader(folder: Path) -> DataLoader:
    torch.manual_seed(0)
    random.seed(0)
    return DataLoader(PlainSamples(folder, CONFIG), batch_size=BATCH, shuffle=True, drop_last=True)


def from_plain(loader: DataLoader, epoch: int) -> Epoch:
    return count(batch["images"] for batch in loader)


def our_batches(folder: Path, *, cached: bool, kept: bool) -> TrainingBatches:
    batches = TrainingBatches(read_manifest(folder), CONFIG, default_tokenizer(), workers=0)
    if not cached:
        batches.images.cache = None
    if kept:
        batches.images.keep_if_small()
    return batches


def from_ours(batches: TrainingBatches, epoch: int) -> Epoch:
    return count(batch.pixels for batch in batches.epoch(epoch, skip=0, device=torch.device("cpu")))


def count(batches: Iterable[Tensor]) -> Epoch:
    """Go through the batches of an epoch. Time on a core is counted, since others may want the core meanwhile."""
    start = time.process_time()
    shapes = [tuple(pixels.shape) for pixels in batches]
    return Epoch(shapes, time.process_time() - start)


def compare(folder: Path, repeat: int) -> dict[str, Epoch]:
    """The fastest of so many epochs of each contestant, in turn, each in a process of its own with one thread."""
    contestants: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
        "plain": (partial(plain_loader, folder), from_plain),
        "files": (partial(our_batches, folder, cached=False, kept=False), from_ours),
        "cache": (partial(our_batches, folder, cached=True, kept=False), from_ours),
        "memory": (partial(our_batches, folder, cached=False, kept=True), from_ours),
    }
    with ExitStack() as stack:
        variants = {
            name: stack.enter_context(closing(Variant(prepare, run, threads=1)))
            for name, (prepare, run) in contestants.items()
        }
        rounds = [
            {name: variant.measure(epoch).result for name, variant in variants.items()} for epoch in range(repeat)
        ]
    if any(run.shapes != rounds[0]["plain"].shapes for each in rounds for run in each.values()):
        raise SystemExit("The contestants made batches of different shapes.")
    return {name: min((each[name] for each in rounds), key=lambda run: run.seconds) for name in variants}


def shortfalls(ratios: dict[str, float]) -> list[str]:
    """What falls short of the goal, a sentence each."""
    return [
        f"{NAMES[name]}: {ratios[name]:.1f} times the samples of the plain loader, less than {LEAST_RATIO}"
        for name in ("files", "cache")
        if ratios[name] < LEAST_RATIO
    ]


def rows(speeds: dict[str, Epoch], ratios: dict[str, float]) -> Iterator[tuple[str, ...]]:
    for name, speed in speeds.items():
        ratio = "" if name == "plain" else f"{ratios[name]:.1f} x"
        yield NAMES[name], f"{1000 / speed.rate:.2f}", f"{speed.rate:,.0f}", ratio


def ratios_of(speeds: dict[str, Epoch]) -> dict[str, float]:
    """How many times the samples of the plain loader each contestant makes in a second."""
    return {name: speed.rate / speeds["plain"].rate for name, speed in speeds.items()}


def report_on(speeds: dict[str, Epoch]) -> Report:
    ratios = ratios_of(speeds)
    height, width = CONFIG.model.image_size
    return Report(
        f"Making {speeds['plain'].samples:,} samples of {height} x {width} ready on one core",
        ("", "ms a sample", "samples a second", "faster"),
        list(rows(speeds, ratios)),
        {
            "samples": speeds["plain"].samples,
            "goal": LEAST_RATIO,
            "contestants": {
                name: {"seconds": speed.seconds, "samples_per_second": speed.rate, "ratio": ratios[name]}
                for name, speed in speeds.items()
            },
        },
        notes=[
            "Seconds are those that a core was busy. The plain loader tokenises each caption twice an epoch, ours once "
            "before the first, which is not counted.",
        ],
    )


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="128 crops, twice; the goal is not enforced")
    known.add_argument("--samples", type=int, default=512, help="crops with a caption each")
    known.add_argument("--repeat", type=int, default=3, help="epochs of each, in turn; the fastest counts")
    chosen = known.parse_args()
    if chosen.quick:
        chosen.samples, chosen.repeat = 2 * BATCH, 2
    if chosen.samples < BATCH or chosen.repeat < 1:
        known.error(f"there is one epoch at least, of {BATCH} samples at least")
    return chosen


def main() -> int:
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        make_people(Path(folder), chosen.samples)
        speeds = compare(Path(folder), chosen.repeat)
    packages = ("torch", "torchvision", "Pillow", "numpy", "open_clip_torch")
    publish(report_on(speeds), survey(1, packages=packages), as_json=chosen.json)
    return verdict(shortfalls(ratios_of(speeds)), enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())

"""Training samples that one core makes ready in a second: ours against plain loaders in the orders of IRRA and SEN.

python benchmarks/loader.py              # 512 person crops at 384 x 128, three times: about a minute
python benchmarks/loader.py --quick      # 128 crops, twice: seconds
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import Report, parser, publish, survey, verdict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tiprctl.config import TrainConfig, override
from tiprctl.data.batches import TrainingBatches
from tiprctl.data.image_cache import cache_images
from tiprctl.data.manifest import build_manifest, read_manifest, write_manifest
from tiprctl.data.pruning import prune_captions
from tiprctl.data.records import Record
from tiprctl.data.tagging import ADJECTIVE, BNC, NOUN, TAGGERS, classify, prune
from tiprctl.pixels import MEAN, STD
from tiprctl.recipes import RECIPES
from tiprctl.tokenizer import default_tokenizer

LEAST_RATIO = 3
"""How many times as many samples a second and core as each plain loader."""

BATCH = 64
CONTEXT = 77
TAGGER = "hanta"
SETTINGS = {"batch_size": BATCH, "sampling.sampler": "random"}
CONFIGS = {paper: override(RECIPES[f"{paper.lower()}-published"], SETTINGS) for paper in ("IRRA", "SEN")}
"""What each paper's samples are, in random order: IRRA masks 15% of the tokens; SEN prunes and masks by word class."""

IMAGE_SIZE = CONFIGS["IRRA"].model.image_size
HEIGHTS = 150, 700
SLENDERNESS = 0.33, 0.42
"""Person crops as those of CUHK-PEDES: their height in pixels, and their width as a share of it."""

PLAIN = "plain"
WAYS = {"files": "the files", "cache": "the image cache", "memory": "memory"}
"""Where ours has the images from."""

Name = tuple[str, str]
"""A contestant: whose samples it makes, and `plain` or one of `WAYS`."""

Make = Callable[[int], Iterable[Tensor]]
"""The images of an epoch, batch by batch."""


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
    prune_captions(manifest, TAGGER)
    cache_images(manifest, IMAGE_SIZE)


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
    """The order of IRRA's code: each image opened, resized and changed on its own, its caption tokenised each time.

    The tokens are masked one by one, and the whole vocabulary is listed for each caption. The tokenizer is open_clip's,
    which is OpenAI's and remembers the words that it has met.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        from open_clip.tokenizer import SimpleTokenizer
        from torchvision import transforms

        split = read_manifest(folder).split("train")
        self.paths, self.captions = split.image_paths, split.captions
        self.form = config.captions
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
        token_ids, labels = self.mask(self.tokenizer([self.caption(index)])[0].tolist())
        return {
            "pids": index,
            "images": self.erase(self.normalise(self.change(image))),
            "caption_ids": torch.tensor(token_ids),
            "labels": torch.tensor(labels),
        }

    def caption(self, index: int) -> str:
        return self.captions[index]

    def chance(self, token: int) -> float:
        """The probability at which a token is masked."""
        return self.form.mask_other

    def mask(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """The tokens, some of them masked, exchanged or kept (8 : 1 : 1), and the original ones of these."""
        others = list(range(1, self.tokenizer.vocab_size - 3))
        labels = [0] * len(tokens)
        for place, token in enumerate(tokens):
            if 0 < token < self.tokenizer.vocab_size - 3 and random.random() < self.chance(token):
                labels[place] = token
                fate = random.random()
                if fate < 0.8:
                    tokens[place] = self.tokenizer.vocab_size - 3
                elif fate < 0.9:
                    tokens[place] = random.choice(others)
        return tokens, labels


class PlainTaggedSamples(PlainSamples):
    """The order of SEN's code: as IRRA's, but a caption may be tagged and pruned first, and each token is tagged alone.

    SEN's tagger is NLTK's, whose model has to be downloaded: HanTa, which is ours, stands in for it, word by word too.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        super().__init__(folder, config)
        self.tag = TAGGERS[TAGGER].load()
        self.content = tuple(beginning for beginning, kind in BNC.items() if kind in (NOUN, ADJECTIVE))

    def caption(self, index: int) -> str:
        whole = super().caption(index)
        return prune(whole, classify(whole, TAGGER)) if random.random() < self.form.prune else whole

    def chance(self, token: int) -> float:
        (tag,) = self.tag([self.tokenizer.decoder[token].removesuffix("</w>")])
        return self.form.mask_content if tag.startswith(self.content) else self.form.mask_other


PLAIN_SAMPLES = {"IRRA": PlainSamples, "SEN": PlainTaggedSamples}


def plain_loader(samples: type[PlainSamples], folder: Path, config: TrainConfig) -> Make:
    loader = DataLoader(samples(folder, config), batch_size=BATCH, shuffle=True, drop_last=True)
    return lambda epoch: (batch["images"] for batch in loader)


def our_loader(way: str, folder: Path, config: TrainConfig) -> Make:
    batches = our_batches(way, folder, config)
    return lambda epoch: (batch.pixels for batch in batches.epoch(epoch, skip=0, device=torch.device("cpu")))


def our_batches(way: str, folder: Path, config: TrainConfig) -> TrainingBatches:
    batches = TrainingBatches(read_manifest(folder), config, default_tokenizer(), workers=0)
    if way != "cache":
        batches.images.cache = None
    if way == "memory":
        batches.images.keep_if_small()
    return batches


def contestants(folder: Path) -> dict[Name, Make]:
    """All of them on the data set in `folder`; ours beside the plain loader that makes the same samples."""
    made = {}
    for paper, config in CONFIGS.items():
        made[paper, PLAIN] = plain_loader(PLAIN_SAMPLES[paper], folder, config)
        made |= {(paper, way): our_loader(way, folder, config) for way in WAYS}
    return made


def run_through(batches: Iterable[Tensor]) -> Epoch:
    """Go through the batches of an epoch. Time on a core is counted, since others may want the core meanwhile."""
    start = time.process_time()
    shapes = [tuple(pixels.shape) for pixels in batches]
    return Epoch(shapes, time.process_time() - start)


def compare(folder: Path, repeat: int) -> dict[Name, Epoch]:
    """The fastest of so many epochs of each contestant, in turn, with one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    makers = contestants(folder)
    rounds = [{name: run_through(make(epoch)) for name, make in makers.items()} for epoch in range(repeat)]
    if any(run.shapes != rounds[0]["IRRA", PLAIN].shapes for each in rounds for run in each.values()):
        raise SystemExit("The contestants made batches of different shapes.")
    return {name: min((each[name] for each in rounds), key=lambda run: run.seconds) for name in makers}


def ratios_of(speeds: dict[Name, Epoch]) -> dict[Name, float]:
    """How many times the samples of the plain loader of the same paper each contestant makes in a second."""
    return {(paper, way): speed.rate / speeds[paper, PLAIN].rate for (paper, way), speed in speeds.items()}


def title(name: Name) -> str:
    paper, way = name
    return f"plain, as {paper}" if way == PLAIN else f"tiprctl, from {WAYS[way]}"


def shortfalls(ratios: dict[Name, float]) -> list[str]:
    """What falls short of the goal, a sentence each."""
    return [
        f"{title((paper, way))}: {ratio:.1f} times the samples of the plain loader as {paper}, less than {LEAST_RATIO}"
        for (paper, way), ratio in ratios.items()
        if way in ("files", "cache") and ratio < LEAST_RATIO
    ]


def rows(speeds: dict[Name, Epoch], ratios: dict[Name, float]) -> Iterator[tuple[str, ...]]:
    for name, speed in speeds.items():
        ratio = "" if PLAIN in name else f"{ratios[name]:.1f} x"
        yield title(name), f"{1000 / speed.rate:.2f}", f"{speed.rate:,.0f}", ratio


def report_on(speeds: dict[Name, Epoch]) -> Report:
    ratios = ratios_of(speeds)
    height, width = IMAGE_SIZE
    samples = speeds["IRRA", PLAIN].samples
    return Report(
        f"Making {samples:,} samples of {height} x {width} ready on one core",
        ("", "ms a sample", "samples a second", "faster"),
        list(rows(speeds, ratios)),
        {
            "samples": samples,
            "goal": LEAST_RATIO,
            "contestants": [
                {
                    "paper": paper,
                    "from": way,
                    "seconds": speed.seconds,
                    "samples_per_second": speed.rate,
                    "ratio": ratios[paper, way],
                }
                for (paper, way), speed in speeds.items()
            ],
        },
        notes=[
            "Seconds are those that a core was busy. The plain loaders tokenise, and the one as SEN tags, in each "
            "epoch; ours does both once before the first, which is not counted.",
            "SEN's code tags each token with NLTK, whose model has to be downloaded: HanTa stands in for it, and the "
            "row tells nothing of NLTK's own speed.",
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

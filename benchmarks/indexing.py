"""Images a second that `tiprctl index add` embeds against the encoder's own rate, and the memory of many rows.

python benchmarks/indexing.py                   # 6,000 crops, and up to 1,000,000 rows of synthetic vectors: minutes
python benchmarks/indexing.py --quick           # 600 crops, 10,000 rows: seconds
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _crops import Crops
from _report import Report, Variant, megabytes, parser, peak_memory, publish, reset_peak, survey, verdict
from cold_query import MODELS, write_run
from PIL import Image

from tiprctl.cores import cores
from tiprctl.gallery.filling import adding
from tiprctl.gallery.filling.embedding import EmbeddedBatch, ReadImage, content_hash
from tiprctl.gallery.filling.listing import ImageFile, Images, Listing
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.images import load_pixels
from tiprctl.vector_model import VectorModel, load_vector_model

GOAL = 0.9
"""Of the encoder's own rate."""
FLAT = 1.25
"""How many times the memory of the smallest gallery the largest may take."""
BATCH = 64
CROP = (192, 96)
"""Of the files, (H, W): about the median crop of CUHK-PEDES."""
WIDTH = 512


@dataclass(frozen=True)
class Rates:
    """Images a second of a model, of each round, taken in turn."""

    model: str
    encoder: list[float]
    add: list[float]

    @property
    def share(self) -> float:
        """The median share of the encoder's rate."""
        return median(add / encoder for encoder, add in zip(self.encoder, self.add))


def write_crops(folder: Path, count: int) -> None:
    """JPEG files of smooth noise, as photographs compress."""
    generator = np.random.default_rng(0)
    height, width = CROP
    for number in range(count):
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        file = folder / f"cam_{number % 8}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)


def encoder_rate(model: VectorModel, pixels: np.ndarray, images: int) -> float:
    """Of the model alone, fed with batches that are there."""
    start = time.perf_counter()
    for first in range(0, images, BATCH):
        model.embed_images(pixels[: min(BATCH, images - first)])
    return images / (time.perf_counter() - start)


def add_rate(model: VectorModel, folder: Path) -> float:
    """Of the whole: listing, reading, hashing, decoding, embedding, committing."""
    with tempfile.TemporaryDirectory() as place:
        store = GalleryStore.create(Path(place, "g.lance"), ModelIdentity.of(model))
        start = time.perf_counter()
        changes = adding.add(store, list_images(folder), model, adding.Reading(batch_size=BATCH))
        return changes.embedded / (time.perf_counter() - start)


def rates(name: str, images: int, rounds: int) -> Rates:
    """Both rates in turn; a first batch, which makes the session, does not count."""
    with tempfile.TemporaryDirectory() as place:
        crops, run = Path(place, "crops"), Path(place, "run")
        write_crops(crops, images)
        write_run(run, next(model for model in MODELS if model.name == name))
        model = load_vector_model(run, device="cpu", bulk=True)
        files = list(list_images(crops).images[:BATCH])
        pixels = np.stack([load_pixels(crops / file.path, model.image_size) for file in files])
        model.embed_images(pixels)
        taken = [(encoder_rate(model, pixels, images), add_rate(model, crops)) for _ in range(rounds)]
    return Rates(name, *map(list, zip(*taken)))


class Numbers:
    """Stands for a model of vectors that are made elsewhere."""

    width, image_size, precision = WIDTH, (8, 4), "float32"
    description = source = fingerprint = "synthetic"


@cache
def synthetic() -> np.ndarray:
    """The vectors of 8192 crops, made once: that takes more memory than anything that is measured here."""
    return Crops(WIDTH).block(0, 8192)


def no_decoding(root: Path, images: Iterator[ImageFile], model: Numbers, **_: Any) -> Iterator[EmbeddedBatch]:
    """In the place of `embed_images`: vectors with the structure of crops; no file is read."""
    vectors = synthetic()
    some: list[ReadImage] = []
    for image in images:
        some.append(ReadImage(image, content_hash(image.path.encode())))
        if len(some) == 512:
            start = int(np.random.default_rng(image.size).integers(len(vectors) - 512))
            yield EmbeddedBatch(some, vectors[start : start + 512])
            some = []
    if some:
        yield EmbeddedBatch(some, vectors[: len(some)])


def listing_of(rows: int) -> Listing:
    """A folder of so many images that is nowhere, in path order, as a walk gives them."""
    files = (
        ImageFile(f"cam_{64 * number // rows:02}/2026-11-01/{number:010}.jpg", 4096 + number % 4096, number)
        for number in range(rows)
    )
    return Listing(Path("/archive"), Images.of(files), [])


def add_many(_: None, rows: int) -> Mapping[str, float]:
    """The most memory in bytes while so many rows are added, and while they are all found to be there."""
    adding.embed_images = no_decoding
    synthetic()
    peaks = {}
    with tempfile.TemporaryDirectory() as place:
        store = GalleryStore.create(Path(place, "g.lance"), ModelIdentity.of(Numbers()))
        for step in ("adding", "adding again"):
            reset_peak()
            start = time.perf_counter()
            adding.add(store, listing_of(rows), Numbers())
            peaks[step], peaks[f"seconds {step}"] = peak_memory(), time.perf_counter() - start
        if len(store) != rows:
            raise SystemExit(f"{len(store):,} rows instead of {rows:,}")
    return peaks


def nothing() -> None:
    """What the processes of `add_many` begin with."""


def memory(rows: int) -> Mapping[str, float]:
    """As `add_many`, in a process of its own."""
    with closing(Variant(nothing, add_many, threads=1)) as process:
        return process.measure(rows).result


def _lines(taken: Rates) -> list[tuple[str, ...]]:
    """The rows of the table that are about a model."""
    goal = f"{GOAL:.2f} x" if is_slow(taken) else ""
    return [
        (f"{taken.model}, encoder alone", f"{median(taken.encoder):,.0f} images/s", "1.00 x", ""),
        (f"{taken.model}, index add", f"{median(taken.add):,.0f} images/s", f"{taken.share:.2f} x", goal),
    ]


def is_slow(taken: Rates) -> bool:
    """Whether the encoder is the slower part: the built-in one is quicker than a file is decoded."""
    return taken.model != MODELS[0].name


def shortfalls(taken: Sequence[Rates], peaks: Mapping[int, Mapping[str, float]]) -> list[str]:
    """What falls short of the goals, a line each."""
    missed = [
        f"Indexing with {one.model} runs at {one.share:.0%} of the encoder's rate; the goal is {GOAL:.0%}."
        for one in taken
        if is_slow(one) and one.share < GOAL
    ]
    first, largest = peaks[min(peaks)]["adding"], peaks[max(peaks)]
    last = max(largest["adding"], largest["adding again"])
    if last > FLAT * first:
        missed.append(f"{max(peaks):,} rows take {last / first:.2f} times the memory of {min(peaks):,}, above {FLAT}.")
    return missed


def options() -> argparse.Namespace:
    known = parser(__doc__.splitlines()[0], quick="600 crops once, and 10,000 rows")
    names = [model.name for model in MODELS]
    known.add_argument("--models", nargs="+", default=names, choices=names)
    known.add_argument("--images", type=int, default=6000, help="crops of the built-in model in each round")
    known.add_argument("--slow-images", type=int, default=320, help="crops of any other model")
    known.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of synthetic vectors")
    known.add_argument("--rounds", type=int, default=3, help="the median counts")
    chosen = known.parse_args()
    if chosen.quick:
        chosen.images, chosen.rows, chosen.rounds, chosen.models = 600, [10_000], 1, names[:1]
    if min(chosen.images, chosen.slow_images, chosen.rounds, *chosen.rows) < 1:
        known.error("numbers are at least 1")
    return chosen


def main() -> int:
    chosen = options()
    taken = [
        rates(name, chosen.images if name == MODELS[0].name else chosen.slow_images, chosen.rounds)
        for name in chosen.models
    ]
    peaks = {rows: memory(rows) for rows in sorted(chosen.rows)}
    smallest = peaks[min(peaks)]["adding"]
    lines = [line for one in taken for line in _lines(one)]
    for rows, peak in peaks.items():
        for step in ("adding", "adding again"):
            share = f"{peak[step] / smallest:.2f} x"
            lines.append(
                (f"{rows:,} rows, {step}", f"{megabytes(peak[step])}, {peak[f'seconds {step}']:,.0f} s", share, "")
            )
    report = Report(
        f"Indexing, batch {BATCH}",
        ("", "measured", "of the first", "goal"),
        lines,
        {
            "rates": [asdict(one) | {"share": one.share} for one in taken],
            "peaks": {str(rows): dict(peak) for rows, peak in peaks.items()},
        },
        [
            "Rates: median of the rounds, taken in turn. Memory: the most that a process of its own held, torch included."
        ],
    )
    publish(report, survey(cores()), as_json=chosen.json)
    return verdict(shortfalls(taken, peaks), enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())

"""How long one sentence takes from the shell to its answer: an indexed gallery, an exported model, a fresh process.

python benchmarks/cold_query.py              # 100,000 crops; the built-in model and ViT-B/16: a few minutes
python benchmarks/cold_query.py --quick      # 5,000 crops, the built-in model alone
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from _crops import BLOCK, Crops
from _report import Report, parser, publish, survey, verdict

from tiprctl.checkpoint import encoder_header, save_checkpoint, weights_fingerprint
from tiprctl.cli.index_session import PROBES
from tiprctl.config import ModelConfig, TrainConfig, override, to_dict
from tiprctl.cores import cores
from tiprctl.exporting import export_model
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching.optimising import optimise
from tiprctl.recipes import RECIPES
from tiprctl.runs import BEST, RESULT, RUN, write_json
from tiprctl.sources import load_embedder
from tiprctl.starting import build_start
from tiprctl.vector_model import export_folder

SENTENCE = "a woman in a red coat with a black backpack"
BARE = "numpy, onnxruntime, lance, ftfy, regex, typer"
"""What every answer has to import, whoever writes it."""


@dataclass(frozen=True)
class Model:
    """A model with random weights, and the seconds in which a query with it is to be answered."""

    name: str
    size: ModelConfig
    goal: float


MODELS = (
    Model("built-in", RECIPES["synth"].model, 0.5),
    Model("ViT-B/16", ModelConfig(name="ViT-B-16", pretrained="none"), 0.8),
)


def write_run(folder: Path, model: Model) -> None:
    """A run as training leaves it, with random weights, and its export."""
    encoder = build_start(model.size, torch.Generator().manual_seed(0)).encoder
    config: TrainConfig = override(RECIPES["synth"], {"model": to_dict(model.size)})
    info = {"config": to_dict(config), "dataset": "noise", "data_root": str(folder), "data_fingerprint": "none"}
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    header = info | {"epoch": 1, "selected_on": "last", "fingerprint": weights_fingerprint(weights)}
    folder.mkdir(parents=True)
    write_json(folder / RUN, info)
    save_checkpoint(folder / BEST, weights, header | encoder_header(encoder))
    write_json(folder / RESULT, {"finished": "2000-01-01T00:00:00+00:00"})
    export_model(load_embedder(folder, device=torch.device("cpu")), export_folder(folder))


def write_gallery(folder: Path, run: Path, crops: int) -> None:
    """A gallery of synthetic vectors under the model of a run, optimised as `tiprctl index optimise` does."""
    model = load_embedder(run, device=torch.device("cpu"))
    store = GalleryStore.create(folder, ModelIdentity.of(model))
    vectors = Crops(model.width)
    for number, first in enumerate(range(0, crops, BLOCK)):
        store.put(rows(first, vectors.block(number, min(BLOCK, crops - first))))
    optimise(store, probes=model.embed_texts(PROBES))


def rows(first: int, vectors: np.ndarray) -> pa.Table:
    """Rows of a gallery for these vectors `(n, width)`, numbered from `first` on."""
    numbers = range(first, first + len(vectors))
    cameras = [f"cam_{number % 16}" for number in numbers]
    columns = {
        "path": [f"/archive/{camera}/{number:08}.jpg" for camera, number in zip(cameras, numbers)],
        "hash": [f"{number:032x}" for number in numbers],
        "size": np.full(len(numbers), 12_000),
        "mtime_ns": np.array(numbers),
        "time": np.array(numbers).astype("datetime64[us]"),
        "camera": cameras,
        "vector": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1]),
    }
    return pa.table(columns)


def shell(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds from the start of Python to its end, and what it prints."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=_environment())
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return seconds, done.stdout


def _environment() -> dict[str, str]:
    """That of this process without settings of tiprctl, and on the CPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIPRCTL_")}
    return kept | {"CUDA_VISIBLE_DEVICES": ""}


def ask(folder: Path, gallery: str) -> tuple[float, list[str]]:
    """Seconds until a sentence is answered, and the paths of the answer."""
    seconds, answer = shell(folder, "-m", "tiprctl", "query", SENTENCE, "--gallery", gallery, "--json", "--quiet")
    return seconds, [hit["path"] for hit in json.loads(answer)["results"][0]["hits"]]


@contextmanager
def without_export(run: Path) -> Iterator[None]:
    """Within the block the run has no export, and torch embeds."""
    export, aside = export_folder(run), run / "aside"
    export.rename(aside)
    try:
        yield
    finally:
        aside.rename(export)


def measure(folder: Path, models: Sequence[Model], rounds: int) -> dict[str, float]:
    """The median seconds of the bare imports and of each model with and without its export, taken in turn.

    The first round, after which every file is in memory, does not count; in it the answers are compared.
    """
    taken: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        taken.setdefault("bare imports", []).append(shell(folder, "-c", f"import {BARE}")[0])
        for number, model in enumerate(models):
            run, gallery = Path("runs", str(number)), f"{number}.lance"
            seconds, exported = ask(folder, gallery)
            taken.setdefault(model.name, []).append(seconds)
            with without_export(folder / run):
                seconds, by_torch = ask(folder, gallery)
            taken.setdefault(f"{model.name}, without its export", []).append(seconds)
            if exported != by_torch:
                raise SystemExit(f"{model.name}: the export answers otherwise than torch")
    return {name: median(times[1:]) for name, times in taken.items()}


def shortfalls(seconds: Mapping[str, float], models: Sequence[Model]) -> list[str]:
    """What falls short of its goal, a sentence each."""
    return [
        f"{model.name}: {seconds[model.name]:.2f} s to an answer are more than {model.goal} s"
        for model in models
        if seconds[model.name] > model.goal
    ]


def options() -> argparse.Namespace:
    asked = parser(__doc__.splitlines()[0], quick="5,000 crops, the built-in model, once; the goals are not enforced")
    asked.add_argument("--crops", type=int, default=100_000, help="rows of the gallery (default: 100,000)")
    asked.add_argument("--rounds", type=int, default=7, help="times each, in turn; the median counts (default: 7)")
    chosen = asked.parse_args()
    if chosen.quick:
        chosen.crops, chosen.rounds = 5_000, 1
    if min(chosen.crops, chosen.rounds) < 1:
        asked.error("every number is at least 1")
    return chosen


def main() -> int:
    chosen = options()
    models = MODELS[:1] if chosen.quick else MODELS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Runs are named as a user in that folder names them.
        with chdir(folder):
            for number, model in enumerate(models):
                write_run(Path("runs", str(number)), model)
                write_gallery(Path(f"{number}.lance"), Path("runs", str(number)), chosen.crops)
        seconds = measure(folder, models, chosen.rounds)
    goals = {model.name: model.goal for model in models}
    bare = seconds["bare imports"]
    rows = [
        (name, f"{each:.2f}", f"{each / bare:.1f} x", f"{goals[name]}" if name in goals else "")
        for name, each in seconds.items()
    ]
    report = Report(
        f"From the shell to the answer, {chosen.crops:,} crops",
        ("", "seconds", "of the bare imports", "goal"),
        rows,
        {"crops": chosen.crops, "seconds": seconds, "goals": goals},
        notes=[f"Bare imports: {BARE}."],
    )
    publish(report, survey(cores(), packages=("numpy", "onnxruntime", "pylance", "torch")), as_json=chosen.json)
    return verdict(shortfalls(seconds, models), enforced=not chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())

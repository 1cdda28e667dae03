"""Fixtures that many tests share: a miniature CUHK-PEDES on disk, the same one prepared, galleries, an export."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiprctl.data.catalog import DATA_SETS
from tiprctl.data.manifest import Manifest, build_manifest, write_manifest

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "black": (20, 20, 20)}
SPLIT_OF_ID = {1: "train", 2: "train", 4: "train", 7: "train", 8: "val", 9: "val", 12: "test", 13: "test"}
"""The identities have gaps, as those of the real data set may."""


@pytest.fixture
def cuhk_root(tmp_path: Path) -> Path:
    """A folder CUHK-PEDES: 8 identities of two images with two captions each; ids start at 1 and have gaps."""
    return _write_cuhk(tmp_path / "CUHK-PEDES")


@pytest.fixture
def cuhk_manifest(cuhk_root: Path) -> Manifest:
    """The miniature CUHK-PEDES, its manifest written."""
    return _prepare(cuhk_root)


@pytest.fixture(scope="module")
def shared_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A `cuhk_manifest` for what several tests of a module share."""
    return _prepare(_write_cuhk(tmp_path_factory.mktemp("shared") / "CUHK-PEDES"))


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `runs/a` and its export, made there; to be copied before it is changed."""
    # Here alone, since few tests load a model.
    import tiny
    import torch

    from tiprctl.exporting import export_model
    from tiprctl.sources import load_embedder
    from tiprctl.vector_model import export_folder

    folder = tmp_path_factory.mktemp("exported")
    with chdir(folder):
        run = tiny.run_folder(Path("runs/a"), tiny.readable())
        export_model(load_embedder(run, device=torch.device("cpu")), export_folder(run))
    return folder


@pytest.fixture
def home(cuhk_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the miniature CUHK-PEDES under ./data."""
    (tmp_path / "data").mkdir()
    cuhk_manifest.root.rename(tmp_path / "data" / "CUHK-PEDES")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    return tmp_path


def _write_cuhk(root: Path) -> Path:
    records = []
    for pid, split in SPLIT_OF_ID.items():
        colour = list(COLOURS)[pid % len(COLOURS)]
        for view in range(2):
            path = f"cam_a/{pid:03}_{view}.jpg"
            _save_person(root / "imgs" / path, colour, seed=10 * pid + view)
            captions = [f"A person in a {colour} coat, view {view}.", f"The man {pid} wears {colour}."]
            words = [caption.lower().split() for caption in captions]
            records.append(
                {"split": split, "captions": captions, "file_path": path, "processed_tokens": words, "id": pid}
            )
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root


def _prepare(root: Path) -> Manifest:
    manifest = build_manifest("cuhk-pedes", root, DATA_SETS["cuhk-pedes"].read(root / "reid_raw.json"))
    write_manifest(manifest)
    return manifest


def _save_person(path: Path, colour: str, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 12, (48, 24, 3))
    pixels = np.full((48, 24, 3), 170.0) + noise
    pixels[10:44, 7:17] = np.array(COLOURS[colour]) + noise[10:44, 7:17]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """As `galleries.archive`, which is imported where it is wanted."""
    import galleries

    return galleries.archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """As `galleries.many`."""
    import galleries

    return galleries.many(tmp_path_factory.mktemp("many"))

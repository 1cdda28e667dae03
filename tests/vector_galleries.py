"""Small galleries of synthetic vectors, for the tests of searching."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore

WIDTH = 32
MODEL = ModelIdentity(fingerprint="f00", width=WIDTH, precision="float32", description="a model", source="runs/a")


def unit(count: int, seed: int = 0) -> np.ndarray:
    """Vectors around as many centres as a tenth of them, float32 of unit length `(count, WIDTH)`."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((-(-count // 10), WIDTH)).repeat(10, axis=0)[:count]
    vectors = centres + 0.5 * generator.standard_normal((count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def table(paths: list[str], vectors: np.ndarray, **columns: object) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
    return pa.table({"path": paths, **columns, "vector": column})


def names(count: int, first: int = 0) -> list[str]:
    return [f"/g/{number:05d}.jpg" for number in range(first, first + count)]


def gallery(folder: Path, count: int, seed: int = 0) -> GalleryStore:
    """`count` crops: every second by camera `even`, every fiftieth by `rare`; a minute apart from 2026-11-01 on."""
    store = GalleryStore.create(folder / "gallery.lance", MODEL)
    cameras = ["rare" if number % 50 == 1 else ("even", "odd")[number % 2] for number in range(count)]
    times = np.datetime64("2026-11-01", "us") + np.arange(count) * np.timedelta64(60_000_000, "us")
    store.put(table(names(count), unit(count, seed), camera=cameras, time=times))
    return store


def best(queries: np.ndarray, vectors: np.ndarray, top: int) -> list[list[int]]:
    """The places of the best rows, by sorting them all."""
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return [sorted(range(len(vectors)), key=lambda row: (-scores[row], row))[:top] for scores in exact]

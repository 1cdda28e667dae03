"""A training run's folder: what was asked for, what came out, epoch by epoch; and which run is the latest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tiprctl
from tiprctl.config import TrainConfig, from_dict, to_dict
from tiprctl.errors import InputError
from tiprctl.files import write_text

RUNS = Path("runs")
BEST, LAST, RUN, RESULT, METRICS = (
    "best.safetensors",
    "last.safetensors",
    "run.json",
    "result.json",
    "metrics.jsonl",
)


@dataclass(frozen=True)
class Run:
    """The folder of a training run: `run.json` (how it was asked for), checkpoints, and `result.json` once finished."""

    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """The resolved configuration, data set, data fingerprint, versions and commit.

        Raises:
            InputError: the folder holds no run, or a damaged one.
        """
        return read_json(self.folder / RUN, "Name a run's folder, as in runs/latest.")

    @property
    def config(self) -> TrainConfig:
        return from_dict(TrainConfig, self.info["config"], where=str(self.folder / RUN))

    @property
    def result(self) -> dict[str, Any] | None:
        """What came out; None while the run is not finished."""
        file = self.folder / RESULT
        return read_json(file, "Train it again.") if file.is_file() else None

    @property
    def checkpoint(self) -> Path:
        """The weights to use: those of the selected epoch.

        Raises:
            InputError: no epoch has been finished yet.
        """
        for name in (BEST, LAST):
            if (self.folder / name).is_file():
                return self.folder / name
        raise InputError(
            "The run has no checkpoint yet",
            where=self.folder,
            remedy=f"Go on with: tiprctl train --resume {self.folder}",
        )


def latest_run(runs: Path = RUNS) -> Run | None:
    """The newest finished run under `runs`, None where there is none."""
    finished = [file for file in runs.glob(f"*/{RESULT}") if not file.parent.is_symlink()]
    return Run(max(finished, key=lambda file: file.stat().st_mtime).parent) if finished else None


def mark_latest(run: Path) -> None:
    """Let `latest` beside the run's folder point to it."""
    link = run.parent / "latest"
    temporary = run.parent / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.name, target_is_directory=True)
    temporary.replace(link)


def describe_run(config: TrainConfig, *, dataset: str, root: Path, fingerprint: str) -> dict[str, Any]:
    """What a run keeps of how it was made: configuration with seed, data, package versions, commit."""
    return {
        "config": to_dict(config),
        "dataset": dataset,
        "data_root": str(root.resolve()),
        "data_fingerprint": fingerprint,
        "versions": {
            "tiprctl": tiprctl.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "torchvision", "numpy", "pillow")},
        },
        "git_commit": git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """The commit of the working folder, None where there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def append_record(file: Path, record: Mapping[str, Any]) -> None:
    """Add an epoch to `metrics.jsonl`."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def trim_records(file: Path, epochs: int) -> None:
    """Keep the first `epochs` lines: a later one belongs to an epoch that is trained again."""
    if file.is_file():
        write_text(file, "".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:epochs]))


def read_json(file: Path, remedy: str) -> Any:
    """The JSON of a file.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("There is no such file", where=file, remedy=remedy) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"Damaged JSON: {error}", where=file, remedy=remedy) from error


def write_json(file: Path, document: Any) -> None:
    """Write a JSON document, atomically."""
    write_text(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

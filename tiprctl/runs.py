"""A training run's folder: what was asked for, what came out, epoch by epoch; and which run is the latest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiprctl
from tiprctl.errors import InputError
from tiprctl.files import write_text

if TYPE_CHECKING:
    from tiprctl.config import TrainConfig

RUNS = Path("runs")
LATEST = RUNS / "latest"
"""The newest finished run, whether or not the link of that name could be made."""
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
        keys = {"config", "dataset", "data_root", "data_fingerprint"}
        return read_json(self.folder / RUN, "Name a run's folder, as in runs/latest.", keys)

    @property
    def config(self) -> TrainConfig:
        # Here alone: to find a run, which every query does, takes no configuration and not the library that checks it.
        from tiprctl.config import TrainConfig, from_dict

        return from_dict(TrainConfig, self.info["config"], where=str(self.folder / RUN))

    @property
    def executions(self) -> list[dict[str, Any]]:
        """How each session carried the training out, in their order; runs of older versions do not tell."""
        return self.info.get("executions", [])

    @property
    def result(self) -> dict[str, Any] | None:
        """What came out; None while the run is not finished."""
        file = self.folder / RESULT
        return read_json(file, "Train it again.", {"finished"}) if file.is_file() else None

    @property
    def checkpoint(self) -> Path:
        """The weights to use: those of the selected epoch.

        Raises:
            InputError: the folder holds no run, or no epoch has been finished yet.
        """
        written = [self.folder / name for name in (BEST, LAST) if self.info and (self.folder / name).is_file()]
        if written:
            return written[0]
        raise InputError(
            "The run has no checkpoint yet",
            where=self.folder,
            remedy=f"Go on with: tiprctl train --resume {self.folder}",
        )


def latest_run(runs: Path = RUNS) -> Run | None:
    """The run under `runs` that finished last by its own account, None where there is none."""
    finished = []
    for file in runs.glob(f"*/{RESULT}"):
        # One damaged run must not stand in the way of the others.
        with suppress(InputError):
            if not file.parent.is_symlink():
                run = Run(file.parent)
                finished.append((str(run.result["finished"]), run.folder))
    return Run(max(finished)[1]) if finished else None


def mark_latest(run: Path) -> None:
    """Let `latest` beside a run's folder point to it: a convenience for people, left out where it cannot be.

    Only a link is ever replaced, never a file or a folder of that name.
    """
    link = run.parent / LATEST.name
    if link.exists() and not link.is_symlink():
        return
    temporary = run.parent / f".latest.{os.getpid()}"
    with suppress(OSError):
        temporary.symlink_to(run.name, target_is_directory=True)
        temporary.replace(link)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def describe_run(
    config: TrainConfig, *, dataset: str, root: Path, fingerprint: str, captions: Mapping[str, str] | None
) -> dict[str, Any]:
    """What a run keeps of how it was made: configuration with seed, data, package versions, commit.

    `captions` is the origin of the pruned ones, None where none are needed.
    """
    from tiprctl.config import to_dict

    return {
        "config": to_dict(config),
        "dataset": dataset,
        "data_root": str(root.resolve()),
        "data_fingerprint": fingerprint,
        "captions": captions,
        "versions": {
            "tiprctl": tiprctl.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "torchvision", "numpy", "pillow")},
        },
        "git_commit": git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` where it was changed since; None outside a checkout of it."""
    source = Path(tiprctl.__file__)

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=source.parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        tracked = git("ls-files", "--error-unmatch", source.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None
    except OSError:
        return None


def write_records(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `metrics.jsonl`, one line an epoch, atomically."""
    write_text(file, "".join(json.dumps(record) + "\n" for record in records))


def read_records(file: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none where there is no such file.

    Raises:
        InputError: a line is damaged.
    """
    if not file.is_file():
        return []
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"Damaged JSON: {error}", where=file, remedy="Remove the damaged line.") from error


def read_json(file: Path, remedy: str, keys: Set[str]) -> dict[str, Any]:
    """The JSON object of a file, which has at least `keys`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("There is no such file", where=file, remedy=remedy) from error
    except OSError as error:
        raise InputError(f"Cannot read: {error.strerror}", where=file, remedy=remedy) from error
    except ValueError as error:
        raise InputError(f"Damaged JSON: {error}", where=file, remedy=remedy) from error
    if not isinstance(document, dict) or not document.keys() >= keys:
        raise InputError(f"Not an object with {', '.join(sorted(keys))}", where=file, remedy=remedy)
    return document


def write_json(file: Path, document: Any) -> None:
    """Write a JSON document, atomically."""
    write_text(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

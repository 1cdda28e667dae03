"""Renders the whole data set on all cores and puts it in place at once."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from tiprctl.cores import cores
from tiprctl.data.synth_pedes import (
    ANNOTATIONS,
    ATTRIBUTE_FILE,
    CAPTIONS_PER_IMAGE,
    IMAGES,
    IMAGES_PER_PERSON,
    Drawing,
)
from tiprctl.data.synth_pedes.camera import photograph, sample_shots
from tiprctl.data.synth_pedes.people import Person, families, unique_people
from tiprctl.data.synth_pedes.wording import HARD, USUAL, Manner, describe
from tiprctl.errors import InputError, UsageError
from tiprctl.files import write_text
from tiprctl.worker_pool import process_map

_PREFIX = ".rendering-"

_CHUNK = 8
"""Identities that a worker takes at a time."""


@dataclass(frozen=True)
class _Job:
    """What a worker needs to render one identity: `key` seeds what is drawn at random, whatever the other jobs."""

    pid: int
    split: str
    person: Person
    key: str
    folder: Path
    manner: Manner


def generate(
    root: Path,
    drawing: Drawing,
    *,
    workers: int | None = None,
    on_image: Callable[[int], None] = lambda count: None,
) -> None:
    """Render `synth-pedes` into `root` in the layout of CUHK-PEDES; `drawing.draw` guards what stands there.

    Writes `imgs/`, `reid_raw.json` and, for `report` alone, `attributes.json`. They take the place of former ones
    only when everything is rendered, `reid_raw.json` last. The same drawing gives the same bytes whatever the number
    of workers; the people of val and test stay the same when only `ids` changes.

    Args:
        root: the folder of the data set.
        workers: number of processes; by default one for each core.
        on_image: told how many more images are done.

    Raises:
        UsageError: fewer than one worker.
        InputError: `root` cannot be written.
        TiprError: a process was killed.
    """
    workers = cores() if workers is None else workers
    if workers < 1:
        raise UsageError(
            f"The number of workers must be at least 1, not {workers}", remedy="Leave --workers out for all cores."
        )
    root = Path(root)
    try:
        with _empty_folder(root) as folder, process_map(workers, chunk=_CHUNK) as over_all:
            jobs = _jobs(drawing, folder / IMAGES)
            records, people, images = [], {}, {}
            for job, (rendered, told) in zip(jobs, over_all(_render, jobs), strict=True):
                records += rendered
                people[str(job.pid)] = job.person.attributes()
                images |= told
                on_image(len(rendered))
            _install(root, folder, records, {"people": people, "images": images})
    except OSError as error:
        raise InputError(
            f"Cannot write the data set: {error.strerror or error}",
            where=root,
            remedy="Free some space or choose a folder that can be written with --root.",
        ) from error


@contextmanager
def _empty_folder(root: Path) -> Iterator[Path]:
    """An empty folder below `root` to render into; those that killed renderings left there go away."""
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(f"{_PREFIX}*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(dir=root, prefix=_PREFIX) as folder:
        yield Path(folder)


def _jobs(drawing: Drawing, folder: Path) -> list[_Job]:
    """One job an identity in the order of their pids, from 1: train, val, test."""
    groups = families(drawing.seed) if drawing.hard else ([person] for person in unique_people(drawing.seed))
    number, members = count(), {}
    # The first people are those of test, so that another number of training identities leaves them as they are.
    for split, size in (("test", drawing.test_ids), ("val", drawing.val_ids), ("train", drawing.ids)):
        people = _whole_groups(groups, size)
        members[split] = [(split, f"synth-pedes:{drawing.seed}:{next(number)}", person) for person in people]
        if people:
            (folder / split).mkdir(parents=True)
    manner = HARD if drawing.hard else USUAL
    return [
        _Job(pid, split, person, key, folder, manner)
        for pid, (split, key, person) in enumerate(members["train"] + members["val"] + members["test"], start=1)
    ]


def _whole_groups(groups: Iterator[list[Person]], size: int) -> list[Person]:
    """The people of the next groups, so many in all; who is left of the last group is in no split."""
    people: list[Person] = []
    while len(people) < size:
        people += next(groups)
    return people[:size]


def _render(job: _Job) -> tuple[list[dict], dict[str, dict]]:
    """Write the images of one identity; its records for the annotations and, by path, what its captions say."""
    rng = Random(job.key)
    records, told = [], {}
    for number, shot in enumerate(sample_shots(rng, IMAGES_PER_PERSON)):
        path = f"{job.split}/{job.pid:05d}_{number}.jpg"
        (job.folder / path).write_bytes(photograph(job.person, shot, rng))
        hidden = shot.hidden(job.person)
        captions = [describe(job.person, hidden, shot.view, rng, job.manner) for _ in range(CAPTIONS_PER_IMAGE)]
        records.append(
            {
                "split": job.split,
                "captions": [caption.text for caption in captions],
                "file_path": path,
                "processed_tokens": [re.findall(r"[a-z]+", caption.text.lower()) for caption in captions],
                "id": job.pid,
            }
        )
        told[path] = {
            "view": shot.view,
            "hidden": sorted(hidden),
            "captions": [{"mentions": dict(caption.mentions), "mistakes": caption.mistakes} for caption in captions],
        }
    return records, told


def _install(root: Path, folder: Path, records: list[dict], attributes: dict) -> None:
    """Put the rendered images and their annotations in the place of the former ones.

    The annotations go first and come last: a crash in between leaves a folder that is plainly not prepared.
    """
    (root / ANNOTATIONS).unlink(missing_ok=True)
    write_text(root / ATTRIBUTE_FILE, json.dumps(attributes))
    if (root / IMAGES).exists():
        (root / IMAGES).rename(folder / "former")
    (folder / IMAGES).rename(root / IMAGES)
    write_text(root / ANNOTATIONS, json.dumps(records))

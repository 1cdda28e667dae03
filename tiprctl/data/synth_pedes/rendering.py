"""Renders the whole data set on all cores and puts it in place at once."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random

from tiprctl.data.synth_pedes.camera import photograph, sample_shots
from tiprctl.data.synth_pedes.oracle import ANNOTATIONS, ATTRIBUTE_FILE
from tiprctl.data.synth_pedes.people import Person, unique_people
from tiprctl.data.synth_pedes.wording import describe
from tiprctl.errors import InputError, TiprError, UsageError
from tiprctl.files import write_text

IMAGES_PER_PERSON, CAPTIONS_PER_IMAGE = 4, 2

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


def generate(
    root: Path,
    *,
    ids: int = 3000,
    val_ids: int = 100,
    test_ids: int = 200,
    seed: int = 0,
    workers: int | None = None,
    on_image: Callable[[int], None] | None = None,
) -> None:
    """Render `synth-pedes` into `root` in the layout of CUHK-PEDES.

    Writes `imgs/`, `reid_raw.json` and, for `report` alone, `attributes.json`. They take the place of a former
    `synth-pedes` only when everything is rendered, `reid_raw.json` last. The same numbers and seed give the same bytes
    whatever the number of workers; the people of val and test stay the same when only `ids` changes.

    Args:
        root: the folder of the data set.
        ids: number of training identities, each with four images and two captions an image.
        val_ids: number of identities for model selection.
        test_ids: number of identities for the final figures.
        seed: seed of everything random.
        workers: number of processes; by default one for each core.
        on_image: called with the number of images that were finished since its last call.

    Raises:
        UsageError: a number that makes no sense.
        InputError: `root` holds another data set or cannot be written.
        TiprError: a process was killed.
    """
    _check_numbers(ids, val_ids, test_ids, workers)
    root = Path(root)
    _check_vacant(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=root, prefix=".rendering-") as folder,
            _processes(workers or _cores()) as over_all,
        ):
            jobs = _jobs(ids, val_ids, test_ids, seed, Path(folder) / "imgs")
            records, people, images = [], {}, {}
            for job, (rendered, told) in zip(jobs, over_all(_render, jobs), strict=True):
                records += rendered
                people[str(job.pid)] = job.person.attributes()
                images |= told
                if on_image is not None:
                    on_image(len(rendered))
            _install(root, Path(folder), records, {"people": people, "images": images})
    except OSError as error:
        raise InputError(
            f"Cannot write the data set: {error.strerror or error}",
            where=root,
            remedy="Free some space or choose a folder that can be written with --root.",
        ) from error


def _check_numbers(ids: int, val_ids: int, test_ids: int, workers: int | None) -> None:
    for option, value in (("--ids", ids), ("--val-ids", val_ids), ("--test-ids", test_ids)):
        if value < 0:
            raise UsageError(f"{option} must not be negative: {value}", remedy="Give a number from 0 up.")
    if not ids + val_ids + test_ids:
        raise UsageError("There is nobody to draw", remedy="Give --ids, --val-ids or --test-ids a positive number.")
    if workers is not None and workers < 1:
        raise UsageError(
            f"The number of workers must be at least 1, not {workers}", remedy="Leave --workers out for all cores."
        )


def _check_vacant(root: Path) -> None:
    """Refuse to replace images or captions that are not ours."""
    taken = [name for name in ("imgs", ANNOTATIONS) if (root / name).exists()]
    if taken and not (root / ATTRIBUTE_FILE).exists():
        raise InputError(
            f"This folder holds another data set ({' and '.join(taken)}), which would be lost",
            where=root,
            remedy="Choose another folder with --root.",
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(ids: int, val_ids: int, test_ids: int, seed: int, folder: Path) -> list[_Job]:
    """One job an identity in the order of their pids, from 1: train, val, test."""
    people = list(islice(unique_people(seed), test_ids + val_ids + ids))
    # The first people are those of test, so that another number of training identities leaves them as they are.
    numbered = list(enumerate(people))
    test, val, train = numbered[:test_ids], numbered[test_ids : test_ids + val_ids], numbered[test_ids + val_ids :]
    members = [(split, *one) for split, group in (("train", train), ("val", val), ("test", test)) for one in group]
    for split in {split for split, _, _ in members}:
        (folder / split).mkdir(parents=True)
    return [
        _Job(pid, split, person, f"synth-pedes:{seed}:{number}", folder)
        for pid, (split, number, person) in enumerate(members, start=1)
    ]


@contextmanager
def _processes(workers: int) -> Iterator[Callable]:
    """A `map` over so many processes; when the block ends, none of them writes any more."""
    if workers == 1:
        yield map
        return
    # Fresh processes, since forking a process that runs threads (torch has them) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            yield partial(pool.map, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise TiprError(
                "A process that draws was ended from outside, perhaps for want of memory",
                remedy="Free some memory, or draw with fewer processes: --workers 1.",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process, which stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render(job: _Job) -> tuple[list[dict], dict[str, dict]]:
    """Write the images of one identity; its records for the annotations and, by path, what its captions say."""
    rng = Random(job.key)
    records, told = [], {}
    for number, shot in enumerate(sample_shots(rng, IMAGES_PER_PERSON)):
        path = f"{job.split}/{job.pid:05d}_{number}.jpg"
        (job.folder / path).write_bytes(photograph(job.person, shot, rng))
        hidden = shot.hidden(job.person)
        captions = [describe(job.person, hidden, shot.view, rng) for _ in range(CAPTIONS_PER_IMAGE)]
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
    if (root / "imgs").exists():
        (root / "imgs").rename(folder / "former")
    (folder / "imgs").rename(root / "imgs")
    write_text(root / ANNOTATIONS, json.dumps(records))

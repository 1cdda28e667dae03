"""A gallery with several writers and readers, on disks that are full or closed, with files and clocks that are wrong."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import galleries
import pytest
from galleries import (
    BATCH,
    GALLERY,
    INDEX_FROM,
    NAMES,
    PUT,
    UNPRIVILEGED,
    Moment,
    Workplace,
    rows_of,
    same_rows,
)

from tiprctl.gallery.keeping.engine import EngineError, faults
from tiprctl.gallery.keeping.schema import FORMAT, METADATA

LISTED = "tiprctl.gallery.filling.adding:_Run.run"
"""What is called once the folder was listed."""
READER_FLAGS, WRITER_FLAGS = 9, 10
"""Fields of the protocol's message `lance.table.Manifest`."""
AGAIN = "then give the same command again: what was committed is kept."


@pytest.fixture
def place(archive, tmp_path) -> Workplace:
    """A folder of its own beside the same crops, without a gallery."""
    for name in ("model", "crops"):
        (tmp_path / name).symlink_to(archive.folder / name)
    return Workplace(tmp_path)


@pytest.fixture
def own(archive, tmp_path) -> Workplace:
    """A copy of the crops, without a gallery."""
    for name in ("model", "crops"):
        shutil.copytree(archive.folder / name, tmp_path / name)
    return Workplace(tmp_path)


def read_while(wait: Callable[[], object], place: Workplace, rows: galleries.Rows) -> list[int]:
    """How many rows a reader in a loop sees until `wait` returns; fails where an answer is not whole and right."""
    seen, last = [], False
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        while not last:
            last = waiting.done()
            store = place.store()
            there = {path: rows[path] for path in rows_of(store)}
            assert galleries.recall(store, there) == 1
            seen.append(len(there))
        waiting.result()
    return seen


def test_two_adders_share_what_both_are_to_add(archive, place):
    held = place.start_index("add", "crops", at=Moment(PUT, then="wait"))
    held.reached()
    assert place.index("add", "crops/cam_a").document["added"] == len(NAMES) // 2
    first = held.end().document
    assert first["added"] == first["updated"] + first["elsewhere"] == len(NAMES) // 2
    same_rows(place.rows(), archive.rows())


def test_two_adders_at_once_make_one_gallery(archive, place):
    both = [place.start_index("add", "crops", at=Moment("os:rename", then="wait")) for _ in range(2)]
    for one in both:
        one.reached()
    for one in both:
        one.line.send(b".")
    for one in both:
        assert one.end().document["rows"] == len(NAMES)
    same_rows(place.rows(), archive.rows())
    assert [one.name for one in place.folder.iterdir() if one.name.startswith(".")] == []


def test_two_adders_at_once_add_the_same_column(place):
    (place.folder / "table.csv").write_text("path,note\n" + "".join(f"{name},{Path(name).name}\n" for name in NAMES))
    galleries.paint(place.folder / "first", ["first.png"], seed=1)
    place.index("add", "first")
    options = ("--metadata", "table.csv")
    add_columns = Moment("lance:LanceDataset.add_columns", then="wait")
    both = [place.start_index("add", "crops", *options, at=add_columns) for _ in range(2)]
    for one in both:
        one.reached()
    for one in both:
        one.line.send(b".")
    for one in both:
        assert one.end().document["rows"] == len(NAMES) + 1
    notes = {Path(path).name: row["note"] for path, row in place.rows().items()}
    assert notes == {"first.png": None} | {Path(name).name: Path(name).name for name in NAMES}


def test_a_reader_beside_an_adder_sees_whole_commits(archive, place):
    adder = place.start_index("add", "crops", at=Moment(PUT, 3, then="wait"))
    adder.reached()
    hits = place.query("a red coat", "--top", "100", "--json").document["results"][0]["hits"]
    assert len(hits) == 2 * BATCH
    seen = read_while(lambda: adder.end().document, place, archive.rows())
    assert seen == sorted(seen)
    assert seen[-1] == len(NAMES)


def test_a_reader_beside_an_optimise_gets_the_same_answers(many, tmp_path):
    place = Workplace(tmp_path)
    shutil.copytree(many.folder, tmp_path, dirs_exist_ok=True)
    before = place.query("a red coat", "--plain").stdout
    opened = place.store()
    held = place.start_index(
        "optimise", at=Moment("tiprctl.gallery.keeping.upkeep:forget_old_versions", then="wait", indexed=True)
    )
    seen = read_while(held.reached, place, many.rows())
    assert set(seen) == {INDEX_FROM + 1}
    assert place.query("a red coat", "--plain").stdout == before
    assert held.end().document["rows"] == INDEX_FROM + 1
    assert place.query("a red coat", "--plain").stdout == before
    assert rows_of(opened) == many.rows()


FILLED = """
mkdir full && mount -t tmpfs -o size=200k tmpfs full || exit 99
"$@"; code=$?
cp -r full/gallery.lance before.lance
mount -o remount,size=64m full
"$@"; again=$?
cp -r full/gallery.lance .
[ $code = 3 ] && exit $again
"""
"""The same command on a small disk of its own, and once more when it has grown."""


def test_a_full_disk_costs_no_row_and_the_same_command_goes_on(archive, place):
    own_disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FILLED, "sh"]
    options = ["--gallery", "full/gallery.lance", "--model", "model", "--batch-size", str(BATCH), "--json"]
    done = place.run("index", "add", "crops", *options, at=Moment(), prefix=own_disk)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no disk can be mounted without privileges here")
    before = place.rows("before.lance")
    assert 0 < len(before) < len(NAMES)
    assert f"error: The disk is full\n  full/gallery.lance\n  Free some space, {AGAIN}" in done.stderr
    assert (done.document["unchanged"], done.document["added"]) == (len(before), len(NAMES) - len(before))
    same_rows(place.rows(), archive.rows())


def test_a_file_that_the_system_refuses_costs_no_row(archive, place):
    place.index("add", "crops/cam_a")
    rows = place.rows()
    refused = place.index("add", "crops", prefix=["prlimit", "--fsize=500"])
    assert refused.returncode == 3
    assert f"error: The system allows no larger file\n  gallery.lance\n  Free some space, {AGAIN}" in refused.stderr
    assert place.rows() == rows
    assert place.index("add", "crops").document["added"] == len(NAMES) // 2
    same_rows(place.rows(), archive.rows())


@pytest.mark.parametrize(
    "told, what, remedy",
    [
        ("LanceError(IO): write failed (os error 28)", "The disk is full", "Free some space"),
        ("LanceError(IO): write failed (os error 122)", "The disk quota is used up", "Free some space"),
        ("Read-only file system (os error 30)", "The gallery lies on a disk that is mounted read-only", "Give access"),
        ("Retryable commit conflict for version 7: more", "Other processes are writing the gallery", "Wait until they"),
        ("something else, /src/io.rs:7", "The gallery's engine failed: something else", "The caller's remedy."),
    ],
)
def test_what_the_engine_says_becomes_what_to_do(told, what, remedy):
    with pytest.raises(EngineError) as caught, faults("gallery.lance", "The caller's remedy."):
        raise OSError(told)
    assert caught.value.what.startswith(what)
    assert caught.value.where == "gallery.lance"
    assert caught.value.remedy.startswith(remedy)


def test_a_gallery_that_cannot_be_written_is_searched(own):
    own.index("add", "crops")
    answer, rows = own.query("a red coat", "--json").stdout, own.rows()
    galleries.paint(own.folder / "crops", ["new.png"], seed=1)
    everything = [own.gallery, *own.gallery.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    shut = {"prefix": UNPRIVILEGED}
    try:
        assert own.query("a red coat", "--json", **shut).stdout == answer
        assert own.index("status", **shut).document["rows"] == len(NAMES)
        for command in (["add", "crops"], ["sync", "crops"], ["remove", "crops/cam_a/00.png"]):
            refused = own.index(*command, **shut)
            assert refused.returncode == 3
            assert f"error: The system denies access to the gallery\n  gallery.lance\n  Give access to it, {AGAIN}" in (
                refused.stderr
            )
    finally:
        for path in everything:
            path.chmod(0o755)
    assert own.rows() == rows


def test_files_deleted_after_the_listing_are_named_and_cost_no_other(archive, own):
    gone = [*(name for name in NAMES if "cam_b" in name), NAMES[0]]
    held = own.start_index("add", "crops", at=Moment(LISTED, then="wait"))
    held.reached()
    shutil.rmtree(own.folder / "crops" / "cam_b")
    (own.folder / "crops" / NAMES[0]).unlink()
    done = held.end()
    reason = "it was deleted after it had been listed"
    assert sorted(one["path"] for one in done.document["skipped"]) == sorted(gone)
    assert {one["reason"] for one in done.document["skipped"]} == {reason}
    assert f"21 skipped: {NAMES[0]} ({reason})" in done.stderr
    assert {Path(path).name for path in own.rows()} == {Path(name).name for name in NAMES} - {
        Path(name).name for name in gone
    }


def test_damaged_images_are_named_and_cost_no_other(tmp_path, archive):
    place = Workplace(tmp_path)
    (tmp_path / "model").symlink_to(archive.folder / "model")
    names = [f"{number:03}.jpg" for number in range(300)]
    galleries.paint(tmp_path / "crops", names)
    damaged = names[::20]
    for number, name in enumerate(damaged):
        file = tmp_path / "crops" / name
        content = file.read_bytes()
        file.write_bytes([content[: len(content) // 2], b"", b"a note, no picture", bytes(len(content))][number % 4])
    for command in ("add", "sync"):
        done = place.index(command, "crops").document
        assert [one["path"] for one in done["skipped"]] == damaged
        assert all(one["reason"] for one in done["skipped"])
        assert {Path(path).name for path in place.rows()} == set(names) - set(damaged)
    galleries.paint(tmp_path / "crops", names)
    assert place.index("sync", "crops").document["added"] == len(damaged)
    assert len(place.rows()) == len(names)


def test_a_gallery_of_a_newer_format_is_refused(own):
    own.index("add", "crops/cam_a")
    about = json.loads(own.store().schema.metadata[METADATA])
    own.store().dataset.update_schema_metadata({METADATA.decode(): json.dumps({**about, "format": FORMAT + 1})})
    refused_by_all(own, f"made by a newer tiprctl: its format is {FORMAT + 1}", "pip install --upgrade tiprctl.")


def test_a_gallery_of_a_newer_lance_is_refused(own):
    own.index("add", "crops/cam_a")
    newest = min((own.gallery / "_versions").glob("*.manifest"))
    newest.write_bytes(with_unknown_flags(newest.read_bytes()))
    refused_by_all(own, "written by a newer Lance than this program has", "pip install --upgrade tiprctl pylance.")


def with_unknown_flags(manifest: bytes) -> bytes:
    """A manifest of a format with features that no Lance has yet.

    The message ends at the footer, and begins with its length where the footer says.
    """
    start = struct.unpack("<Q", manifest[-16:-8])[0]
    unknown = bytes([0x80] * 5 + [0x01])  # 2**35 as a varint
    flags = b"".join(bytes([number << 3]) + unknown for number in (READER_FLAGS, WRITER_FLAGS))
    message = manifest[start + 4 : -16] + flags
    return manifest[:start] + struct.pack("<I", len(message)) + message + manifest[-16:]


def refused_by_all(place: Workplace, what: str, remedy: str) -> None:
    """Fail unless every command refuses the gallery with this message, and leaves every byte of it."""
    files = contents(place.gallery)
    for command in (
        ["index", "add", "crops", "--model", "model"],
        ["index", "optimise"],
        ["query", "a red coat"],
    ):
        refused = place.run(*command, "--gallery", GALLERY)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert what in refused.stderr.splitlines()[0]
        assert refused.stderr.splitlines()[1:] == [f"  {GALLERY}", f"  Upgrade tiprctl: {remedy}"], refused.stderr
    assert contents(place.gallery) == files


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += atol(getenv("CLOCK_OFFSET"));
    return failed;
}
"""
DAY = 24 * 3600


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """The environment of a process whose clock is so many seconds ahead."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("setting the clock of a process takes a C compiler")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c", "-ldl"], check=True)
    return lambda ahead: {"LD_PRELOAD": str(folder / "clock.so"), "CLOCK_OFFSET": str(ahead)}


def test_a_clock_that_jumps_back_loses_and_doubles_nothing(own, clock):
    ahead = Workplace(own.folder, clock(30 * DAY))
    crops = own.folder / "crops"
    assert ahead.index("add", "crops/cam_a").document["added"] == len(NAMES) // 2
    opened = own.store()
    assert opened.dataset.versions()[-1]["timestamp"].timestamp() > time.time() + 29 * DAY
    before = rows_of(opened)
    galleries.paint(crops, NAMES[:BATCH], seed=1)
    for name in NAMES[:BATCH]:
        os.utime(crops / name, (0, 0))
    done = own.index("sync", "crops").document
    assert (done["updated"], done["added"]) == (BATCH // 2, len(NAMES) // 2)
    assert own.index("optimise").returncode == 0
    assert rows_of(opened) == before
    whole = own.run("index", "add", "crops", "--gallery", "whole.lance", "--model", "model")
    assert whole.returncode == 0
    same_rows(own.rows(), own.rows("whole.lance"))
    assert own.index("sync", "crops").document["unchanged"] == len(NAMES)


def test_a_clock_that_jumps_ahead_takes_no_version_from_who_writes(archive, place, clock):
    adder = place.start_index("add", "crops", at=Moment(PUT, 3, then="wait"))
    adder.reached()
    opened = place.store().dataset.version
    assert Workplace(place.folder, clock(30 * DAY)).index("optimise").returncode == 0
    assert opened not in [one["version"] for one in place.store().dataset.versions()]
    assert adder.end().document["added"] == len(NAMES)
    same_rows(place.rows(), archive.rows())

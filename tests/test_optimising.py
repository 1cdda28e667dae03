"""The upkeep of a gallery's indexes: when it is due, and that it loses nothing, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner
from vector_galleries import gallery, names, table, unit

from tiprctl.cli import index_session
from tiprctl.cli.app import app
from tiprctl.gallery.keeping import settling, upkeep
from tiprctl.gallery.keeping.engine import ConflictError, EngineError, faults
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import calibration, finding, optimising, vector_index
from tiprctl.gallery.searching.finding import find
from tiprctl.gallery.searching.optimising import needed, optimise
from tiprctl.gallery.searching.vector_index import Tuning, read_tuning

ROWS = 1000


@pytest.fixture(autouse=True)
def indexed_early(monkeypatch):
    monkeypatch.setattr(calibration, "_QUERIES", 16)
    for module in (finding, optimising):
        monkeypatch.setattr(module, "EXACT_ROWS", 500)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimising, "EXACT_ROWS", 500)
        store = gallery(folder, ROWS)
        store.add_columns({"shift": pa.int64(), "inside": pa.bool_(), "boxes": pa.list_(pa.int64())})
        optimise(store)
    return folder


@pytest.fixture
def store(made, tmp_path) -> GalleryStore:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return GalleryStore.open(tmp_path / "gallery.lance")


def paths(store: GalleryStore) -> list[str]:
    return sorted(path for batch in store.scan(["path"]) for path in batch["path"].to_pylist())


def test_upkeep_is_due_for_large_galleries_and_after_growth(tmp_path, store):
    assert needed(gallery(tmp_path / "small", 500)) is None
    assert needed(gallery(tmp_path / "bare", 501)) == "its 501 rows have no index"
    assert needed(store) is None
    store.put(table(names(101, ROWS), unit(101, seed=1)))
    assert needed(store) is None
    store.put(table(names(20, ROWS + 101), unit(20, seed=2)))
    assert needed(store) == "121 of its 1,121 rows are not in the index"


def test_a_small_gallery_gets_no_vector_index(tmp_path):
    store = gallery(tmp_path, 100)
    done = optimise(store)
    assert (done.rows, done.index, done.tuning) == (100, None, None)
    assert store.dataset.describe_indices() == []


def test_many_small_commits_are_put_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "_SPARE", 4)
    store = gallery(tmp_path, 100)
    upkeep.index_scalars(store)  # as of a gallery that was larger
    for number in range(4):
        store.put(table([f"/x/{number}"], unit(1, seed=number)))
    assert needed(store) is None
    store.put(table(["/x/4"], unit(1)))
    assert needed(store) == "its 105 rows lie in 6 files"
    assert index_session.keep_indexed(store) is False
    assert needed(store) is None
    assert len(store.dataset.get_fragments()) == 1
    assert paths(store) == sorted([*names(100), *(f"/x/{number}" for number in range(5))])


def test_versions_of_long_ago_are_removed_where_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "_SPARE", 4)
    store = gallery(tmp_path, 100)
    for number in range(6):
        store.set_settings({"number": str(number)})
    assert needed(store) is None
    monkeypatch.setattr(upkeep, "_KEPT", upkeep.timedelta(0))
    assert needed(store).endswith("versions of long ago")
    assert index_session.keep_indexed(store) is False
    assert needed(store) is None
    assert store.settings() == {"number": "5"} and len(store) == 100


def test_many_small_commits_to_a_large_gallery_leave_its_index(store, monkeypatch):
    monkeypatch.setattr(upkeep, "_SPARE", 4)
    for number in range(10):
        store.put(table([f"/x/{number}"], unit(1, seed=number)))
    assert needed(store) == f"its {ROWS + 10:,} rows lie in 11 files"
    assert index_session.keep_indexed(store) is False
    assert needed(store) is None
    assert vector_index.indexed_rows(store) == ROWS


def test_the_index_of_a_column_is_built_anew_where_it_has_lost_its_rows(store):
    store.revise(pa.table({"path": names(100), "camera": ["new"] * 100}))
    assert needed(store) == "1,000 of its 1,000 rows are not in the index of camera"
    assert index_session.keep_indexed(store) is True
    assert needed(store) is None
    store.add_columns({"place": pa.string()})
    assert needed(store) == "1,000 of its 1,000 rows are not in the index of place"


def test_columns_of_the_user_are_indexed(store):
    indexed = {index.field_names[0] for index in store.dataset.describe_indices()}
    assert indexed == {"path", "hash", "time", "camera", "shift", "inside", "vector"}


def test_an_index_is_extended_and_laid_out_anew_when_the_gallery_has_doubled(store):
    store.put(table(names(200, ROWS), unit(200, seed=1)))
    steps = []
    done = optimise(store, notes=steps.append)
    assert (done.index, done.rows, done.tuning.trained_rows) == ("extended", 1200, ROWS)
    assert "Extending the vector index" in steps and "Building the vector index" not in steps
    assert needed(store) is None
    assert vector_index.indexed_rows(store) == 1200
    store.put(table(names(900, ROWS + 200), unit(900, seed=2)))
    done = optimise(store)
    assert (done.index, done.rows, done.tuning.trained_rows) == ("built", 2100, 2100)
    assert paths(store) == names(2100)


def test_small_files_are_joined(tmp_path):
    store = gallery(tmp_path, 10)
    for number in range(4):
        store.put(table([f"/x/{number}"], unit(1, seed=number)))
    store.remove(["/x/0"])
    done = optimise(store)
    assert done.files_joined == 3  # the file of the row that was removed is gone already
    assert len(store.dataset.get_fragments()) == 1
    assert paths(store) == sorted([*names(10), "/x/1", "/x/2", "/x/3"])


def test_the_share_of_partitions_is_the_least_that_finds_enough(store, monkeypatch):
    tuning = calibration.calibrate(store, read_tuning(store))
    assert tuning.recall >= 0.98
    assert calibration.calibrate(store, tuning, unit(300, seed=9)).recall >= 0.98
    monkeypatch.setattr(calibration, "_AIM", 0.2)
    lax = calibration.calibrate(store, tuning)
    assert lax.share < tuning.share
    assert lax.recall >= 0.2


def test_a_copy_of_a_crop_is_as_good_as_the_crop(tmp_path):
    store = gallery(tmp_path, 1)
    store.put(table(names(ROWS)[::-1], unit(ROWS // 20).repeat(20, axis=0)))
    assert optimise(store).tuning.recall >= 0.98


def test_an_index_that_finds_too_little_is_not_used(store, monkeypatch):
    monkeypatch.setattr(finding, "_SELECTED_ROWS", 100)
    calibrate = optimising.calibrate
    monkeypatch.setattr(optimising, "calibrate", lambda *given: replace(calibrate(*given), recall=0.9))
    steps = []
    assert optimise(store, notes=steps.append).tuning.recall == 0.9
    assert steps[-1] == "Recall@10 0.900 is less than 0.98: it is searched exactly"
    assert find(store, unit(1), 3)[0].exact and find(store, unit(1), 3, where="camera = 'even'")[0].exact
    assert needed(store) is None  # building it again would help no more
    found = CliRunner().invoke(app, ["index", "status", "--gallery", store.uri])
    assert "0.900, too little" in found.stdout


def test_more_is_probed_for_filters_and_for_deep_rankings():
    tuning = Tuning("an index", trained_rows=100, partitions=10, share=0.2)
    assert tuning.deepened(10, 1.0).share == pytest.approx(0.2)
    assert tuning.deepened(100, 1.0).share == pytest.approx(0.4)
    assert tuning.deepened(10, 0.5).share == pytest.approx(0.4)
    assert tuning.deepened(1000, 0.1).share == 1.0
    assert tuning.deepened(1, 1.0).share == pytest.approx(0.2)


@pytest.mark.parametrize("dropped", [False, True])
def test_an_index_that_was_not_calibrated_is_not_used(store, dropped):
    assert not find(store, unit(1), 3)[0].exact
    if dropped:
        upkeep.drop_indexes(store)
        upkeep.index_scalars(store)
    vector_index.build(store)
    vector_index.keep_newest(store)
    store.refresh()
    assert needed(store) == "its index was not calibrated"
    assert find(store, unit(1), 3)[0].exact
    assert optimise(store).index == "built"
    assert needed(store) is None
    assert not find(store, unit(1), 3)[0].exact


def test_processes_that_build_at_once_keep_the_same_index(store):
    one, other = GalleryStore.open(store.uri), GalleryStore.open(store.uri)
    built = [vector_index.build(process).index for process in (one, other)]
    for process in (one, other):
        settling.settled(process, lambda process=process: vector_index.keep_newest(process))
    store.refresh()
    (kept,) = [index.name for index in store.dataset.describe_indices() if index.field_names == ["vector"]]
    assert kept == max(built)
    assert optimise(store).index == "built" and needed(store) is None


def test_an_index_that_another_process_has_dropped_is_a_conflict(store):
    other = GalleryStore.open(store.uri)
    upkeep.drop_indexes(store)
    with pytest.raises(ConflictError):
        upkeep.drop_indexes(other)
    settling.settled(other, lambda: upkeep.drop_indexes(other))
    assert other.dataset.describe_indices() == []


def test_an_index_serves_until_the_next_is_there(store, monkeypatch):
    monkeypatch.setattr(optimising, "_GROWTH", 0)
    exactly = []

    def asked(change: Callable) -> Callable:
        def asking(*given: object, **named: object) -> object:
            exactly.append(find(GalleryStore.open(store.uri), unit(1), 3)[0].exact)
            return change(*given, **named)

        return asking

    monkeypatch.setattr(type(store.dataset), "create_index", asked(type(store.dataset).create_index))
    monkeypatch.setattr(optimising, "calibrate", asked(optimising.calibrate))
    assert optimise(store).index == "built"
    assert exactly[-2:] == [False, True]
    assert not find(store, unit(1), 3)[0].exact


def test_an_index_is_trusted_after_its_rows_were_moved_or_added(store):
    store.remove(names(100))
    upkeep.compact(store)
    assert read_tuning(GalleryStore.open(store.uri)) == read_tuning(store) is not None
    store.put(table(names(200, ROWS), unit(200, seed=1)))
    vector_index.extend(store, read_tuning(store))
    assert read_tuning(GalleryStore.open(store.uri)) is not None
    assert not find(store, unit(1), 3)[0].exact


def test_a_change_is_begun_anew_where_others_were_quicker(store):
    tries = []

    def change() -> str:
        tries.append(store.dataset.version)
        if len(tries) < 3:
            other = GalleryStore.open(store.uri)
            other.put(table([f"/other/{len(tries)}"], unit(1)))
            raise ConflictError("Retryable commit conflict for version 7")
        return "done"

    assert settling.settled(store, change) == "done"
    assert tries == sorted(set(tries)) and len(tries) == 3
    with pytest.raises(EngineError, match="full"):
        settling.settled(store, lambda: (_ for _ in ()).throw(EngineError("The disk is full")))


def test_a_change_that_others_leave_no_time_is_given_up_and_left_to_another_time(store, monkeypatch, capsys):
    monkeypatch.setattr(settling, "_PATIENCE", 0.0)
    monkeypatch.setattr(settling, "_LONGEST_PAUSE", 0.0)
    tries = []

    def preempted(*_: object) -> None:
        tries.append(store.dataset.version)
        raise ConflictError("Retryable commit conflict for version 7")

    with pytest.raises(ConflictError):
        settling.settled(store, preempted)
    assert len(tries) == 5
    store.put(table(names(200, ROWS), unit(200, seed=1)))
    monkeypatch.setattr(upkeep, "compact", preempted)
    assert index_session.keep_indexed(store) is False
    assert "other processes are writing it" in " ".join(capsys.readouterr().err.split())
    assert len(tries) == 10 and needed(store) is not None


def test_an_index_in_the_way_is_dropped_but_not_for_a_full_disk(store, monkeypatch):
    compact = upkeep.compact

    def fail(message: str):
        def change(opened: GalleryStore) -> int:
            with faults(opened.uri, ""):
                if opened.dataset.describe_indices():
                    raise OSError(message)
            return compact(opened)

        return change

    monkeypatch.setattr(upkeep, "compact", fail("LanceError(IO): No space left on device (os error 28)"))
    with pytest.raises(EngineError, match="The disk is full"):
        optimise(store)
    assert needed(store) is None
    monkeypatch.setattr(upkeep, "compact", fail("The file is corrupt"))
    assert optimise(store).index == "built"
    assert needed(store) is None


def test_a_row_that_was_removed_leaves_the_disk(store, monkeypatch):
    monkeypatch.setattr(upkeep, "_KEPT", upkeep.timedelta(0))
    (path,) = paths(store)[:1]
    vector = next(batch["vector"][0] for batch in store.scan(["vector"], f"path = '{path}'"))
    data = vector.values.to_numpy().tobytes()
    assert data in b"".join(file.read_bytes() for file in Path(store.uri, "data").iterdir())
    store.remove([path])
    optimise(store)
    assert data not in b"".join(file.read_bytes() for file in Path(store.uri, "data").iterdir())
    assert len(store) == len(paths(store)) == ROWS - 1


def test_a_row_that_is_replaced_leaves_the_disk_and_the_others_their_index(store, monkeypatch):
    monkeypatch.setattr(upkeep, "_KEPT", upkeep.timedelta(0))
    data = unit(ROWS)[7].tobytes()
    store.put(table(names(1, 7), unit(1, seed=9)))
    assert vector_index.indexed_rows(store) == ROWS - 1
    assert upkeep.unindexed_columns(store)["path"] == 1
    optimise(store)
    assert data not in b"".join(file.read_bytes() for file in Path(store.uri, "data").iterdir())
    assert vector_index.indexed_rows(store) == len(store) == ROWS


def test_old_versions_stay_for_an_hour(store, monkeypatch):
    reader = GalleryStore.open(store.uri)
    store.put(table(names(5), unit(5, seed=1)))
    optimise(store)
    assert len(find(reader, unit(1), 3)[0]) == 3
    versions = len(store.dataset.versions())
    monkeypatch.setattr(upkeep, "_KEPT", upkeep.timedelta(0))
    assert upkeep.forget_old_versions(store) > 0
    assert len(store.dataset.versions()) < versions
    assert paths(GalleryStore.open(store.uri)) == names(ROWS)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from vector_galleries import names, table, unit
from tiprctl.gallery.keeping.store import GalleryStore
store = GalleryStore.open({uri!r})
print("ready", flush=True)
for number in range(30):
    store.put(table([f"/w/{{number}}", f"/g/{{number:05d}}.jpg"], unit(2, seed=number)))
    store.remove([f"/g/{{999 - number:05d}}.jpg"])
"""
OPTIMISER = """
import sys
sys.path.insert(0, {tests!r})
from tiprctl.gallery.searching import finding, optimising
from tiprctl.gallery.keeping.store import GalleryStore
finding.EXACT_ROWS = optimising.EXACT_ROWS = 500
optimising._GROWTH = 0
store = GalleryStore.open({uri!r})
print("ready", flush=True)
while True:
    optimising.optimise(store)
"""


def start(code: str, store: GalleryStore, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """A process that has opened the gallery."""
    code = code.format(tests=str(Path(__file__).parent), uri=store.uri)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_rows_that_are_written_and_removed_meanwhile_are_kept_and_gone(store):
    with start(WRITER, store) as writer:
        while writer.poll() is None:
            optimise(store)
    assert writer.returncode == 0
    store.refresh()
    assert paths(store) == sorted([*names(ROWS - 30), *(f"/w/{number}" for number in range(30))])
    optimise(store)
    found = find(store, unit(2, seed=29)[:1], 1)[0]
    assert found.rows["path"].to_pylist() == ["/w/29"] and not found.exact


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8])
def test_killed_while_it_is_optimised_the_gallery_is_whole(seconds, store):
    with start(OPTIMISER, store) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    opened = GalleryStore.open(store.uri)
    assert paths(opened) == names(ROWS)
    for path, found in zip(names(5), find(opened, unit(ROWS)[:5], 1)):
        assert found.rows["path"].to_pylist() == [path]
        assert found.note is None
    optimise(opened)
    assert needed(opened) is None


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += atol(getenv("CLOCK_AHEAD"));
    return failed;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="the clock is set by a C library")
def test_a_clock_that_is_set_back_loses_nothing(store, tmp_path):
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c", "-ldl"], check=True)
    ahead = {"LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_AHEAD": str(400 * 86_400)}
    with start(WRITER, store, ahead) as writer:
        pass
    assert writer.returncode == 0
    written = sorted([*names(ROWS - 30), *(f"/w/{number}" for number in range(30))])
    store.refresh()
    newest = max(one["timestamp"] for one in store.dataset.versions())
    assert newest.timestamp() > time.time() + 300 * 86_400
    reader = GalleryStore.open(store.uri)
    store.put(table(["/after"], unit(1)))
    optimise(store)
    assert paths(store) == sorted([*written, "/after"])
    assert paths(reader) == written
    assert needed(store) is None

"""The gallery's store: rows that survive, and are there once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.filling.inputs import read_input
from tiprctl.gallery.filling.metadata import MetadataTable
from tiprctl.gallery.keeping import upkeep
from tiprctl.gallery.keeping.engine import ConflictError, EngineError, faults, signs
from tiprctl.gallery.keeping.schema import METADATA, ModelIdentity, new_schema
from tiprctl.gallery.keeping.store import GalleryStore, Written
from tiprctl.gallery.searching.finding import find
from tiprctl.gallery.status import read_status

MODEL = ModelIdentity(fingerprint="f00", width=4, precision="float32", description="a model", source="runs/a")


def rows(*paths: str, **columns: list) -> pa.Table:
    vectors = np.random.default_rng(len(paths)).standard_normal((len(paths), 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return pa.table(
        {
            "path": list(paths),
            "size": [len(path) for path in paths],
            **columns,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4),
        }
    )


def paths(store: GalleryStore) -> list[str]:
    return sorted(path for batch in store.scan(["path"]) for path in batch["path"].to_pylist())


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        return GalleryStore.in_memory(MODEL)
    return GalleryStore.create(tmp_path / "gallery.lance", MODEL)


def test_rows_are_added_replaced_and_removed(store):
    assert store.put(rows("/a", "/b")) == Written(2, 0)
    assert store.put(rows("/b", "/c", camera=["x", "y"])) == Written(1, 1)
    assert paths(store) == ["/a", "/b", "/c"]
    assert store.count("camera = 'x'") == 1
    assert store.remove(["/a", "/it's not there"]) == 1
    assert paths(store) == ["/b", "/c"]
    assert store.put(rows()) == Written(0, 0)


@pytest.fixture(params=["bare", "indexed"])
def writers(request, tmp_path) -> tuple[GalleryStore, GalleryStore]:
    """Two processes' views of a gallery of one row; Lance goes about it otherwise where the path has an index."""
    one = GalleryStore.create(tmp_path / "g.lance", MODEL)
    one.put(rows("/z"))
    if request.param == "indexed":
        upkeep.index_scalars(one)
    return one, GalleryStore.open(tmp_path / "g.lance")


@pytest.mark.parametrize("told", [{}, {"camera": ["x", "y"]}])
def test_two_writers_at_one_version_double_no_row(writers, told, monkeypatch):
    one, other = writers
    monkeypatch.setattr(other, "refresh", lambda: None)
    one.put(rows("/a", "/b", **told))
    other.put(rows("/b", "/c", **told))
    one.refresh()
    assert paths(one) == ["/a", "/b", "/c", "/z"]


@pytest.mark.parametrize("told", [{}, {"camera": ["x", "y"]}])
def test_writers_that_bring_the_same_at_once_double_no_row(writers, told):
    def bring(store: GalleryStore) -> int:
        return sum(store.put(rows(f"/{number}a", f"/{number}b", **told)).inserted for number in range(10))

    with ThreadPoolExecutor(2) as processes:
        assert sum(processes.map(bring, writers)) == 20
    writers[0].refresh()
    assert len(paths(writers[0])) == len(set(paths(writers[0]))) == 21


def test_writers_that_add_the_same_columns_and_settings_at_once_agree(writers):
    def tell(store: GalleryStore) -> None:
        for number in range(5):
            store.add_columns({f"column_{number}": pa.int64()})
            store.set_settings({f"name_{number}": "value"})

    with ThreadPoolExecutor(2) as processes:
        list(processes.map(tell, writers))
    writers[0].refresh()
    assert list(writers[0].user_types) == [f"column_{number}" for number in range(5)]
    assert writers[0].settings() == {f"name_{number}": "value" for number in range(5)}


def test_what_another_process_told_since_stays_where_rows_lack_it(writers, monkeypatch):
    one, other = writers
    monkeypatch.setattr(other, "refresh", lambda: None)
    one.put(rows("/it's", camera=["gate"]))
    other.put(rows("/it's"))
    assert other.count("camera = 'gate'") == 1 == len(other) - 1


def test_what_others_tell_of_rows_while_they_are_put_again_is_kept(writers):
    one, other = writers
    one.put(rows("/a", "/b"))

    def tell() -> None:
        for number in range(15):
            other.revise(pa.table({"path": ["/a", "/b"], "camera": [f"cam_{number}"] * 2}))

    with ThreadPoolExecutor(1) as others:
        telling = others.submit(tell)
        while not telling.done():
            one.put(rows("/a", "/b"))
    telling.result()
    one.refresh()
    assert one.count("camera = 'cam_14'") == 2 == len(one) - 1


def test_a_gallery_is_created_once(tmp_path):
    GalleryStore.create(tmp_path / "g.lance", MODEL).put(rows("/a"))
    assert len(GalleryStore.create(tmp_path / "g.lance", MODEL)) == 1
    other = ModelIdentity(fingerprint="bar", width=4, precision="float32", description="another", source="runs/b")
    with pytest.raises(UsageError, match="another model: a model, not another") as caught:
        GalleryStore.create(tmp_path / "g.lance", other)
    assert "--model runs/a" in caught.value.remedy


def test_columns_of_the_user_are_added_later_and_keep_their_type(store):
    store.put(rows("/a"))
    store.add_columns({"shift": pa.int64()})
    store.put(rows("/b", shift=[3]))
    assert store.count("shift = 3") == 1
    assert store.count("shift is null") == 1
    with pytest.raises(UsageError, match="'shift' is of type int64"):
        store.add_columns({"shift": pa.string()})
    with pytest.raises(UsageError, match="'path' cannot be added"):
        store.add_columns({"path": pa.string()})
    with pytest.raises(UsageError, match="'Shift' cannot be added: there is another of that name"):
        store.add_columns({"Shift": pa.int64()})


def test_a_local_gallery_is_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = GalleryStore.create("g.lance", MODEL)
    place = store.place
    monkeypatch.chdir("/")
    GalleryStore.open(place).put(rows("/a"))
    assert len(GalleryStore.open(tmp_path / "g.lance")) == 1


@pytest.mark.parametrize(
    "name, why",
    [("a.b", "expressions could not name it"), ("a`b", "expressions could not"), ("", "no name"), (" ", "no name")],
)
def test_columns_that_the_engine_refuses_are_refused_before(name, why, store):
    with pytest.raises(UsageError, match=f"'{name}' cannot be added: .*{why}"):
        store.add_columns({name: pa.string()})
    assert store.columns == [name for name in new_schema(MODEL).names if name != "vector"]


@pytest.mark.parametrize("heading", ["path,x,x", "path,x,X", "path,Path", "path,path", "path,a.b", "path,"])
def test_a_table_names_the_column_that_a_gallery_cannot_have(heading, tmp_path):
    file = tmp_path / "m.csv"
    file.write_text(f"{heading}\n/a{',1' * heading.count(',')}\n")
    for read in (lambda: MetadataTable.read(file, "/"), lambda: read_input(file)):
        with pytest.raises(UsageError, match="cannot be added") as caught:
            read()
        assert caught.value.where == str(file)


def test_the_status_is_told_beside_a_writer(tmp_path, monkeypatch):
    store = GalleryStore.create(tmp_path / "g.lance", MODEL)
    store.put(rows("/a"))
    gone = sorted(Path(store.uri, "_versions").iterdir())[0]
    walk = os.walk

    def walked(folder):
        found = list(walk(folder))
        gone.unlink()
        return found

    whole = sum(file.stat().st_size for file in Path(store.uri).rglob("*") if file.is_file())
    size = gone.stat().st_size
    monkeypatch.setattr(os, "walk", walked)
    assert read_status(store).bytes == whole - size


def test_settings_are_remembered(store):
    store.set_settings({"nprobes": "7"})
    store.set_settings({"refine": "2"})
    assert store.settings() == {"nprobes": "7", "refine": "2"}


@pytest.mark.parametrize("taken", ["photos", "photos/1.jpg"])
def test_a_gallery_is_not_made_where_something_else_is(tmp_path, taken):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"a picture")
    with pytest.raises(UsageError, match="something else in the gallery's place"):
        GalleryStore.create(tmp_path / taken, MODEL)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "1.jpg"]


def test_what_is_no_gallery_is_told(tmp_path):
    with pytest.raises(InputError, match="There is no gallery"):
        GalleryStore.open(tmp_path / "none.lance")
    with pytest.raises(InputError, match="This is no gallery"):
        GalleryStore.open(tmp_path)
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other.lance"))
    with pytest.raises(InputError, match="not a gallery"):
        GalleryStore.open(tmp_path / "other.lance")
    newer = new_schema(MODEL).with_metadata({METADATA: b'{"format": 99}'})
    lance.write_dataset(newer.empty_table(), str(tmp_path / "newer.lance"))
    with pytest.raises(InputError, match="newer tiprctl: its format is 99"):
        GalleryStore.open(tmp_path / "newer.lance")


def test_lance_is_loaded_without_pandas_which_stays_usable():
    code = (
        "import sys; from tiprctl.gallery.keeping.engine import lance; lance(); print('pandas' in sys.modules)\n"
        "import pyarrow as pa; print(pa.table({'a': [1]}).to_pandas().shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "(1, 1)"]


def test_a_gallery_names_its_model_from_every_folder(tmp_path, monkeypatch):
    (tmp_path / "runs/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelIdentity.of(MODEL).source == str(tmp_path / "runs/a")
    tag = replace(MODEL, source="ViT-B-16/openai")
    assert ModelIdentity.of(tag).source == "ViT-B-16/openai"


def test_rows_are_taken_by_their_ids(store):
    store.put(rows("/a", "/b", "/c"))
    ids = {path: row for batch in store.scan(["path"]) for path, row in zip(*(c.to_pylist() for c in batch.columns))}
    taken = store.take([ids["/c"], ids["/a"]], ["path", "size"])
    assert sorted(taken["path"].to_pylist()) == ["/a", "/c"]
    assert taken.column_names == ["path", "size", "_rowid"]
    assert len(store.take([], ["path"])) == 0


def test_a_gallery_is_searched_where_it_is(store):
    store.put(rows("/a", "/b", "/c"))
    vectors = {row["path"]: row["vector"] for row in rows("/a", "/b", "/c").to_pylist()}
    found = find(store, np.array([vectors["/b"]], np.float32), 2, where="path != '/a'")[0]
    assert found.rows["path"].to_pylist() == ["/b", "/c"]


@pytest.mark.parametrize("name", ["commit conflict", "contention", "Please upgrade Lance"])
def test_the_name_of_a_gallery_says_nothing_of_its_faults(name, tmp_path):
    store = GalleryStore.create(tmp_path / name / "g.lance", MODEL)
    store.put(rows("/a"))
    for file in (tmp_path / name / "g.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(EngineError, match=r"The gallery.s engine failed: .*Not found") as caught:
        paths(GalleryStore.open(store.uri))
    assert type(caught.value) is EngineError


def test_an_interrupt_while_rows_are_read_is_no_damage():
    with pytest.raises(KeyboardInterrupt), faults("/g.lance", ""):
        raise pa.ArrowInvalid("External error: KeyboardInterrupt: ")


@pytest.mark.parametrize(
    "message",
    [
        "Retryable commit conflict for version 7: x",
        "Too many concurrent writers: x",
        "5 retries due to manifest contention: x",
        "This transaction was preempted by concurrent transaction 3",
    ],
)
def test_conflicts_of_writers_are_told_from_damage(message):
    with pytest.raises(ConflictError, match="Other processes are writing"), faults("/g.lance", ""):
        raise OSError(message)


def test_what_is_not_found_is_not_read_from_the_address():
    error = OSError("Dataset at path photos/not found/g.lance cannot be read: b/photos/not found/g.lance/_versions")
    assert "not found" not in signs(error, "s3://b/photos/not found/g.lance")
    assert "not found" in signs(OSError("Dataset at path g.lance was not found"), "s3://b/g.lance")


@pytest.mark.parametrize("there", [False, True])
def test_a_path_cannot_be_written_twice_at_once(store, there):
    if there:
        store.put(rows("/a"))
    with pytest.raises(InputError, match="two rows: /a"):
        store.put(rows("/b", "/a", "/a"))
    assert paths(store) == ["/a"] * there


def test_rows_go_only_as_long_as_they_are_as_told(tmp_path):
    store = GalleryStore.create(tmp_path / "g.lance", MODEL)
    store.put(rows("/a", "/b", "/c"))
    told = store.dataset.to_table(columns=["path", "size"], filter="path != '/c'")
    GalleryStore.open(tmp_path / "g.lance").put(rows("/b", size=[7]))
    assert store.remove_unchanged(told) == 1
    assert paths(store) == ["/b", "/c"]
    assert store.remove_unchanged(told.slice(0, 0)) == 0

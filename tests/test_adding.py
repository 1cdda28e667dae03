"""Bringing a gallery up to date: nothing twice, nothing lost, nothing embedded that need not be."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from colours import MeanColour, paint, unit
from pyarrow import csv, parquet

from tiprctl.errors import InputError, UsageError
from tiprctl.gallery.filling import bringing, writing
from tiprctl.gallery.filling.adding import Changes, EmbeddingInterrupted, Reading, add, describe_again, sync
from tiprctl.gallery.filling.bringing import bring
from tiprctl.gallery.filling.inputs import read_input
from tiprctl.gallery.filling.listing import ImageFile, Images, Listing
from tiprctl.gallery.filling.metadata import Describer, MetadataTable
from tiprctl.gallery.filling.origins import Origin, Remembered, recall, recall_for
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.filling.watching import watch
from tiprctl.gallery.filling.work import Work
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore

BY_FOLDER = Reading(Describer(PathPattern.parse("{camera}/*", "camera")), batch_size=3)


@pytest.fixture
def crops(tmp_path):
    """Ten crops of two cameras, each of a grey of its own."""
    for number in range(10):
        paint(tmp_path / "crops" / "ab"[number % 2] / f"{number}.png", (20 * number, 100, 100))
    return tmp_path / "crops"


@pytest.fixture
def store(tmp_path):
    return GalleryStore.create(tmp_path / "g.lance", ModelIdentity.of(MeanColour()))


def rows(store: GalleryStore, *columns: str) -> dict[str, tuple]:
    """The rows by the last two parts of their paths."""
    store.refresh()
    table = store.dataset.to_table(columns=["path", *columns])
    found = {"/".join(Path(row["path"]).parts[-2:]): tuple(row[name] for name in columns) for row in table.to_pylist()}
    assert len(found) == len(table), "a path is there twice"
    return found


def counts(changes: Changes) -> dict[str, int]:
    return {name: value for name, value in vars(changes).items() if isinstance(value, int) and value}


def test_images_become_rows_with_vector_hash_time_and_camera(crops, store):
    changes = add(store, list_images(crops), MeanColour(), BY_FOLDER)
    assert counts(changes) == {"images": 10, "added": 10}
    found = rows(store, "camera", "size", "mtime_ns", "vector", "hash")
    assert set(found) == {f"{'ab'[number % 2]}/{number}.png" for number in range(10)}
    for name, (camera, size, mtime_ns, vector, _) in found.items():
        status = (crops / name).stat()
        assert (camera, size, mtime_ns) == (name[0], status.st_size, status.st_mtime_ns)
        np.testing.assert_allclose(vector, unit(np.array([[20 * int(name[2]) + 1, 101, 101.0]]))[0], atol=1e-6)
    assert len({facts[-1] for facts in found.values()}) == 10


def test_a_second_add_reads_nothing(crops, store, monkeypatch):
    add(store, list_images(crops), MeanColour())
    version = store.dataset.version
    monkeypatch.setattr("tiprctl.gallery.filling.embedding.read_content", None)
    changes = add(store, list_images(crops), MeanColour())
    assert counts(changes) == {"images": 10, "unchanged": 10}
    assert store.dataset.version == version


def test_a_changed_image_is_embedded_again_and_a_deleted_one_stays_until_sync(crops, store):
    add(store, list_images(crops), MeanColour())
    paint(crops / "a" / "0.png", "blue")
    (crops / "a" / "2.png").unlink()
    model = MeanColour()
    assert counts(add(store, list_images(crops), model)) == {"images": 9, "unchanged": 8, "updated": 1}
    assert model.embedded == 1
    blue = rows(store, "vector")["a/0.png"][0]
    np.testing.assert_allclose(blue, unit(np.array([[1.0, 1.0, 256.0]]))[0], atol=1e-6)
    assert "a/2.png" in rows(store)
    assert counts(sync(store, list_images(crops), model)) == {"images": 9, "unchanged": 9, "removed": 1}
    assert "a/2.png" not in rows(store)


def test_moved_and_touched_files_take_their_vectors_along(crops, store):
    add(store, list_images(crops), MeanColour(), BY_FOLDER)
    before = rows(store, "vector")
    (crops / "a").rename(crops / "c")
    os.utime(crops / "b" / "1.png", (5, 5))
    model = MeanColour()
    changes = sync(store, list_images(crops), model, BY_FOLDER)
    assert counts(changes) == {"images": 10, "unchanged": 4, "added": 5, "updated": 1, "reused": 6, "removed": 5}
    assert (model.embedded, changes.embedded) == (0, 0)
    after = rows(store, "camera", "vector")
    assert {name.replace("c/", "a/"): facts[1:] for name, facts in after.items()} == before
    assert {name[0] for name, (camera, _) in after.items() if camera == "c"} == {"c"}


def test_a_vector_that_is_no_longer_there_to_be_taken_is_computed(crops, store, monkeypatch):
    add(store, list_images(crops), MeanColour())
    (crops / "a").rename(crops / "c")
    monkeypatch.setattr(GalleryStore, "vectors", lambda self, hashes: {})
    model = MeanColour()
    assert sync(store, list_images(crops), model).reused == 0
    assert model.embedded == 5
    assert len(rows(store)) == 10


def test_unreadable_images_have_no_row_and_cost_no_other_its(crops, store):
    add(store, list_images(crops), MeanColour())
    (crops / "a" / "0.png").write_text("damaged since")
    (crops / "a" / "new.png").touch()
    paint(crops / "a" / "fine.png", "green")
    changes = add(store, list_images(crops), MeanColour())
    assert counts(changes) == {"images": 12, "unchanged": 9, "added": 1, "removed": 1}
    assert {one.path for one in changes.unreadable} == {"a/0.png", "a/new.png"}
    assert "a/0.png" not in rows(store)


def test_a_file_deleted_between_listing_and_reading_is_told(crops, store):
    listing = list_images(crops)
    (crops / "a" / "0.png").unlink()
    (gone,) = add(store, listing, MeanColour()).unreadable
    assert (gone.path, gone.reason) == ("a/0.png", "it was deleted after it had been listed")
    assert len(rows(store)) == 9


@pytest.mark.parametrize("bring_up", [add, sync])
def test_an_image_out_of_reach_keeps_its_row(crops, store, monkeypatch, bring_up):
    add(store, list_images(crops), MeanColour())
    before = rows(store, "vector", "mtime_ns")
    paint(crops / "a" / "0.png", "blue")
    fail_to_read(monkeypatch, "0.png")
    changes = bring_up(store, list_images(crops), MeanColour())
    assert counts(changes) == {"images": 10, "unchanged": 9}
    (away,) = changes.unreadable
    assert (away.path, away.damaged) == ("a/0.png", False)
    assert os.strerror(errno.EIO) in away.reason
    assert rows(store, "vector", "mtime_ns") == before
    monkeypatch.undo()
    assert counts(bring_up(store, list_images(crops), MeanColour())) == {"images": 10, "unchanged": 9, "updated": 1}


def test_an_image_that_changed_and_went_while_it_was_listed_keeps_its_row_until_sync(crops, store):
    add(store, list_images(crops), MeanColour())
    paint(crops / "a" / "0.png", "blue")
    listing = list_images(crops)
    (crops / "a" / "0.png").unlink()
    assert add(store, listing, MeanColour()).removed == 0
    assert "a/0.png" in rows(store)
    assert sync(store, list_images(crops), MeanColour()).removed == 1


def fail_to_read(monkeypatch, name: str) -> None:
    """Have the disk fail wherever a file of this name is read."""
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)


def test_a_folder_that_lost_most_of_its_images_is_refused(crops, store, tmp_path):
    paint(tmp_path / "other" / "x.png")
    add(store, list_images(tmp_path / "other"), MeanColour())
    add(store, list_images(crops), MeanColour())
    shutil.rmtree(crops / "a")
    (crops / "b" / "1.png").unlink()
    with pytest.raises(UsageError, match="6 of the 10 images") as caught:
        sync(store, list_images(crops), MeanColour())
    assert "--yes" in caught.value.remedy
    assert len(rows(store)) == 11
    assert sync(store, list_images(crops), MeanColour(), drop_many=True).removed == 6
    shutil.rmtree(crops / "b")
    with pytest.raises(UsageError, match="4 of the 4 images"):
        sync(store, list_images(crops, allow_empty=True), MeanColour())
    assert set(rows(store)) == {"b/3.png", "b/5.png", "b/7.png", "b/9.png", "other/x.png"}


def test_what_could_not_be_looked_at_is_not_dropped(crops, store):
    add(store, list_images(crops), MeanColour())
    target = crops.parent / "elsewhere"
    (crops / "a").rename(target)
    (crops / "a").symlink_to(target)
    changes = sync(store, list_images(crops), MeanColour())
    assert counts(changes) == {"images": 5, "unchanged": 5}
    assert [one.path for one in changes.unreadable] == ["a"]
    assert len(rows(store)) == 10


def test_folders_that_are_named_alike_are_not_one(tmp_path, store):
    for name in ("crops", "crops-2"):
        paint(tmp_path / name / "1.png")
        add(store, list_images(tmp_path / name), MeanColour())
    assert counts(sync(store, list_images(tmp_path / "crops"), MeanColour())) == {"images": 1, "unchanged": 1}
    assert len(rows(store)) == 2


def test_two_names_of_a_folder_are_one(crops, store, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(crops)
    monkeypatch.chdir(tmp_path)
    for name in ("crops", "link", crops / "a" / ".."):
        add(store, list_images(name), MeanColour())
    assert len(rows(store)) == 10


@pytest.mark.parametrize("pause", [0.0, 1e9], ids=["each batch", "at the end"])
def test_an_interrupted_add_keeps_its_batches_and_goes_on(crops, store, monkeypatch, pause):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", pause)
    with pytest.raises(EmbeddingInterrupted, match="6 of 10 new images") as caught:
        add(store, list_images(crops), MeanColour(interrupt_at=2), BY_FOLDER)
    assert (caught.value.kept, caught.value.total) == (6, 10)
    model = MeanColour()
    assert counts(add(store, list_images(crops), model, BY_FOLDER)) == {"images": 10, "unchanged": 6, "added": 4}
    assert model.embedded == 4


def test_many_rows_are_committed_at_once(crops, store, monkeypatch):
    monkeypatch.setattr(writing, "_MANY_ROWS", 4)
    before = store.dataset.version
    add(store, list_images(crops), MeanColour(), Reading(batch_size=2))
    assert store.dataset.version == before + 3


def test_what_a_failing_model_embedded_is_kept(crops, store):
    model = MeanColour()
    embed = model.embed_images
    model.embed_images = lambda pixels: embed(pixels) if not model.batches else 1 / 0
    with pytest.raises(ZeroDivisionError):
        add(store, list_images(crops), model, Reading(batch_size=4))
    assert len(rows(store)) == 4


def test_another_model_is_refused(crops, store):
    with pytest.raises(UsageError, match="another model"):
        add(store, list_images(crops), MeanColour("other"))


def test_images_that_another_process_added_meanwhile_are_skipped(crops, store, tmp_path, monkeypatch):
    """The other one adds what comes last while the first one is at its second batch."""
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", 0.0)
    monkeypatch.setattr("tiprctl.gallery.filling.work._AT_ONCE", 1)
    for number in range(40):
        paint(crops / "c" / f"{number:02}.png", (number, 0, 0))
    other = MeanColour()

    class Overtaken(MeanColour):
        def embed_images(self, pixels):
            if len(self.batches) == 1:
                add(GalleryStore.open(store.uri), list_images(crops / "c"), other)
            return super().embed_images(pixels)

    model = Overtaken()
    changes = add(store, list_images(crops), model, Reading(batch_size=2, workers=1))
    assert other.embedded == 40
    assert changes.elsewhere == 50 - model.embedded
    assert model.embedded < 20
    assert len(rows(store)) == 50


def test_adders_at_once_double_nothing(crops, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", 0.0)
    uri, faults = tmp_path / "g.lance", []
    GalleryStore.create(uri, ModelIdentity.of(MeanColour()))

    def work():
        try:
            add(GalleryStore.open(uri), list_images(crops), MeanColour(), Reading(batch_size=2))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(rows(GalleryStore.open(uri))) == 10


def test_a_killed_add_goes_on_where_it_was(crops, tmp_path):
    """A real process, killed in its third batch without a chance to say anything."""
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from colours import MeanColour
        from tiprctl.gallery.filling import writing
        from tiprctl.gallery.filling.adding import Reading, add
        from tiprctl.gallery.filling.listing import ImageFile, Images
        from tiprctl.gallery.filling.walking import list_images
        from tiprctl.gallery.keeping.schema import ModelIdentity
        from tiprctl.gallery.keeping.store import GalleryStore
        class Killed(MeanColour):
            def embed_images(self, pixels):
                if len(self.batches) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().embed_images(pixels)
        writing.SECONDS_BETWEEN_COMMITS = 0.0
        store = GalleryStore.create({str(tmp_path / "g.lance")!r}, ModelIdentity.of(MeanColour()))
        add(store, list_images({str(crops)!r}), Killed(), Reading(batch_size=3))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    store = GalleryStore.open(tmp_path / "g.lance")
    assert len(rows(store)) == 6
    assert counts(add(store, list_images(crops), MeanColour())) == {"images": 10, "unchanged": 6, "added": 4}
    assert len(rows(store)) == 10


def test_a_pattern_that_matches_no_image_is_refused_before_any_is_read(crops, store):
    reading = Reading(Describer(PathPattern.parse("cam_{camera}/*", "camera")))
    with pytest.raises(UsageError, match="nor 9 others of 10") as caught:
        add(store, list_images(crops), MeanColour(), reading)
    assert str(crops / "a" / "0.png") in caught.value.what
    assert len(rows(store)) == 0
    paint(crops / "cam_x" / "1.png")
    (unmatched,) = add(store, list_images(crops), MeanColour(), reading).unmatched
    assert (unmatched.count, unmatched.of) == (10, 11)


def test_rows_are_described_anew_without_the_model(crops, store):
    add(store, list_images(crops), MeanColour())
    before = rows(store, "vector", "hash", "size", "mtime_ns")
    assert describe_again(store, list_images(crops), BY_FOLDER) == 10
    assert {name: camera for name, (camera,) in rows(store, "camera").items()} == {name: name[0] for name in before}
    assert rows(store, "vector", "hash", "size", "mtime_ns") == before


def remembered(store: GalleryStore) -> list[Remembered]:
    return list(recall(store.settings()).values())


def test_a_gallery_remembers_how_a_folder_is_described_and_what_is_unfinished(crops, store):
    origin = Origin(crops.as_posix(), camera_from="{camera}/*")
    reading = Reading(origin.describer(), batch_size=3)
    with pytest.raises(EmbeddingInterrupted):
        bring(store, origin, list_images(crops), MeanColour(interrupt_at=1), reading)
    assert remembered(store) == [Remembered(origin, unfinished="add")]
    bring(store, origin, list_images(crops), MeanColour(), reading)
    assert remembered(store) == [Remembered(origin)]
    assert recall_for(f"{crops}/a", store.settings()).origin == Origin(f"{crops}/a", camera_from="{camera}/*")
    assert recall_for(str(crops.parent), store.settings()) is None
    version = store.dataset.version
    bring(store, origin, list_images(crops), MeanColour(), reading, drop=True)
    assert store.dataset.version == version


def test_a_pattern_that_matches_no_row_is_refused_before_it_takes_what_was_told(crops, store):
    paint(crops / "odd.png")
    origin = Origin(crops.as_posix(), camera_from="{camera}/?.png")
    bring(store, origin, list_images(crops), MeanColour(), Reading(origin.describer()))
    before = rows(store, "camera")
    mistaken = replace(origin, camera_from="x{camera}/?.png")
    with pytest.raises(UsageError, match="does not match"):
        bring(store, mistaken, list_images(crops), MeanColour(), Reading(mistaken.describer()))
    assert rows(store, "camera") == before and remembered(store) == [Remembered(origin)]
    narrow = replace(origin, camera_from="{camera}/0.png")
    (unmatched,) = bring(store, narrow, list_images(crops), MeanColour(), Reading(narrow.describer())).unmatched
    assert unmatched.count == sum(camera is None for (camera,) in rows(store, "camera").values()) > 0


def test_what_another_process_says_meanwhile_is_kept_and_told_by_the_next(crops, store, monkeypatch):
    bring(store, Origin(crops.as_posix()), list_images(crops), MeanColour(), Reading())
    ours, theirs = (Origin(crops.as_posix(), camera_from=text) for text in ("{camera}/*", "*{camera}.png"))
    rivals = [theirs]

    def overtaken(opened: GalleryStore, *given: object) -> int:
        described = describe_again(opened, *given)
        if rivals:
            other = GalleryStore.open(opened.uri)
            origin = rivals.pop()
            bring(other, origin, list_images(crops), MeanColour(), Reading(origin.describer()))
        return described

    monkeypatch.setattr(bringing, "describe_again", overtaken)
    bring(store, ours, list_images(crops), MeanColour(), Reading(ours.describer()))
    assert remembered(store) == [Remembered(theirs, outdated=True)]
    bring(store, theirs, list_images(crops), MeanColour(), Reading(theirs.describer()))
    assert remembered(store) == [Remembered(theirs)]
    assert rows(store, "camera")["b/1.png"] == ("1",)


def test_a_folder_described_otherwise_is_described_anew(crops, store):
    bring(store, Origin(crops.as_posix()), list_images(crops), MeanColour(), Reading())
    origin = Origin(crops.as_posix(), camera_from="{camera}/*")
    reading = Reading(origin.describer())
    changes = bring(store, origin, list_images(crops), MeanColour(), reading)
    assert counts(changes) == {"images": 10, "unchanged": 10, "described": 10}
    assert rows(store, "camera")["b/1.png"] == ("b",)
    assert bring(store, origin, list_images(crops), MeanColour(), reading).described == 0


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_a_list_names_its_images_and_gives_its_columns(crops, store, tmp_path, kind):
    names = ["crops/a/0.png", str(crops / "b" / "1.png"), "crops/none.png"]
    table = pa.table({"split": ["train", "test", "val"], "path": names, "pid": [7, 8, 9]})
    file = tmp_path / f"list.{kind}"
    {
        "txt": lambda: file.write_text("\n".join(["", *names, ""])),
        "csv": lambda: csv.write_csv(table, file),
        "parquet": lambda: parquet.write_table(pa.concat_tables([table, table]), file),
    }[kind]()
    source = read_input(file)
    assert [(one.path, one.reason) for one in source.listing.unreadable] == [
        ("crops/none.png", "there is no such file")
    ]
    changes = add(store, source.listing, MeanColour(), Reading(Describer(table=source.table)))
    assert counts(changes) == {"images": 2, "added": 2}
    assert set(rows(store)) == {"a/0.png", "b/1.png"}
    if kind != "txt":
        assert rows(store, "split", "pid") == {"a/0.png": ("train", 7), "b/1.png": ("test", 8)}


@pytest.mark.parametrize("packed", ["dictionary", "large"])
def test_the_paths_of_a_list_may_be_packed(crops, tmp_path, packed):
    paths = pa.array(["crops/a/0.png", "crops/b/1.png"], pa.large_string())
    parquet.write_table(
        pa.table({"path": paths.dictionary_encode() if packed == "dictionary" else paths}), tmp_path / "list.parquet"
    )
    assert len(read_input(tmp_path / "list.parquet").listing.images) == 2


def test_a_changed_image_keeps_the_columns_that_a_run_says_nothing_of(crops, store):
    it_s = crops / "a" / "it's.png"
    paint(it_s)
    keys = [path.as_posix() for path in sorted(crops.glob("*/*.png"))]
    table = MetadataTable(keys, pa.table({"pid": range(len(keys))}), crops.as_posix())
    add(store, list_images(crops), MeanColour(), Reading(Describer(BY_FOLDER.describer.camera, table=table)))
    before = rows(store, "pid", "camera")
    paint(it_s, "blue")
    os.utime(crops / "a" / "0.png", (5, 5))
    paint(crops / "a" / "new.png", "green")
    changes = sync(store, list_images(crops), MeanColour())
    assert (changes.added, changes.updated, changes.reused) == (1, 2, 1)
    assert rows(store, "pid", "camera") == {**before, "a/new.png": (None, None)}


def test_a_watch_goes_on_where_its_first_image_matches_no_pattern(crops, store):
    paint(crops / "odd.png")
    listing = list_images(crops)
    odd = [image for image in listing.images if image.path == "odd.png"]
    settled = Listing(listing.root, Images.of(odd), [], whole=False)
    reading = Reading(Describer(PathPattern.parse("cam_{camera}/*", "camera")))
    changes = add(store, settled, MeanColour(), reading)
    assert (changes.added, [one.count for one in changes.unmatched]) == (1, [1])


def test_an_image_that_cannot_be_read_keeps_its_time_when_it_is_described_anew(crops, store, monkeypatch):
    add(store, list_images(crops), MeanColour())
    keys = [path.as_posix() for path in crops.glob("*/*.png")]
    store.revise(pa.table({"path": keys, "time": pa.array([0] * len(keys), pa.timestamp("us"))}))
    before = rows(store, "time")
    fail_to_read(monkeypatch, "0.png")
    assert describe_again(store, list_images(crops), Reading(Describer(time="exif"))) == 10
    after = rows(store, "time")
    assert [name for name in before if before[name] == after[name]] == ["a/0.png"]


def test_a_list_gives_its_columns_to_rows_that_are_there(crops, store, tmp_path):
    origin = Origin(crops.as_posix(), camera_from="{camera}/*")
    bring(store, origin, list_images(crops), MeanColour(), Reading(origin.describer()))
    file = tmp_path / "list.csv"
    file.write_text(f"path,pid\n{crops}/a/0.png,7\n")
    source = read_input(file)
    reading = Reading(Describer(table=source.table))
    changes = bring(store, Origin(source.name).as_read(), source.listing, MeanColour(), reading)
    assert counts(changes) == {"images": 1, "unchanged": 1, "described": 1}
    assert rows(store, "camera", "pid")["a/0.png"] == ("a", 7)
    assert rows(store, "camera", "pid")["b/1.png"] == ("b", None)


def test_a_single_image_is_added(crops, store):
    assert add(store, read_input(crops / "a" / "0.png").listing, MeanColour()).added == 1
    assert set(rows(store)) == {"a/0.png"}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.doc", "", "neither a folder, an image nor a list"),
        ("x.txt", "", "There is no image in the list"),
        ("x.txt", "a.jpg\nb.jpg", "None of the 2 images is there"),
        ("x.csv", "path\n1\n2\n", "The column 'path' holds no paths"),
        ("x.parquet", "no parquet", "no parquet file"),
        ("none", None, "There is no such folder"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, name, content, what):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=what):
        read_input(tmp_path / name)


def test_watching_waits_until_files_have_settled(crops, store):
    """Between two looks a file grows, then rests; a damaged one is tried once."""
    growing, moments = crops / "a" / "new.png", []
    (crops / "bad.png").touch()

    def sleep(seconds):
        moments.append(seconds)
        if len(moments) == 1:
            growing.write_bytes(b"half a pic")
        elif len(moments) == 2:
            paint(growing, "green")
        elif len(moments) == 6:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for changes in watch(
            lambda: list_images(crops), lambda listing: add(store, listing, MeanColour()), every=0.5, sleep=sleep
        ):
            seen.append((changes.added, len(changes.unreadable)))
    assert moments == [0.5] * 6
    assert seen == [(10, 1), (0, 0), (1, 0)] or seen == [(10, 1), (1, 0)]
    assert "a/new.png" in rows(store)


def test_watching_survives_a_folder_that_is_away_for_a_while(crops, store):
    told, away = [], crops.parent / "away"

    def sleep(seconds):
        if not told and not away.exists():
            crops.rename(away)
        elif told:
            away.rename(crops)

    changes = next(
        watch(
            lambda: list_images(crops),
            lambda listing: add(store, listing, MeanColour()),
            every=0,
            tell=told.append,
            sleep=sleep,
        )
    )
    assert changes.added == 10
    assert len(told) == 1
    assert "the watch goes on" in told[0]


def test_work_is_handed_out_once_whatever_happens_to_the_rest():
    images = Images.of([ImageFile(f"{number:04}", number, 0) for number in range(1000)])
    work = Work(images, np.arange(0, 1000, 2))
    stream = iter(work)
    first = [next(stream).size for _ in range(256)]
    assert first == list(range(0, 512, 2))
    work.go_elsewhere()
    assert work.keep(np.arange(600, 1000)) == 44
    assert sorted(image.size for image in stream) == list(range(600, 1000, 2))


@pytest.mark.parametrize("full", [False, True], ids=["new", "full"])
def test_an_image_that_a_list_spells_in_several_ways_has_one_row(crops, store, tmp_path, full):
    if full:
        add(store, list_images(crops), MeanColour())
    file = tmp_path / "list.txt"
    file.write_text(f"crops/a/0.png\n./crops/a/0.png\n{crops}/b/../a/0.png\n{crops}/b/1.png\n")
    listing = read_input(file).listing
    assert [image.path for image in listing.images] == sorted(["crops/a/0.png", f"{crops}/b/1.png"])
    for number in (0, 1):
        paint(crops / "a" / "0.png", "green")
        os.utime(crops / "a" / "0.png", (number, number))
        add(store, listing, MeanColour())
        assert len(rows(store)) == (10 if full else 2)


def replace_all(crops: Path, number: int, size: int = 0) -> None:
    """Other images in place of the folder's: files that say nothing of their content by their size, or do."""
    shutil.rmtree(crops)
    for place in range(number):
        paint(crops / "c" / f"{place}.png", (3, 7, 100 + place))
        with (crops / "c" / f"{place}.png").open("ab") as file:
            file.write(bytes(size))


@pytest.mark.parametrize("size", [0, 100], ids=["of the same size", "of another size"])
@pytest.mark.parametrize("number", [6, 30])
def test_other_images_in_a_folders_place_do_not_excuse_those_that_are_gone(crops, store, number, size):
    """As where a disk is not mounted, and the folder below it is not empty."""
    add(store, list_images(crops), MeanColour())
    replace_all(crops, number, size)
    for _ in range(2):
        model = MeanColour()
        with pytest.raises(UsageError, match="10 of the 10 images"):
            sync(store, list_images(crops), model)
        assert model.embedded == 0
    assert len(rows(store)) == 10
    assert sync(store, list_images(crops), MeanColour(), drop_many=True).removed == 10


def test_sync_keeps_a_row_whose_file_came_after_the_listing(crops, store):
    """Another process adds it, before this one looks at the rows and while it embeds."""
    add(store, list_images(crops), MeanColour())
    (crops / "a" / "0.png").unlink()
    paint(crops / "a" / "new.png", "blue")
    listing = list_images(crops)
    paint(crops / "b" / "early.png", "green")
    add(GalleryStore.open(store.uri), list_images(crops / "b"), MeanColour())

    class Overtaken(MeanColour):
        def embed_images(self, pixels):
            paint(crops / "a" / "0.png", "white")
            add(GalleryStore.open(store.uri), list_images(crops / "a"), MeanColour())
            return super().embed_images(pixels)

    assert sync(store, listing, Overtaken()).removed == 0
    assert {"b/early.png", "a/0.png", "a/new.png"} <= set(rows(store))
    assert len(rows(store)) == 12


def test_sync_keeps_a_row_that_another_process_renewed_and_whose_file_went_again(crops, store, monkeypatch):
    add(store, list_images(crops), MeanColour())
    (crops / "a" / "0.png").unlink()
    paint(crops / "a" / "new.png", "blue")

    class Overtaken(MeanColour):
        def embed_images(self, pixels):
            paint(crops / "a" / "0.png", "white")
            os.utime(crops / "a" / "0.png", (7, 7))
            add(GalleryStore.open(store.uri), list_images(crops / "a"), MeanColour())
            (crops / "a" / "0.png").unlink()
            return super().embed_images(pixels)

    assert sync(store, list_images(crops), Overtaken()).removed == 0
    assert rows(store, "mtime_ns")["a/0.png"] == (7 * 10**9,)


@pytest.mark.parametrize("known", [False, True])
def test_a_row_that_another_process_committed_outlives_a_failed_reading(crops, store, known):
    """The file is half-written when this process reads it, and whole when the other one does."""
    if known:
        add(store, list_images(crops), MeanColour())
    else:
        add(store, list_images(crops / "b"), MeanColour())
    (crops / "a" / "0.png").write_bytes(b"half")

    class Overtaken(MeanColour):
        def embed_images(self, pixels):
            paint(crops / "a" / "0.png", "white")
            add(GalleryStore.open(store.uri), list_images(crops / "a"), MeanColour())
            return super().embed_images(pixels)

    paint(crops / "a" / "z.png", "green")
    changes = add(store, list_images(crops), Overtaken(), Reading(batch_size=1, workers=1))
    assert [one.path for one in changes.unreadable] == ["a/0.png"]
    assert changes.removed == 0
    assert "a/0.png" in rows(store)


def test_a_file_with_a_wrong_clock_has_its_row(crops, store):
    for name, moment in (("0", 1e10), ("2", -1e10)):
        os.utime(crops / "a" / f"{name}.png", (moment, moment))
    assert counts(add(store, list_images(crops), MeanColour())) == {"images": 10, "added": 10}
    assert counts(sync(store, list_images(crops), MeanColour())) == {"images": 10, "unchanged": 10}


def test_a_list_is_told_to_its_rows_once(crops, store, tmp_path):
    bring(store, Origin(crops.as_posix()), list_images(crops), MeanColour(), Reading())
    file = tmp_path / "list.csv"

    def bring_list(pid):
        file.write_text(f"path,pid\n{crops}/a/0.png,{pid}\n")
        source = read_input(file)
        origin = Origin(source.name).as_read()
        reading = Reading(origin.describer(source.table))
        return bring(store, origin, source.listing, MeanColour(), reading).described

    assert [bring_list(7), bring_list(7), bring_list(8), bring_list(8)] == [1, 0, 1, 0]
    assert rows(store, "pid")["a/0.png"] == (8,)


def test_an_interrupt_while_rows_are_described_anew_leaves_them_to_the_next_time(crops, store, tmp_path, monkeypatch):
    bring(store, Origin(crops.as_posix(), "{camera}/*"), list_images(crops), MeanColour(), BY_FOLDER)
    file = tmp_path / "list.csv"
    file.write_text(f"path,pid\n{crops}/a/0.png,7\n")
    source = read_input(file)
    origin = Origin(source.name).as_read()
    reading = Reading(origin.describer(source.table))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(GalleryStore, "revise", lambda self, rows: (_ for _ in ()).throw(KeyboardInterrupt))
        bring(store, origin, source.listing, MeanColour(), reading)
    assert bring(store, origin, source.listing, MeanColour(), reading).described == 1
    assert rows(store, "camera", "pid")["a/0.png"] == ("a", 7)


def test_a_folder_that_rests_is_compared_without_a_look_at_each_image(crops, store, monkeypatch):
    monkeypatch.setattr("tiprctl.gallery.filling.watching.DigestSet", None)
    (changes,) = watch(
        lambda: list_images(crops), lambda listing: add(store, listing, MeanColour()), every=0, once=True
    )
    assert changes.added == 10

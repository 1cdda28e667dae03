"""A folder as a gallery: what the cache keeps between queries, and what becomes of it when it is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import lance
import numpy as np
import pytest
from colours import MeanColour, paint, unit
from galleries import UNPRIVILEGED

from tiprctl.errors import ImageError, InputError, TiprError
from tiprctl.gallery import folder
from tiprctl.gallery.cache import cache_folder
from tiprctl.gallery.filling import writing
from tiprctl.gallery.filling.adding import EmbeddingInterrupted
from tiprctl.gallery.filling.embedding import have_unit_length
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.folder import kept, open_folder
from tiprctl.gallery.searching import finding


@pytest.fixture
def crops(tmp_path):
    """Ten crops in two folders, each of a colour of its own."""
    root = tmp_path / "crops"
    for number in range(10):
        paint(root / ("a" if number % 2 else "b") / f"{number}.png", (20 * number, 100, 100))
    return root


@pytest.fixture
def read(tmp_path):
    """Open a folder with its cache in the test's own folder."""

    def call(root, model, **kwargs):
        listing = list_images(root, follow_links=kwargs.get("follow_links", False))
        return open_folder(listing, model, cache=tmp_path / "cache", **kwargs)

    return call


def _dataset(tmp_path):
    (dataset,) = (tmp_path / "cache" / "galleries").iterdir()
    return dataset


def _contents(gallery):
    """Path below the folder to vector."""
    rows = (row for batch in gallery.store.scan(["path", "vector"]) for row in batch.to_pylist())
    return {os.path.relpath(gallery.shown(row["path"]), gallery.root): row["vector"] for row in rows}


def _listed(root):
    return [image.path for image in list_images(root).images]


def test_each_image_has_the_vector_of_its_pixels(crops, read):
    contents = _contents(read(crops, MeanColour()))
    assert sorted(contents) == _listed(crops)
    for path, vector in contents.items():
        np.testing.assert_allclose(vector, unit(np.array([[20 * int(path[2]) + 1, 101, 101.0]]))[0], atol=1e-6)


def test_paths_are_shown_below_the_folder_as_it_was_named(crops, read, monkeypatch):
    monkeypatch.chdir(crops.parent)
    (crops.parent / "link").symlink_to(crops)
    for name in ("crops", "./crops", "crops/../crops", str(crops), "link"):
        gallery = read(name, MeanColour())
        shown = sorted(
            gallery.shown(batch) for rows in gallery.store.scan(["path"]) for batch in rows["path"].to_pylist()
        )
        assert shown == [os.path.join(gallery.root, path) for path in _listed(crops)]
        assert all(gallery.shown(gallery.stored(path)) == path for path in shown)
    assert gallery.stored("other/*.png") == "other/*.png"


def test_unreadable_files_are_named_and_the_rest_is_embedded(crops, read):
    (crops / "0.jpg").touch()
    (crops / "text.png").write_text("not a picture")
    gallery = read(crops, MeanColour())
    reasons = {one.path: one.reason for one in gallery.changes.unreadable}
    assert set(reasons) == {"0.jpg", "text.png"}
    assert "empty" in reasons["0.jpg"]
    assert "not an image" in reasons["text.png"]
    assert len(gallery.store) == gallery.changes.embedded == 10


def test_an_image_out_of_reach_is_not_found_by_what_it_was(crops, read, monkeypatch):
    read(crops, MeanColour())
    changed = next(path for path in sorted(crops.rglob("*")) if path.is_file())
    os.utime(changed, (5, 5))

    def fail(place):
        raise ImageError("The image cannot be read", where=place) from OSError("the disk failed")

    monkeypatch.setattr("tiprctl.gallery.filling.embedding.read_content", fail)
    gallery = read(crops, MeanColour())
    assert [one.path for one in gallery.changes.unreadable] == [changed.relative_to(crops).as_posix()]
    assert len(gallery.store) == 9


def test_a_folder_without_one_readable_image_is_refused(tmp_path, read):
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "a.png").touch()
    with pytest.raises(InputError, match="None of the 1 images") as caught:
        read(tmp_path / "crops", MeanColour())
    assert "0 bytes" in caught.value.remedy


@pytest.mark.parametrize("fault", [np.nan, 3.0])
def test_vectors_that_are_not_of_unit_length_are_refused_and_not_kept(crops, read, fault):
    model = MeanColour()
    model.embed_images = lambda pixels: np.full((len(pixels), 3), fault, np.float32)
    with pytest.raises(TiprError, match="not 10 unit vectors"):
        read(crops, model)
    assert read(crops, MeanColour()).changes.embedded == 10


def test_a_second_query_embeds_nothing_and_sees_the_same(crops, read):
    first, again = MeanColour(), MeanColour()
    before, after = read(crops, first), read(crops, again)
    assert (first.embedded, again.batches) == (10, [])
    assert (before.changes.embedded, after.changes.embedded) == (10, 0)
    assert _contents(after) == _contents(before)
    assert after.notes == before.notes == []


def test_only_what_is_new_or_changed_is_embedded_and_what_is_gone_is_left_out(crops, read):
    read(crops, MeanColour())
    (crops / "b" / "0.png").unlink()
    paint(crops / "a" / "1.png", (255, 0, 0))
    os.utime(crops / "a" / "1.png", ns=(1, 1))
    paint(crops / "c" / "new.png", (0, 255, 0))
    model = MeanColour()
    gallery = read(crops, model)
    assert model.embedded == gallery.changes.embedded == 2
    contents = _contents(gallery)
    assert sorted(contents) == _listed(crops)
    np.testing.assert_allclose(contents["a/1.png"], unit(np.array([[256, 1, 1.0]]))[0], atol=1e-6)
    assert read(crops, MeanColour()).changes.embedded == 0


def test_what_cannot_be_looked_at_any_more_is_not_found(crops, read):
    (crops / "link.png").symlink_to(crops / "a" / ".1.png")
    paint(crops / "a" / ".1.png", "red")
    assert len(read(crops, MeanColour()).store) == 11
    (crops / "a" / ".1.png").unlink()
    gallery = read(crops, MeanColour())
    assert sorted(_contents(gallery)) == _listed(crops)
    assert [one.path for one in gallery.changes.unreadable] == ["link.png"]


def test_a_folder_that_was_all_but_emptied_is_no_mistake(crops, read):
    read(crops, MeanColour())
    for file in (crops / "a").iterdir():
        file.unlink()
    for file in list((crops / "b").iterdir())[1:]:
        file.unlink()
    gallery = read(crops, MeanColour())
    assert sorted(_contents(gallery)) == _listed(crops)
    assert len(gallery.store) == 1


def test_models_and_folders_have_caches_of_their_own_and_precisions_share_one(crops, read, tmp_path):
    read(crops, MeanColour("one"))
    assert read(crops, MeanColour("two")).changes.embedded == 10
    assert read(crops / "a", MeanColour("one")).changes.embedded == 5
    assert read(crops / "a" / "..", MeanColour("one")).changes.embedded == 0
    half = MeanColour("one")
    half.precision = "float16"
    assert read(crops, half).changes.embedded == 0
    assert len(list((tmp_path / "cache" / "galleries").iterdir())) == 3


def test_what_is_kept_can_be_asked(crops, read, tmp_path, monkeypatch):
    monkeypatch.setenv("TIPRCTL_CACHE", str(tmp_path / "cache"))
    assert kept(list_images(crops), MeanColour()) == 0
    read(crops, MeanColour())
    assert kept(list_images(crops), MeanColour()) == 10
    _truncate(_dataset(tmp_path))
    _empty_versions(_dataset(tmp_path))
    assert kept(list_images(crops), MeanColour()) == 0


@pytest.mark.parametrize("pause", [0.0, 1e9], ids=["each batch", "at the end"])
def test_an_interrupted_query_keeps_its_batches(crops, read, monkeypatch, pause):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", pause)
    with pytest.raises(EmbeddingInterrupted) as caught:
        read(crops, MeanColour(interrupt_at=2), batch_size=3)
    assert (caught.value.kept, caught.value.total) == (6, 10)
    assert isinstance(caught.value, KeyboardInterrupt)
    model = MeanColour()
    assert read(crops, model).changes.embedded == model.embedded == 4


def test_what_a_failing_model_embedded_is_kept(crops, read):
    model = MeanColour()
    embed = model.embed_images

    def fail_later(pixels):
        if model.batches:
            raise RuntimeError("out of memory")
        return embed(pixels)

    model.embed_images = fail_later
    with pytest.raises(RuntimeError, match="out of memory"):
        read(crops, model, batch_size=4)
    assert read(crops, MeanColour()).changes.embedded == 6


def _truncate(dataset):
    for file in (dataset / "data").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def _empty_versions(dataset):
    for file in (dataset / "_versions").iterdir():
        file.write_bytes(b"")


def _remove_data(dataset):
    for file in (dataset / "data").iterdir():
        file.unlink()


def _other_columns(dataset):
    lance.write_dataset(lance.dataset(str(dataset)).to_table(columns=["path"]), str(dataset), mode="overwrite")


def _strange_vectors(dataset):
    table = lance.dataset(str(dataset)).to_table()
    vectors = table["vector"].combine_chunks()
    doubled = type(vectors).from_arrays(np.asarray(vectors.flatten()) * 2, 3)
    table = table.set_column(table.column_names.index("vector"), table.schema.field("vector"), doubled)
    lance.write_dataset(table, str(dataset), mode="overwrite")


@pytest.mark.parametrize("damage", [_truncate, _empty_versions, _remove_data, _other_columns, _strange_vectors])
def test_a_damaged_cache_is_built_again_with_a_note(crops, read, tmp_path, damage):
    before = read(crops, MeanColour())
    contents = _contents(before)
    damage(_dataset(tmp_path))
    gallery = read(crops, MeanColour())
    assert gallery.changes.embedded == 10
    assert _contents(gallery) == contents
    (note,) = gallery.notes
    assert "damaged and is built again" in note
    assert "\n" not in note
    assert ".rs:" not in note
    again = read(crops, MeanColour())
    assert (again.changes.embedded, again.notes) == (0, [])


@pytest.mark.parametrize("damage", [_truncate, _strange_vectors])
def test_damage_of_a_gallery_with_an_index_is_told_by_a_sample(crops, read, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(finding, "EXACT_ROWS", 9)
    monkeypatch.setattr(folder, "_SAMPLE", 5)
    read(crops, MeanColour())
    monkeypatch.setattr(
        folder, "have_unit_length", lambda vectors: sampled.append(len(vectors)) or unit_length(vectors)
    )
    sampled, unit_length = [], have_unit_length
    assert (read(crops, MeanColour()).changes.embedded, sampled) == (0, [5])
    damage(_dataset(tmp_path))
    gallery = read(crops, MeanColour())
    assert gallery.changes.embedded == len(gallery.store) == 10
    assert "damaged and is built again" in gallery.notes[0]


def _newer(*_, **__):
    raise RuntimeError("Not supported: Unknown Lance storage version: 9.9. Please upgrade Lance")


def test_a_cache_of_a_newer_engine_stays_and_the_answer_is_given(crops, read, tmp_path, monkeypatch):
    read(crops, MeanColour())
    monkeypatch.setattr(lance, "dataset", _newer)
    gallery = read(crops, MeanColour())
    assert (gallery.changes.embedded, gallery.in_memory) == (10, True)
    assert "written by a newer Lance" in gallery.notes[0]
    monkeypatch.undo()
    assert read(crops, MeanColour()).changes.embedded == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such permissions")
@pytest.mark.parametrize("denied", ["data", "_versions", "."])
def test_a_cache_that_may_not_be_read_now_stays_and_the_answer_is_given(crops, read, tmp_path, denied):
    read(crops, MeanColour())
    part = _dataset(tmp_path) / denied
    files = sorted(part.rglob("*"))
    code = (
        "import sys; from colours import MeanColour\n"
        "from tiprctl.gallery.folder import open_folder; from tiprctl.gallery.filling.walking import list_images\n"
        "gallery = open_folder(list_images(sys.argv[1]), MeanColour(), cache=sys.argv[2])\n"
        "print(gallery.changes.embedded, len(gallery.store), gallery.in_memory, *gallery.notes)"
    )
    command = [*UNPRIVILEGED, sys.executable, "-c", code, crops, tmp_path / "cache"]
    part.chmod(0)
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=os.path.dirname(__file__))
    finally:
        part.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 10 True Embeddings cannot be kept in")
    assert sorted(part.rglob("*")) == files
    assert (read(crops, MeanColour()).changes.embedded, read(crops, MeanColour()).notes) == (0, [])


def test_links_that_are_followed_now_and_then_are_embedded_once(crops, read, tmp_path):
    paint(tmp_path / "elsewhere" / "far.png")
    (crops / "far").symlink_to(tmp_path / "elsewhere")
    read(crops, MeanColour())
    assert read(crops, MeanColour(), follow_links=True).changes.embedded == 11
    for follow_links, rows in ((False, 10), (True, 11)):
        gallery = read(crops, MeanColour(), follow_links=follow_links)
        assert (gallery.changes.embedded, len(gallery.store)) == (0, rows)


def _age(kept, days):
    then = time.time() - 86_400 * days
    os.utime(kept / "origin.txt", (then, then))


@pytest.mark.parametrize(
    ("days", "gone", "stays"), [(6, True, True), (8, True, False), (8, False, True), (181, False, False)]
)
def test_caches_that_were_not_used_for_long_go_when_a_new_one_is_made(crops, read, tmp_path, days, gone, stays):
    read(crops / "a", MeanColour())
    old = _dataset(tmp_path)
    _age(old, days)
    if gone:
        (crops / "a").rename(tmp_path / "away")
    (old.parent / ".discarded-by-a-process-that-was-killed").mkdir()
    (old.parent / "of another program").mkdir()
    read(crops, MeanColour())
    assert old.exists() == stays
    assert len(list(old.parent.iterdir())) == 2 + stays


def test_a_cache_that_is_used_stays(crops, read, tmp_path):
    read(crops / "a", MeanColour())
    _age(_dataset(tmp_path), 400)
    read(crops / "a", MeanColour())
    read(crops, MeanColour())
    assert read(crops / "a", MeanColour()).changes.embedded == 0


def test_an_interrupt_is_no_damage(crops, read, monkeypatch, tmp_path):
    read(crops, MeanColour())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.GalleryStore, "open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(crops, MeanColour())
    assert _dataset(tmp_path).is_dir()


def test_a_cache_that_cannot_be_made_does_not_cost_the_answer(crops, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    gallery = open_folder(list_images(crops), MeanColour(), cache=tmp_path / "cache")
    assert sorted(_contents(gallery)) == _listed(crops)
    (note,) = gallery.notes
    assert "cannot be kept" in note


def test_a_cache_that_cannot_take_more_does_not_cost_the_answer(crops, read, tmp_path, monkeypatch):
    read(crops, MeanColour())
    paint(crops / "new.png", "red")
    put = folder.GalleryStore.put

    def full(self, rows):
        if self.uri.startswith("memory"):
            return put(self, rows)
        raise folder.EngineError("The gallery's engine failed: No space left on device", where=self.uri)

    monkeypatch.setattr(folder.GalleryStore, "put", full)
    gallery = read(crops, MeanColour())
    assert sorted(_contents(gallery)) == _listed(crops)
    (note,) = gallery.notes
    assert "No space left on device" in note
    monkeypatch.undo()
    assert read(crops, MeanColour()).changes.embedded == 1


def test_queries_at_once_over_one_folder_all_answer(crops, read, monkeypatch):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", 0.0)
    galleries, faults = [], []

    def work():
        try:
            galleries.append(_contents(read(crops, MeanColour(), batch_size=2)))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [sorted(contents) for contents in galleries] == [_listed(crops)] * 4
    merged = read(crops, MeanColour())
    assert (merged.changes.embedded, len(merged.store)) == (0, 10)


def test_progress_counts_every_new_image(crops, read):
    (crops / "bad.png").touch()
    totals, done = [], []

    @contextmanager
    def progress(total):
        totals.append(total)
        yield done.append

    read(crops, MeanColour(), batch_size=4, progress=progress)
    assert (sum(totals), sum(done)) == (11, 11)
    (crops / "bad.png").unlink()
    read(crops, MeanColour(), progress=progress)
    assert (sum(totals), sum(done)) == (11, 11)


def test_the_cache_folder_is_the_argument_then_the_variable_then_the_platforms(tmp_path, monkeypatch):
    monkeypatch.setenv("TIPRCTL_CACHE", str(tmp_path / "variable"))
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("TIPRCTL_CACHE")
    assert cache_folder().name == "tiprctl"

"""A folder as a gallery: what the cache keeps between queries, and what becomes of it when it is damaged."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager

import lance
import numpy as np
import pytest
from PIL import Image

from tiprctl.errors import InputError, TiprError
from tiprctl.gallery import folder, writing
from tiprctl.gallery.adding import EmbeddingInterrupted
from tiprctl.gallery.cache import cache_folder
from tiprctl.gallery.folder import kept, open_folder
from tiprctl.gallery.listing import list_images


class MeanColour:
    """A model that sees the mean colour; it counts what it embeds, and can be told to be interrupted."""

    description = "mean colours"
    source = "runs/mean"
    width = 3
    image_size = (8, 4)
    precision = "float32"

    def __init__(self, fingerprint: str = "mean", interrupt_at: int | None = None):
        self.fingerprint = fingerprint
        self.interrupt_at = interrupt_at
        self.batches: list[int] = []

    @property
    def embedded(self) -> int:
        return sum(self.batches)

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        if self.interrupt_at == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append(len(pixels))
        return _unit(pixels.mean((1, 2)) + 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), colour).save(path)


@pytest.fixture
def crops(tmp_path):
    """Ten crops in two folders, each of a colour of its own."""
    root = tmp_path / "crops"
    for number in range(10):
        _paint(root / ("a" if number % 2 else "b") / f"{number}.png", (20 * number, 100, 100))
    return root


@pytest.fixture
def read(tmp_path):
    """Open a folder with its cache in the test's own folder."""

    def call(root, model, **kwargs):
        return open_folder(list_images(root), model, cache=tmp_path / "cache", **kwargs)

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
        np.testing.assert_allclose(vector, _unit(np.array([[20 * int(path[2]) + 1, 101, 101.0]]))[0], atol=1e-6)


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
    _paint(crops / "a" / "1.png", (255, 0, 0))
    os.utime(crops / "a" / "1.png", ns=(1, 1))
    _paint(crops / "c" / "new.png", (0, 255, 0))
    model = MeanColour()
    gallery = read(crops, model)
    assert model.embedded == gallery.changes.embedded == 2
    contents = _contents(gallery)
    assert sorted(contents) == _listed(crops)
    np.testing.assert_allclose(contents["a/1.png"], _unit(np.array([[256, 1, 1.0]]))[0], atol=1e-6)
    assert read(crops, MeanColour()).changes.embedded == 0


def test_what_cannot_be_looked_at_any_more_is_not_found(crops, read):
    (crops / "link.png").symlink_to(crops / "a" / ".1.png")
    _paint(crops / "a" / ".1.png", "red")
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
    _paint(crops / "new.png", "red")
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


def test_many_small_commits_are_joined(crops, read, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", 0.0)
    monkeypatch.setattr(folder, "_MANY_FRAGMENTS", 4)
    read(crops, MeanColour(), batch_size=1)
    assert len(lance.dataset(str(_dataset(tmp_path))).get_fragments()) == 1
    assert read(crops, MeanColour()).changes.embedded == 0


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

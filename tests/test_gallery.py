"""The gallery: walking, embedding, the cache between queries, ranking, the contact sheet."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import lance
import numpy as np
import pytest
from PIL import Image

from tiprctl.errors import InputError, TiprError, UsageError
from tiprctl.gallery import index, sheet
from tiprctl.gallery.cache import cache_folder
from tiprctl.gallery.embed import Unreadable, embed_images, list_images
from tiprctl.gallery.index import EmbeddingInterrupted, read_gallery
from tiprctl.gallery.search import search
from tiprctl.gallery.sheet import Block, Crop, draw_sheet, write_sheet


class MeanColour:
    """An embedder that sees the mean colour; it counts what it embeds, and can be told to be interrupted."""

    description = "mean colours"
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
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (8, 4, 3)
        self.batches.append(len(pixels))
        return _unit(pixels.mean((1, 2)) + 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), colour).save(path)


@pytest.fixture
def crops(tmp_path):
    """Ten crops in two folders, each of a grey of its own."""
    root = tmp_path / "crops"
    for number in range(10):
        _paint(root / ("a" if number % 2 else "b") / f"{number}.png", (20 * number, 100, 100))
    return root


@pytest.fixture
def read(tmp_path):
    """Read a gallery with its cache in the test's own folder."""

    def call(root, embedder, **kwargs):
        return read_gallery(list_images(root), embedder, cache=tmp_path / "cache", **kwargs)

    return call


def _dataset(tmp_path):
    (folder,) = (tmp_path / "cache" / "galleries").iterdir()
    return folder


def _paths(listing):
    return [image.path for image in listing.images]


def test_walk_takes_every_image_kind_in_path_order_and_skips_what_is_hidden(tmp_path):
    for name in ("b.JPG", "a.jpeg", "c/d.png", "c.webp", "z.Bmp", ".hidden.png", ".git/e.png", "c/.thumbs/f.png"):
        _paint(tmp_path / name, "red")
    (tmp_path / "notes.txt").write_text("no image")
    listing = list_images(tmp_path)
    assert _paths(listing) == ["a.jpeg", "b.JPG", "c.webp", "c/d.png", "z.Bmp"]
    assert listing.unreadable == []
    first = (tmp_path / "a.jpeg").stat()
    assert (listing.images[0].size, listing.images[0].mtime_ns) == (first.st_size, first.st_mtime_ns)


def test_walk_takes_a_hidden_folder_that_is_named_outright(tmp_path):
    _paint(tmp_path / ".crops" / "a.png", "red")
    assert _paths(list_images(tmp_path / ".crops")) == ["a.png"]


def test_walk_survives_loops_and_counts_each_real_file_once(tmp_path):
    root = tmp_path / "crops"
    _paint(root / "m" / "one.png", "red")
    _paint(tmp_path / "elsewhere" / "two.png", "blue")
    (root / "m" / "up").symlink_to(root)
    (root / "a_link").symlink_to(root / "m")
    (root / "a_file.png").symlink_to(root / "m" / "one.png")
    (root / "n").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    listing = list_images(root)
    assert _paths(listing) == ["m/one.png", "n/two.png"]
    assert Unreadable("gone.png", "a link that leads nowhere") in listing.unreadable
    assert {one.path for one in listing.unreadable} == {"gone.png", "self.png"}


def test_walk_follows_a_linked_file_that_leaves_the_folder(tmp_path):
    _paint(tmp_path / "store" / "1.png", "red")
    (tmp_path / "crops").mkdir()
    for name in ("y.png", "x.png"):
        (tmp_path / "crops" / name).symlink_to(tmp_path / "store" / "1.png")
    assert _paths(list_images(tmp_path / "crops")) == ["x.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_walk_names_a_file_whose_name_is_not_utf8(tmp_path):
    _paint(tmp_path / "a.png", "red")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    (unreadable,) = list_images(tmp_path).unreadable
    assert unreadable.path == "\\udcff.png"
    assert "not valid UTF-8" in unreadable.reason


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lambda path: None, "There is no such gallery folder", "Name a folder"),
        (lambda path: path.write_text(""), "The gallery is a file, not a folder", "Name a folder"),
        (lambda path: path.mkdir(), "There is no image in the gallery", "Images end in .bmp, .jpeg, .jpg"),
        (lambda path: (path.mkdir(), (path / "a.png").symlink_to("gone")), "There is no image", "a.png (a link that"),
    ],
)
def test_walk_refuses_what_holds_no_image(tmp_path, make, what, remedy):
    make(tmp_path / "crops")
    with pytest.raises(InputError) as caught:
        list_images(tmp_path / "crops")
    assert what in caught.value.what
    assert caught.value.where == str(tmp_path / "crops")
    assert remedy in caught.value.remedy


def test_batches_hold_every_image_in_order(crops):
    listing = list_images(crops)
    embedder = MeanColour()
    batches = list(embed_images(crops, listing.images, embedder, batch_size=3))
    assert embedder.batches == [3, 3, 3, 1]
    assert [image for batch in batches for image in batch.images] == listing.images
    greys = [int(image.path[2]) for image in listing.images]
    expected = _unit(np.array([[20 * grey + 1, 101, 101] for grey in greys], float))
    np.testing.assert_allclose(np.concatenate([batch.vectors for batch in batches]), expected, atol=1e-6)


def test_unreadable_files_are_named_and_the_rest_is_embedded(crops, read):
    (crops / "0.jpg").touch()
    Image.effect_noise((64, 64), 50).save(crops / "whole.jpg")
    whole = (crops / "whole.jpg").read_bytes()
    (crops / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (crops / "text.png").write_text("not a picture")
    os.mkfifo(crops / "pipe.png")
    gallery = read(crops, MeanColour())
    reasons = {one.path: one.reason for one in gallery.unreadable}
    assert set(reasons) == {"0.jpg", "cut.jpg", "text.png", "pipe.png"}
    assert "empty" in reasons["0.jpg"]
    assert "truncated" in reasons["cut.jpg"]
    assert "not an image" in reasons["text.png"]
    assert len(gallery.paths) == len(gallery.vectors) == gallery.embedded == 11


def test_a_gallery_without_one_readable_image_is_refused(tmp_path, read):
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "a.png").touch()
    with pytest.raises(InputError, match="None of the 1 images") as caught:
        read(tmp_path / "crops", MeanColour())
    assert "0 bytes" in caught.value.remedy


@pytest.mark.parametrize("fault", [np.nan, 3.0])
def test_vectors_that_are_not_of_unit_length_are_refused_and_not_kept(crops, read, fault):
    embedder = MeanColour()
    embedder.embed_images = lambda pixels: np.full((len(pixels), 3), fault, np.float32)
    with pytest.raises(TiprError, match="not 10 unit vectors") as caught:
        read(crops, embedder)
    assert "--model" in caught.value.remedy
    assert read(crops, MeanColour()).embedded == 10


def test_a_second_reading_embeds_nothing_and_gives_the_same(crops, read):
    first, again = MeanColour(), MeanColour()
    before, after = read(crops, first), read(crops, again)
    assert (first.embedded, again.batches) == (10, [])
    assert (before.embedded, after.embedded) == (10, 0)
    assert after.paths == before.paths == _paths(list_images(crops))
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.vectors.dtype == np.float32
    assert after.notes == before.notes == []


def test_only_what_is_new_or_changed_is_embedded_and_what_is_gone_is_left_out(crops, read, tmp_path):
    read(crops, MeanColour())
    (crops / "b" / "0.png").unlink()
    _paint(crops / "a" / "1.png", (255, 0, 0))
    os.utime(crops / "a" / "1.png", ns=(1, 1))
    _paint(crops / "c" / "new.png", (0, 255, 0))
    embedder = MeanColour()
    gallery = read(crops, embedder)
    assert embedder.embedded == gallery.embedded == 2
    assert gallery.paths == _paths(list_images(crops))
    assert "b/0.png" not in gallery.paths
    np.testing.assert_allclose(gallery.vectors[0], _unit(np.array([[256, 1, 1.0]]))[0], atol=1e-6)
    kept = lance.dataset(str(_dataset(tmp_path))).to_table()["path"].to_pylist()
    assert sorted(kept) == gallery.paths
    assert read(crops, MeanColour()).embedded == 0


def test_size_alone_and_time_alone_count_as_a_change(crops, read):
    read(crops, MeanColour())
    target = crops / "a" / "1.png"
    before = target.stat()
    target.write_bytes(target.read_bytes() + b"\0")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(crops, MeanColour()).embedded == 1
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert read(crops, MeanColour()).embedded == 1


def test_models_and_folders_have_caches_of_their_own(crops, read, tmp_path):
    read(crops, MeanColour("one"))
    assert read(crops, MeanColour("two")).embedded == 10
    assert read(crops / "a", MeanColour("one")).embedded == 5
    assert read(crops / "a" / "..", MeanColour("one")).embedded == 0
    assert len(list((tmp_path / "cache" / "galleries").iterdir())) == 3


@pytest.mark.parametrize("pause", [0.0, 1e9], ids=["each batch", "at the end"])
def test_an_interrupted_reading_keeps_its_batches(crops, read, monkeypatch, pause):
    monkeypatch.setattr(index, "_SECONDS_BETWEEN_COMMITS", pause)
    with pytest.raises(EmbeddingInterrupted) as caught:
        read(crops, MeanColour(interrupt_at=2), batch_size=3)
    assert (caught.value.kept, caught.value.total) == (6, 10)
    assert isinstance(caught.value, KeyboardInterrupt)
    embedder = MeanColour()
    assert read(crops, embedder).embedded == embedder.embedded == 4


def test_what_a_failing_model_embedded_is_kept(crops, read):
    embedder = MeanColour()
    embed = embedder.embed_images

    def fail_later(pixels):
        if embedder.batches:
            raise RuntimeError("out of memory")
        return embed(pixels)

    embedder.embed_images = fail_later
    with pytest.raises(RuntimeError, match="out of memory"):
        read(crops, embedder, batch_size=4)
    assert read(crops, MeanColour()).embedded == 6


def _truncate(folder):
    for file in (folder / "data").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def _empty_versions(folder):
    for file in (folder / "_versions").iterdir():
        file.write_bytes(b"")


def _remove_data(folder):
    for file in (folder / "data").iterdir():
        file.unlink()


def _other_columns(folder):
    lance.write_dataset(lance.dataset(str(folder)).to_table(columns=["path"]), str(folder), mode="overwrite")


def _strange_vectors(folder):
    table = lance.dataset(str(folder)).to_table()
    vectors = table["vector"].combine_chunks()
    doubled = type(vectors).from_arrays(np.asarray(vectors.flatten()) * 2, 3)
    lance.write_dataset(table.set_column(3, "vector", doubled), str(folder), mode="overwrite")


@pytest.mark.parametrize("damage", [_truncate, _empty_versions, _remove_data, _other_columns, _strange_vectors])
def test_a_damaged_cache_is_built_again_with_a_note(crops, read, tmp_path, damage):
    before = read(crops, MeanColour())
    damage(_dataset(tmp_path))
    gallery = read(crops, MeanColour())
    assert gallery.embedded == 10
    np.testing.assert_array_equal(gallery.vectors, before.vectors)
    (note,) = gallery.notes
    assert "damaged and is built again" in note
    assert "\n" not in note
    assert ".rs:" not in note
    again = read(crops, MeanColour())
    assert (again.embedded, again.notes) == (0, [])


def test_a_panic_in_lance_counts_as_damage_but_an_interrupt_does_not(crops, read, monkeypatch):
    read(crops, MeanColour())
    panic = type("PanicException", (BaseException,), {})

    def fail(error):
        monkeypatch.setattr(index.lance, "dataset", lambda folder: (_ for _ in ()).throw(error))

    fail(panic("range end out of range"))
    assert "range end out of range" in read(crops, MeanColour()).notes[0]
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        read(crops, MeanColour())


def test_a_cache_that_cannot_be_written_does_not_cost_the_answer(crops, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    gallery = read_gallery(list_images(crops), MeanColour(), cache=tmp_path / "cache")
    assert len(gallery.paths) == 10
    (note,) = gallery.notes
    assert "could not be kept" in note


def test_a_commit_that_conflicts_is_tried_once_more(crops, read, monkeypatch):
    write, calls = lance.write_dataset, []

    def conflict_first(*args, **kwargs):
        calls.append(kwargs["mode"])
        if calls.count("append") == 1:
            raise OSError("Incompatible transaction: x, /somewhere/insert.rs:333")
        return write(*args, **kwargs)

    monkeypatch.setattr(index.lance, "write_dataset", conflict_first)
    assert read(crops, MeanColour()).notes == []
    assert calls == ["create", "append", "append"]
    assert read(crops, MeanColour()).embedded == 0


def test_queries_at_once_over_one_folder_all_answer(crops, read, monkeypatch):
    monkeypatch.setattr(index, "_SECONDS_BETWEEN_COMMITS", 0.0)
    galleries, faults = [], []

    def work():
        try:
            galleries.append(read(crops, MeanColour(), batch_size=2))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [gallery.paths for gallery in galleries] == [_paths(list_images(crops))] * 4
    assert [note for gallery in galleries for note in gallery.notes] == []
    merged = read(crops, MeanColour())
    assert (merged.embedded, len(merged.paths)) == (0, 10)


def test_rows_that_two_queries_added_are_merged(crops, read, tmp_path):
    read(crops, MeanColour())
    folder = str(_dataset(tmp_path))
    lance.write_dataset(lance.dataset(folder).to_table(), folder, mode="append")
    assert len(read(crops, MeanColour()).paths) == 10
    assert lance.dataset(folder).count_rows() == 10


def test_many_small_commits_are_compacted(crops, read, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_SECONDS_BETWEEN_COMMITS", 0.0)
    monkeypatch.setattr(index, "_MANY_FRAGMENTS", 4)
    read(crops, MeanColour(), batch_size=1)
    assert len(lance.dataset(str(_dataset(tmp_path))).get_fragments()) == 1
    assert read(crops, MeanColour()).embedded == 0


def test_progress_counts_every_new_image(crops, read):
    from contextlib import contextmanager

    (crops / "bad.png").touch()
    totals, done = [], []

    @contextmanager
    def progress(total):
        totals.append(total)
        yield done.append

    read(crops, MeanColour(), batch_size=4, progress=progress)
    assert (totals, sum(done)) == ([11], 11)
    (crops / "bad.png").unlink()
    read(crops, MeanColour(), progress=progress)
    assert totals == [11]


def test_the_cache_folder_is_the_argument_then_the_variable_then_the_platforms(tmp_path, monkeypatch):
    monkeypatch.setenv("TIPRCTL_CACHE", str(tmp_path / "variable"))
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("TIPRCTL_CACHE")
    assert cache_folder().name == "tiprctl"


def _naive(queries, gallery, top):
    """Ranks by full sorting in plain Python: score down, then index up."""
    ranks = []
    for query in queries:
        scores = [float(np.dot(query, row)) for row in gallery]
        ranks.append(sorted(range(len(gallery)), key=lambda i: (-scores[i], i))[:top])
    return np.array(ranks)


@pytest.mark.parametrize("top", [1, 7, 40, 200])
def test_search_equals_full_sorting_with_many_ties(top):
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (6, 4)).astype(np.float32)
    gallery = generator.integers(-1, 2, (40, 4)).astype(np.float32)
    hits = search(queries, gallery, top)
    expected = _naive(queries, gallery, top)
    assert hits.indices.shape == (6, min(top, 40))
    np.testing.assert_array_equal(hits.indices, expected)
    np.testing.assert_array_equal(hits.scores, np.take_along_axis(queries @ gallery.T, expected, 1))


def test_search_by_hand():
    gallery = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1]], np.float32)
    hits = search(np.array([[0, 1.0], [1, 0]], np.float32), gallery, 3)
    np.testing.assert_array_equal(hits.indices, [[1, 3, 2], [0, 2, 1]])
    np.testing.assert_allclose(hits.scores, [[1, 1, 0.8], [1, 0.6, 0]], rtol=1e-6)
    assert hits.scores.dtype == np.float32


def test_search_in_steps_of_queries_gives_the_same(monkeypatch):
    generator = np.random.default_rng(1)
    queries, gallery = generator.integers(-3, 4, (9, 5)).astype(float), generator.integers(-3, 4, (30, 5)).astype(float)
    whole = search(queries, gallery, 5)
    monkeypatch.setattr("tiprctl.gallery.search._SCORES_AT_ONCE", 60)
    np.testing.assert_array_equal(search(queries, gallery, 5).indices, whole.indices)


def test_search_without_queries_or_gallery_is_empty():
    assert search(np.empty((0, 3)), np.ones((5, 3)), 2).indices.shape == (0, 2)
    assert search(np.ones((2, 3)), np.empty((0, 3)), 2).scores.shape == (2, 0)


def test_the_query_path_imports_no_torch():
    code = "import tiprctl.gallery.index, tiprctl.gallery.search, tiprctl.gallery.sheet, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _crops(root, count):
    for number in range(count):
        _paint(root / f"{number}.png", (200, 0, 0))
    return [Crop(root / f"{number}.png", number + 1, 0.5) for number in range(count)]


def test_sheet_is_a_png_that_shows_each_crop_in_its_place(tmp_path):
    target = tmp_path / "out" / "sheet.png"
    write_sheet(target, [Block("woman in red coat", _crops(tmp_path, 12))])
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    width, height = sheet.CELL
    assert pixels.shape[1] > 10 * width
    assert 2 * height < pixels.shape[0] < 3 * height + 100
    red = (pixels == (200, 0, 0)).all(2)
    assert red.sum() == 12 * width * height
    assert (pixels.min(2) < 100).sum() > red.sum()


def test_sheet_has_a_block_a_sentence_and_grows_with_long_ones(tmp_path):
    crops = _crops(tmp_path, 3)
    one = draw_sheet([Block("red", crops)])
    two = draw_sheet([Block("red", crops), Block("blue", crops)])
    long = draw_sheet([Block("a very long sentence " * 20, crops)])
    assert one.width == two.width == long.width
    assert two.height > one.height + sheet.CELL[1]
    assert long.height > one.height + 3 * 32


def test_sheet_keeps_proportions_and_survives_strips_and_lost_files(tmp_path):
    Image.new("RGB", (900, 1), "red").save(tmp_path / "strip.png")
    Image.new("RGB", (100, 100), (0, 200, 0)).save(tmp_path / "square.png")
    crops = [Crop(tmp_path / name, 1, 0.1) for name in ("strip.png", "gone.png", "square.png")]
    pixels = np.asarray(draw_sheet([Block("x", crops)]))
    assert (pixels == (0, 200, 0)).all(2).sum() == sheet.CELL[0] ** 2


def test_too_large_a_sheet_is_refused_and_the_old_one_stays(tmp_path):
    target = tmp_path / "sheet.png"
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match="1,001 crops") as caught:
        write_sheet(target, [Block("x", [Crop(tmp_path / "a.png", 1, 0.0)] * 1001)])
    assert "--top" in caught.value.remedy
    assert target.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_sheet_whole(tmp_path, monkeypatch):
    target = tmp_path / "sheet.png"
    target.write_bytes(b"old")

    def full(self, file, **kwargs):
        raise OSError(28, "No space left on device")

    crops = _crops(tmp_path, 1)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_sheet(target, [Block("x", crops)])
    assert target.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "sheet.png"]

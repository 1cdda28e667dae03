"""The cache of decoded images: the same as from files, taken up where it stopped, not used where it does not fit."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import tiny
import torch
from PIL import Image

from tiprctl.data import decoding, image_cache
from tiprctl.data.decoding import DecodedImages
from tiprctl.data.image_cache import (
    CachingInterrupted,
    cache_bytes,
    cache_images,
    find_image_cache,
    other_caches,
)
from tiprctl.data.image_file import ImageFile
from tiprctl.data.manifest import write_manifest
from tiprctl.errors import ImageError, InputError
from tiprctl.evaluation import EvaluationData
from tiprctl.files import sole_writer
from tiprctl.pixels import load_pixels
from tiprctl.progress import Listener
from tiprctl.training import Trainer

SIZE = (16, 8)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the images that are decoded into a cache from now on."""
    names: list[str] = []

    def counted(path, size):
        names.append(path.name)
        return load_pixels(path, size)

    monkeypatch.setattr(image_cache, "load_pixels", counted)
    return names


@pytest.fixture
def file(cuhk_manifest):
    return cache_images(cuhk_manifest, SIZE, workers=2)


def expected(split) -> torch.Tensor:
    return torch.stack([torch.from_numpy(load_pixels(path, SIZE)).permute(2, 0, 1) for path in split.image_paths])


@contextmanager
def progress_into(told: list, total: int, done: int):
    told.append((total, done))
    yield told.append


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_images_are_those_of_the_files(cuhk_manifest, file, monkeypatch, name):
    assert file == cuhk_manifest.root / "pixels-16x8.cache"
    split = cuhk_manifest.split(name)
    images = DecodedImages.of(split, SIZE, workers=0)
    monkeypatch.setattr(decoding, "load_pixels", None)
    images.keep_if_small()
    assert images.kept is None
    assert images.remark is None
    batches = list(images.in_order(3))
    assert torch.equal(torch.cat(batches), expected(split))
    batches[0][0] = 1  # memory of its own, which may be written
    assert torch.equal(torch.cat(list(images.in_order(5))), expected(split))


def test_no_cache_no_remark(cuhk_manifest):
    assert find_image_cache(cuhk_manifest.split("train"), SIZE) == (None, None)


def test_what_stands_is_not_made_again(cuhk_manifest, file, decoded):
    told: list = []
    cache_images(cuhk_manifest, SIZE, progress=lambda total, done: progress_into(told, total, done))
    assert decoded == told == []


def test_progress_counts_the_images(cuhk_manifest):
    told: list = []
    cache_images(cuhk_manifest, SIZE, progress=lambda total, done: progress_into(told, total, done))
    assert told == [(16, 0), *[1] * 16]


def test_the_folder_may_move_and_the_manifest_change(cuhk_manifest, file, tmp_path):
    moved = shutil.move(cuhk_manifest.root, tmp_path / "elsewhere")
    manifest = replace(cuhk_manifest, root=moved, captions=cuhk_manifest.captions[::-3].reset_index(drop=True))
    split = manifest.split("train")
    images = DecodedImages.of(split, SIZE)
    assert images.cache is not None
    assert torch.equal(next(iter(images.in_order(20))), expected(split))


def test_an_image_with_two_identities_is_kept_once(cuhk_manifest):
    rows = cuhk_manifest.captions.copy()
    rows.loc[0, "pid"] = 99
    manifest = replace(cuhk_manifest, captions=rows)
    assert len(manifest.split("train").image_paths) == 9
    cache_images(manifest, SIZE)
    images = DecodedImages.of(manifest.split("train"), SIZE)
    assert images.cache.pixels.shape[0] == 16
    assert torch.equal(next(iter(images.in_order(20))), expected(manifest.split("train")))


def test_another_size_is_told_with_the_command(cuhk_manifest, file):
    cache, remark = find_image_cache(cuhk_manifest.split("train"), (32, 16))
    assert cache is None
    root = cuhk_manifest.root
    assert remark == (
        f"The image cache in {root} is of 16x8 pixels: images are decoded from their files, which takes longer. "
        f"Make one that fits with `tiprctl prepare cuhk-pedes --root {root} --cache-size 32x16`"
    )


def test_the_command_can_be_pasted_where_the_folder_has_a_space(cuhk_manifest, file, tmp_path):
    root = shutil.move(cuhk_manifest.root, tmp_path / "my data's folder")
    split = replace(cuhk_manifest, root=root).split("train")
    remark = find_image_cache(split, (32, 16))[1]
    words = shlex.split(remark.partition("`")[2].rstrip("`"))
    assert words == ["tiprctl", "prepare", "cuhk-pedes", "--root", str(root), "--cache-size", "32x16"]


def test_a_cache_that_may_not_be_read_is_not_called_damaged(cuhk_manifest, file, monkeypatch):
    original = Path.open

    def refused(path, *arguments, **options):
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    cache, remark = find_image_cache(cuhk_manifest.split("train"), SIZE)
    assert cache is None
    assert remark == (
        f"The image cache {file} cannot be read: Permission denied: images are decoded from their files, "
        "which takes longer. Give read access to it"
    )
    with pytest.raises(InputError, match="Permission denied") as caught:
        cache_images(cuhk_manifest, SIZE)
    assert caught.value.where == str(file)
    assert "give access to it" in caught.value.remedy


def change(path):
    pixels = np.asarray(Image.open(path)) // 2
    Image.fromarray(pixels).save(path)


def test_changed_images_are_told_and_decoded_from_the_files(cuhk_manifest, file, decoded):
    split = cuhk_manifest.split("train")
    change(split.image_paths[3])
    split.image_paths[5].unlink()
    cache, remark = find_image_cache(split, SIZE)
    assert cache is None
    assert remark.startswith(f"2 of 8 images changed since the image cache {file} was made: ")
    assert find_image_cache(cuhk_manifest.split("test"), SIZE)[1] is None
    shutil.copy(split.image_paths[4], split.image_paths[5])
    cache_images(cuhk_manifest, SIZE)
    assert sorted(decoded) == sorted(path.name for path in (split.image_paths[3], split.image_paths[5]))
    for name in ("train", "val", "test"):
        split = cuhk_manifest.split(name)
        images = DecodedImages.of(split, SIZE)
        assert images.cache is not None
        assert torch.equal(next(iter(images.in_order(20))), expected(split))


def test_who_reads_an_older_cache_goes_on_reading_it(cuhk_manifest, file):
    split = cuhk_manifest.split("train")
    before = expected(split)
    images = DecodedImages.of(split, SIZE)
    for path in split.image_paths:
        change(path)
    cache_images(cuhk_manifest, SIZE)
    assert torch.equal(next(iter(images.in_order(20))), before)
    after = next(iter(DecodedImages.of(split, SIZE).in_order(20)))
    assert torch.equal(after, expected(split))
    assert not torch.equal(after, before)


def test_another_manifest_takes_the_rows_that_it_shares(cuhk_manifest, decoded):
    few = replace(cuhk_manifest, captions=cuhk_manifest.captions[::-3].reset_index(drop=True))
    cache_images(few, SIZE)
    count = len(decoded)
    assert 0 < count < 16
    told: list = []
    cache_images(cuhk_manifest, SIZE, progress=lambda total, done: progress_into(told, total, done))
    assert told == [(16, 0), *[1] * 16]
    assert len(decoded) == len(set(decoded)) == 16
    for name in ("train", "val", "test"):
        split = cuhk_manifest.split(name)
        assert torch.equal(next(iter(DecodedImages.of(split, SIZE).in_order(20))), expected(split))


def test_what_another_process_finished_meanwhile_is_not_made_again(cuhk_manifest, decoded, monkeypatch):
    original, finished = image_cache.sole_writer, []

    @contextmanager
    def finished_before(target):
        if not finished:
            finished.append(target)
            cache_images(cuhk_manifest, SIZE)
        with original(target):
            yield

    monkeypatch.setattr(image_cache, "sole_writer", finished_before)
    told: list = []
    file = cache_images(cuhk_manifest, SIZE, progress=lambda total, done: progress_into(told, total, done))
    assert told == []
    assert finished == [file]
    assert len(decoded) == 16
    assert_whole(cuhk_manifest)


@pytest.mark.parametrize("spoil", ["cut", "noise", "folder"])
def test_a_damaged_cache_is_told_and_made_anew(cuhk_manifest, file, spoil):
    content = file.read_bytes()
    match spoil:
        case "cut":
            file.write_bytes(content[:-1])
        case "noise":
            file.write_bytes(bytes(range(256)) * 40)
        case "folder":
            file.unlink()
            file.mkdir()
    split = cuhk_manifest.split("train")
    cache, remark = find_image_cache(split, SIZE)
    assert cache is None
    assert remark.startswith(f"The image cache {file} is damaged: images are decoded from their files")
    if spoil == "folder":
        with pytest.raises(InputError, match="Cannot write the image cache"):
            cache_images(cuhk_manifest, SIZE)
        return
    cache_images(cuhk_manifest, SIZE)
    assert file.read_bytes() == content


def test_ctrl_c_saves_what_is_done(cuhk_manifest, decoded, monkeypatch):
    monkeypatch.setattr(image_cache, "_SAVE_EVERY", 4)
    told: list = []

    @contextmanager
    def stopped_after_six(total, done):
        def advance(count):
            told.append(count)
            if len(told) == 6:
                os.kill(os.getpid(), signal.SIGINT)

        yield advance

    with pytest.raises(CachingInterrupted, match="8 of 16 images are decoded and kept"):
        cache_images(cuhk_manifest, SIZE, progress=stopped_after_six)
    cache, remark = find_image_cache(cuhk_manifest.split("train"), SIZE)
    assert cache is None
    assert remark.startswith(f"The image cache of 16x8 pixels in {cuhk_manifest.root} is not finished: ")
    assert f"Finish it with `tiprctl prepare cuhk-pedes --root {cuhk_manifest.root} --cache-size 16x8`" in remark
    decoded.clear()
    told.clear()
    file = cache_images(cuhk_manifest, SIZE, progress=lambda total, done: progress_into(told, total, done))
    assert told[0] == (16, 8)
    assert len(decoded) == 8
    split = cuhk_manifest.split("test")
    assert torch.equal(next(iter(DecodedImages.of(split, SIZE).in_order(20))), expected(split))
    assert [path.name for path in file.parent.glob("pixels*")] == [file.name]


def test_ctrl_c_before_the_first_image_says_that_none_is_kept(cuhk_manifest):
    with pytest.raises(CachingInterrupted, match="0 of 16 images"):
        cache_images(cuhk_manifest, SIZE, progress=interrupt)


def test_a_killed_run_is_taken_up_from_its_last_save(cuhk_manifest, decoded, monkeypatch):
    """What a kill between two writes leaves: pixels without their stamps, and stamps of images changed since."""
    monkeypatch.setattr(image_cache, "_SAVE_EVERY", 4)
    file = cache_images(cuhk_manifest, SIZE)
    whole = file.read_bytes()
    unfinished = file.with_suffix(".partial")
    start = 128  # a header of NumPy's, then eight bytes an image
    unfinished.write_bytes(whole[: start + 8 * 8] + bytes(8 * 8) + whole[start + 16 * 8 :])
    file.unlink()
    changed = cuhk_manifest.root / cuhk_manifest.captions["path"].iloc[0]
    change(changed)
    decoded.clear()
    cache_images(cuhk_manifest, SIZE, workers=2)
    assert len(decoded) == 9
    assert changed.name in decoded
    split = cuhk_manifest.split("train")
    assert torch.equal(next(iter(DecodedImages.of(split, SIZE).in_order(20))), expected(split))


def test_an_unfinished_cache_of_another_manifest_gives_its_rows(cuhk_manifest, file, decoded):
    content = file.read_bytes()
    few = replace(cuhk_manifest, captions=cuhk_manifest.captions[:6])
    file.rename(file.with_suffix(".partial"))
    cache_images(few, SIZE)
    assert ImageFile(few.root, SIZE).whole.stat().st_size < len(content)
    assert decoded == []
    cache_images(cuhk_manifest, SIZE)
    assert file.read_bytes() == content


def test_pixels_newer_than_their_stamp_are_not_trusted(cuhk_manifest, file, decoded, monkeypatch):
    """A kill before the stamp of an image that changed, which comes back later as it was, with its old time."""
    file.rename(file.with_suffix(".partial"))
    path = cuhk_manifest.split("train").image_paths[3]
    before = shutil.copy2(path, cuhk_manifest.root / "before")
    original, calls = os.fsync, []

    def killed_before_a_stamp(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:  # of the emptied stamps, then of the pixels
            raise SystemExit
        original(descriptor)

    change(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed_before_a_stamp)
        with pytest.raises(SystemExit):
            cache_images(cuhk_manifest, SIZE)
    assert decoded == [path.name]
    shutil.move(before, path)
    cache_images(cuhk_manifest, SIZE)
    assert decoded == [path.name] * 2
    assert_whole(cuhk_manifest)


def few_of(manifest, left_out: list[str]):
    captions = manifest.captions[~manifest.captions["path"].isin(left_out)].reset_index(drop=True)
    return replace(manifest, captions=captions)


def assert_whole(manifest):
    for name in ("train", "val", "test"):
        split = manifest.split(name)
        assert torch.equal(next(iter(DecodedImages.of(split, SIZE).in_order(20))), expected(split))
    assert [path.name for path in manifest.root.glob("pixels*")] == ["pixels-16x8.cache"]


def broken_at(place: int, manifest):
    """Cache the images until that of this place, which is damaged from then on."""
    path = manifest.root / manifest.captions["path"].unique()[place]
    path.write_bytes(b"")
    with pytest.raises(ImageError):
        cache_images(manifest, SIZE)


def test_manifests_that_change_while_a_cache_is_unfinished_cost_no_image_twice(cuhk_manifest, decoded):
    paths = cuhk_manifest.captions["path"].unique().tolist()
    broken_at(9, cuhk_manifest)
    broken_at(12 - 1, few_of(cuhk_manifest, [paths[9]]))
    again = decoded[1 + decoded.index(Path(paths[9]).name) :]
    assert not set(again) & {Path(path).name for path in paths[:9]}
    files = ["pixels-16x8.older1", "pixels-16x8.partial"]
    assert sorted(path.name for path in cuhk_manifest.root.glob("pixels*")) == files
    least = few_of(cuhk_manifest, [paths[0], paths[9], paths[12]])
    decoded.clear()
    cache_images(least, SIZE)
    assert decoded == [Path(path).name for path in paths[13:]]
    assert_whole(least)


def test_rows_that_moved_in_an_unfinished_cache_are_taken_along(cuhk_manifest, decoded):
    """As many images as before, in other places."""
    broken_at(9, cuhk_manifest)
    decoded.clear()
    paths = cuhk_manifest.captions["path"].unique().tolist()
    (cuhk_manifest.root / "new.png").write_bytes((cuhk_manifest.root / paths[0]).read_bytes())
    captions = cuhk_manifest.captions[cuhk_manifest.captions["path"] != paths[9]]
    first = captions[captions["path"] == paths[0]].assign(path="new.png")
    moved = replace(cuhk_manifest, captions=pandas.concat([first, captions], ignore_index=True))
    assert moved.captions["path"].nunique() == 16
    cache_images(moved, SIZE)
    assert decoded == ["new.png", *(Path(path).name for path in paths[10:])]
    assert_whole(moved)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_what_is_kept_counts_the_rows_that_are_put_aside(cuhk_manifest, monkeypatch):
    broken_at(9, cuhk_manifest)
    few = few_of(cuhk_manifest, cuhk_manifest.captions["path"].unique()[9:10].tolist())
    with pytest.raises(CachingInterrupted, match="9 of 15 images are decoded and kept"):
        cache_images(few, SIZE, progress=interrupt)
    monkeypatch.setattr(image_cache, "_SAVE_EVERY", 4)

    @contextmanager
    def stopped(total, done):
        yield lambda count: os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(CachingInterrupted, match="9 of 15 images are decoded and kept") as caught:
        cache_images(few, SIZE, progress=stopped)
    assert (caught.value.kept, caught.value.total) == (9, 15)
    assert [path.suffix for path in sorted(few.root.glob("pixels*"))] == [".older1", ".partial"]


def test_what_is_kept_counts_the_rows_of_an_older_cache(cuhk_manifest, file):
    change(cuhk_manifest.split("train").image_paths[3])
    with pytest.raises(CachingInterrupted, match="15 of 16 images are decoded and kept"):
        cache_images(cuhk_manifest, SIZE, progress=interrupt)


@pytest.mark.parametrize("moment", ["put aside", "rows taken", "made whole"])
def test_a_kill_while_rows_are_taken_along_loses_none(cuhk_manifest, decoded, monkeypatch, moment):
    monkeypatch.setattr(image_cache, "_SAVE_EVERY", 4)
    broken_at(9, cuhk_manifest)
    decoded.clear()
    paths = cuhk_manifest.captions["path"].unique().tolist()
    few = few_of(cuhk_manifest, [paths[9]])

    def kill(*arguments, **options):
        raise SystemExit

    taken, original = [], image_cache._rows_at

    def killed_at_the_second(*arguments):
        taken.append(arguments)
        return original(*arguments) if len(taken) == 1 else kill()

    with monkeypatch.context() as patch:
        match moment:
            case "put aside":
                patch.setattr(image_cache, "ThreadPool", kill)
            case "rows taken":
                patch.setattr(image_cache, "_rows_at", killed_at_the_second)
            case "made whole":
                patch.setattr(Path, "unlink", kill)
        with pytest.raises(SystemExit):
            cache_images(few, SIZE)
    ImageFile(few.root, SIZE).whole.with_suffix(".lock").unlink(missing_ok=True)
    cache_images(few, SIZE)
    assert decoded == [Path(path).name for path in paths[10:]]
    left = [path for path, _ in other_caches(few.root, SIZE)]
    assert left == ([few.root / "pixels-16x8.older1"] if moment == "made whole" else [])
    for path in left:
        path.unlink()
    assert_whole(few)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_unreadable_image_is_named_and_those_before_it_are_saved(cuhk_manifest, decoded, workers):
    paths = cuhk_manifest.captions["path"].unique()
    broken = cuhk_manifest.root / paths[9]
    content = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        cache_images(cuhk_manifest, SIZE, workers=workers)
    assert caught.value.where == str(broken)
    assert caught.value.what == "The image file is empty (0 bytes)"
    broken.write_bytes(content)
    decoded.clear()
    cache_images(cuhk_manifest, SIZE, workers=workers)
    assert len(decoded) == 7


def test_a_missing_image_is_named(cuhk_manifest):
    lost = cuhk_manifest.root / cuhk_manifest.captions["path"].iloc[4]
    lost.unlink()
    with pytest.raises(ImageError, match="There is no such image file") as caught:
        cache_images(cuhk_manifest, SIZE)
    assert caught.value.where == str(lost)


def test_a_disk_that_is_too_small_is_refused_before_the_work(cuhk_manifest, decoded, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 16 * 3 * 16 * 8 - 1))
    with pytest.raises(InputError) as caught:
        cache_images(cuhk_manifest, SIZE)
    assert caught.value.what == "The image cache needs 6 kB, and the disk has 6 kB left"
    assert "--cache-size" in caught.value.remedy
    assert decoded == []
    assert list(cuhk_manifest.root.glob("pixels*")) == []


def test_the_other_caches_are_named_with_their_room(cuhk_manifest, file):
    root = cuhk_manifest.root
    assert file.stat().st_size == cache_bytes(16, SIZE)
    begun = root / "pixels-1024x512.partial"
    with begun.open("wb") as handle:
        handle.truncate(1 << 30)
    written = root / "pixels-64x32.partial"
    written.touch()
    begun.with_suffix(".lock").touch()  # as a killed process leaves it
    with sole_writer(written):
        assert other_caches(root, SIZE) == [(begun, begun.stat().st_blocks * 512)]
    written.unlink()
    assert [path for path, _ in other_caches(root, (64, 32))] == [begun, file]
    assert other_caches(root, (1024, 512)) == [(begun, 0), (file, other_caches(root, (1, 1))[1][1])]


def test_a_disk_that_fills_up_is_named_and_the_work_goes_on_later(cuhk_manifest, decoded, monkeypatch):
    monkeypatch.setattr(image_cache, "_SAVE_EVERY", 4)
    original, calls = os.fsync, []

    def full_at_the_second_save(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:  # after that of the emptied stamps, and of pixels and stamps at the first save
            raise OSError(28, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_the_second_save)
        with pytest.raises(InputError, match="No space left on device") as caught:
            cache_images(cuhk_manifest, SIZE)
    assert caught.value.where == str(ImageFile(cuhk_manifest.root, SIZE).unfinished)
    decoded.clear()
    cache_images(cuhk_manifest, SIZE)
    assert len(decoded) == 12


WRITER = """
import sys, time
from tiprctl.data import image_cache
from tiprctl.data.image_file import ImageFile
from tiprctl.data.manifest import read_manifest

load = image_cache.load_pixels

def slow(path, size):
    # Not before somebody has read that this process is at work, and at the end for long.
    print("decoding", flush=True)
    sys.stdin.readline()
    return load(path, size)

image_cache.load_pixels = slow
image_cache._SAVE_EVERY = 4
image_cache.cache_images(read_manifest(sys.argv[1]), (16, 8))
"""


@pytest.fixture
def writer(cuhk_manifest):
    """Another process that writes the cache, as soon as it has begun; it decodes an image for each line it gets."""
    write_manifest(cuhk_manifest)
    command = [sys.executable, "-c", WRITER, str(cuhk_manifest.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "decoding\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_spoils_nothing(cuhk_manifest, writer):
    with pytest.raises(InputError, match=f"Another process is writing this file: {writer.pid} on ") as caught:
        cache_images(cuhk_manifest, SIZE)
    assert caught.value.where == str(ImageFile(cuhk_manifest.root, SIZE).whole)
    assert caught.value.remedy.startswith("Wait until it is done.")
    writer.communicate("\n" * 16, timeout=60)
    assert writer.returncode == 0
    for name in ("train", "val", "test"):
        split = cuhk_manifest.split(name)
        images = DecodedImages.of(split, SIZE)
        assert images.cache is not None
        assert torch.equal(next(iter(images.in_order(20))), expected(split))
    assert [path.name for path in cuhk_manifest.root.glob("pixels*")] == ["pixels-16x8.cache"]


def test_what_a_killed_process_began_another_finishes(cuhk_manifest, writer):
    writer.stdin.write("\n" * 6)
    writer.stdin.flush()
    for _ in range(6):
        writer.stdout.readline()
    writer.kill()
    writer.wait()
    told: list = []
    cache_images(cuhk_manifest, SIZE, progress=lambda total, done: progress_into(told, total, done))
    assert told[0] == (16, 4)
    assert torch.equal(
        next(iter(DecodedImages.of(cuhk_manifest.split("train"), SIZE).in_order(20))),
        expected(cuhk_manifest.split("train")),
    )
    assert [path.name for path in cuhk_manifest.root.glob("pixels*")] == ["pixels-16x8.cache"]


class Warned(Listener):
    def __init__(self):
        self.texts = []

    def on_warning(self, text, *, objective=None):
        self.texts.append((text, objective))


def train(manifest, folder, monkeypatch):
    warned = Warned()
    Trainer(tiny.recipe(epochs=1), manifest, folder, device=torch.device("cpu"), workers=0, listener=warned).run()
    return warned.texts


def test_training_and_evaluation_read_the_cache_and_tell_once_where_it_does_not_fit(
    cuhk_manifest, file, tmp_path, monkeypatch
):
    def refuse(path, size):
        raise AssertionError(f"{path} was decoded")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "load_pixels", refuse)
        assert train(cuhk_manifest, tmp_path / "cached", patch) == []
        assert EvaluationData(cuhk_manifest.split("test"), SIZE).images.cache is not None
    change(cuhk_manifest.split("train").image_paths[0])
    change(cuhk_manifest.split("val").image_paths[0])
    texts = train(cuhk_manifest, tmp_path / "stale", monkeypatch)
    assert [objective for _, objective in texts] == [None]
    assert texts[0][0].startswith("1 of 8 images changed")
    assert EvaluationData(cuhk_manifest.split("val"), SIZE).images.remark.startswith("1 of 4 images changed")

"""Manifests: what a split holds, writing and reading back, and finding the one that a name means."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from tiprctl.data.manifest import (
    Manifest,
    build_manifest,
    find_manifest,
    read_manifest,
    standing_manifest,
    write_manifest,
)
from tiprctl.data.records import Record
from tiprctl.errors import InputError, UsageError

RECORDS = [
    Record("train", 7, "imgs/b.jpg", ("One.", "Two.")),
    Record("test", 9, "imgs/x.jpg", ("Three.",)),
    Record("train", 3, "imgs/a.jpg", ("Four.", " ")),
    Record("train", 7, "imgs/c.jpg", ("Five.",)),
]


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return build_manifest("cuhk-pedes", tmp_path, RECORDS)


def prepare(home, folder, dataset):
    (home / folder).mkdir(parents=True, exist_ok=True)
    write_manifest(build_manifest(dataset, home / folder, RECORDS))
    return home / folder


def test_split_by_hand(manifest, tmp_path):
    assert manifest.splits == ("train", "test")
    train = manifest.split("train")
    assert train.image_paths == [tmp_path / "imgs" / name for name in ("b.jpg", "a.jpg", "c.jpg")]
    assert train.image_pids.tolist() == [7, 3, 7]
    assert train.captions == ["One.", "Two.", "Four.", "Five."]
    assert train.caption_pids.tolist() == [7, 7, 3, 7]
    assert train.caption_images.tolist() == [0, 0, 1, 2]
    assert {array.dtype for array in (train.image_pids, train.caption_pids, train.caption_images)} == {
        np.dtype("int64")
    }


def test_split_agrees_with_a_loop_over_the_rows(cuhk_manifest):
    for name in cuhk_manifest.splits:
        split = cuhk_manifest.split(name)
        rows = [row for row in cuhk_manifest.captions.itertuples() if row.split == name]
        assert len(rows) == len(split.captions) > 0
        assert len(set(split.image_paths)) == len(split.image_paths)
        for row, caption, pid, image in zip(rows, split.captions, split.caption_pids, split.caption_images):
            assert (row.caption, row.pid) == (caption, pid)
            assert split.image_paths[image] == cuhk_manifest.root / row.path
            assert split.image_pids[image] == pid
            assert split.image_paths[image].is_file()


def test_path_with_two_identities_is_two_images(tmp_path):
    records = [Record("test", 1, "a.jpg", ("One.",)), Record("test", 2, "a.jpg", ("Two.",))]
    split = build_manifest("folder", tmp_path, records).split("test")
    assert split.image_pids.tolist() == [1, 2]
    assert split.caption_images.tolist() == [0, 1]


def test_a_folder_without_the_split_says_how_to_give_it_one(tmp_path):
    manifest = build_manifest("folder", tmp_path, [Record("test", 1, "a.jpg", ("One.",))])
    with pytest.raises(InputError, match="Give its table a column split"):
        manifest.split("train")


def test_unknown_split_lists_those_there_are(manifest):
    with pytest.raises(InputError, match="no split named 'val'") as caught:
        manifest.split("val")
    assert caught.value.remedy == "It has: train, test."


def test_written_and_read_back(manifest, tmp_path):
    file = write_manifest(manifest)
    assert file == tmp_path / "manifest.parquet"
    read = read_manifest(tmp_path)
    assert read.dataset == "cuhk-pedes"
    assert read.fingerprint == manifest.fingerprint
    assert read.captions["pid"].dtype == np.int64
    assert read.captions.to_dict("list") == manifest.captions.to_dict("list")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.parquet"]


def test_manifest_may_move_with_its_folder(manifest, tmp_path):
    write_manifest(manifest)
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.move(tmp_path, moved)
    read = read_manifest(moved)
    assert read.split("test").image_paths == [moved / "imgs/x.jpg"]
    assert read.fingerprint == manifest.fingerprint


def test_image_paths_are_absolute_though_the_root_is_not(manifest, tmp_path, monkeypatch):
    write_manifest(manifest)
    monkeypatch.chdir(tmp_path.parent)
    assert read_manifest(tmp_path.name).split("test").image_paths == [tmp_path / "imgs/x.jpg"]


def test_fingerprint_tells_every_change_apart(manifest, tmp_path):
    rows = manifest.captions
    seen = {manifest.fingerprint}
    for column, value in {"split": "val", "pid": 8, "path": "imgs/z.jpg", "caption": "Öne."}.items():
        changed = rows.copy()
        changed.loc[0, column] = value
        seen.add(Manifest("cuhk-pedes", tmp_path, changed).fingerprint)
    seen.add(Manifest("cuhk-pedes", tmp_path, rows.iloc[::-1]).fingerprint)
    assert len(seen) == 6
    assert all(len(fingerprint) == 64 for fingerprint in seen)


def test_full_disk_leaves_the_old_manifest_whole(manifest, tmp_path, monkeypatch):
    file = write_manifest(manifest)
    before = file.read_bytes()

    def fill_the_disk(table, where, **options):
        where.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tiprctl.data.manifest.pq.write_table", fill_the_disk)
    with pytest.raises(InputError, match="No space left on device") as caught:
        write_manifest(manifest)
    assert caught.value.where == str(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_reading_what_is_no_manifest(tmp_path):
    with pytest.raises(InputError, match="No data set is prepared here"):
        read_manifest(tmp_path)
    file = tmp_path / "manifest.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(file)
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(tmp_path)
    file.write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="The manifest is damaged") as caught:
        read_manifest(tmp_path)
    assert caught.value.where == str(file)


def test_find_by_data_set_folder_and_path(tmp_path, monkeypatch):
    cuhk = prepare(tmp_path, "CUHK-PEDES", "cuhk-pedes")
    crops = prepare(tmp_path, "Crops", "folder")
    assert find_manifest("cuhk-pedes", tmp_path).root == cuhk
    assert find_manifest("crops", tmp_path).root == crops
    assert find_manifest(str(crops), None).root == crops
    assert find_manifest(None, cuhk).root == cuhk
    monkeypatch.setenv("TIPRCTL_DATA", str(tmp_path))
    assert find_manifest("folder", None).root == crops


@pytest.mark.parametrize(
    ("folder", "dataset", "title"),
    [
        ("synth-pedes", "synth-pedes", "synth-pedes"),
        ("synth-pedes-hard", "synth-pedes", "synth-pedes-hard"),
        ("CUHK-PEDES", "cuhk-pedes", "cuhk-pedes"),
        ("CUHK-PEDES-2017", "cuhk-pedes", "cuhk-pedes-2017"),
        ("drawings", "synth-pedes", "synth-pedes"),
        ("Crops", "folder", "crops"),
    ],
)
def test_a_title_tells_data_sets_of_one_name_apart(tmp_path, monkeypatch, folder, dataset, title):
    root = prepare(tmp_path, folder, dataset)
    assert read_manifest(root).title == title
    monkeypatch.chdir(root)
    assert read_manifest(".").title == title


def test_the_folder_goes_before_the_data_set_of_that_name(tmp_path):
    elsewhere = prepare(tmp_path, "drawings", "synth-pedes")
    hard = prepare(tmp_path, "synth-pedes-hard", "synth-pedes")
    assert find_manifest("synth-pedes", tmp_path).root == elsewhere
    usual = prepare(tmp_path, "synth-pedes", "synth-pedes")
    assert find_manifest("synth-pedes", tmp_path).root == usual
    assert find_manifest("Synth-Pedes-Hard", tmp_path).root == hard


def test_the_usual_name_does_not_mean_the_hard_set_unless_its_folder_is_given(tmp_path):
    hard = prepare(tmp_path, "synth-pedes-hard", "synth-pedes")
    with pytest.raises(InputError, match="synth-pedes is not prepared; prepared are: synth-pedes-hard") as caught:
        find_manifest("synth-pedes", tmp_path)
    assert caught.value.remedy.startswith("Run `tiprctl prepare synth-pedes` to make")
    assert find_manifest("synth-pedes", hard).root == hard


def test_an_explicit_root_goes_before_a_folder_of_that_name_here(tmp_path, monkeypatch):
    named = prepare(tmp_path / "home", "crops", "folder")
    here = prepare(tmp_path / "here", "crops", "folder")
    monkeypatch.chdir(here.parent)
    assert find_manifest("crops", named.parent).root == named
    assert find_manifest("crops", None).root.resolve() == here.resolve()


def test_find_without_a_name_takes_the_only_one(tmp_path, monkeypatch):
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "data", "synth-pedes", "synth-pedes")
    assert find_manifest(None, None).dataset == "synth-pedes"


def test_find_without_a_name_lists_several(tmp_path):
    prepare(tmp_path, "CUHK-PEDES", "cuhk-pedes")
    prepare(tmp_path, "a", "folder")
    with pytest.raises(UsageError) as caught:
        find_manifest(None, tmp_path)
    assert caught.value.what.startswith("2 prepared data sets fit: ")
    assert f"cuhk-pedes ({tmp_path / 'CUHK-PEDES'})" in caught.value.what
    assert f"a ({tmp_path / 'a'})" in caught.value.what
    other = prepare(tmp_path, "B", "folder")
    with pytest.raises(UsageError, match=r"2 prepared data sets fit: b \(.*\), a \("):
        find_manifest("folder", tmp_path)
    assert find_manifest("b", tmp_path).root == other


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        (None, "No data set is prepared", "Run `tiprctl prepare synth-pedes` to make the built-in one"),
        ("synth-pedes", "synth-pedes is not prepared", "Run `tiprctl prepare synth-pedes` to make the built-in one"),
        ("synth-pedes-hard", "synth-pedes-hard is not prepared", "Run `tiprctl prepare synth-pedes --hard` to make"),
        ("rstpreid", "rstpreid is not prepared", "Run `tiprctl prepare rstpreid`"),
    ],
)
@pytest.mark.parametrize("home", ["", "nowhere"])
def test_find_where_nothing_is_prepared(tmp_path, name, what, remedy, home):
    with pytest.raises(InputError) as caught:
        find_manifest(name, tmp_path / home)
    assert caught.value.what == what
    assert caught.value.remedy.startswith(remedy)
    assert caught.value.where == str(tmp_path / home)


def test_find_what_is_not_prepared_names_what_is(tmp_path):
    prepare(tmp_path, "CUHK-PEDES", "cuhk-pedes")
    with pytest.raises(InputError, match="rstpreid is not prepared; prepared are: cuhk-pedes"):
        find_manifest("rstpreid", tmp_path)
    with pytest.raises(UsageError, match="no data set named 'chuk-pedes'") as caught:
        find_manifest("chuk-pedes", tmp_path)
    assert "Did you mean cuhk-pedes?" in caught.value.remedy
    (tmp_path / "crops").mkdir()
    with pytest.raises(InputError) as raised:
        find_manifest(str(tmp_path / "crops"), tmp_path)
    assert f"`tiprctl prepare folder --root {tmp_path / 'crops'}`" in raised.value.remedy


def test_sizes_are_those_of_the_splits(manifest):
    splits = [manifest.split(name) for name in manifest.splits]
    assert {name: (size.identities, size.images, size.captions) for name, size in manifest.sizes.items()} == {
        split.name: (len(set(split.image_pids.tolist())), len(split.image_paths), len(split.captions))
        for split in splits
    }


def test_standing_is_what_is_whole_and_of_that_data_set(manifest, tmp_path):
    assert standing_manifest("cuhk-pedes", tmp_path) is None
    write_manifest(manifest)
    assert standing_manifest("cuhk-pedes", tmp_path).fingerprint == manifest.fingerprint
    assert standing_manifest("folder", tmp_path) is None
    (tmp_path / "manifest.parquet").write_bytes(b"damaged")
    assert standing_manifest("cuhk-pedes", tmp_path) is None

"""`tiprctl prepare`: its good output, its JSON, and what it says of bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from tiprctl.cli.app import app
from tiprctl.data import image_cache
from tiprctl.data.image_cache import cache_images, find_image_cache
from tiprctl.data.manifest import find_manifest, read_manifest
from tiprctl.data.synth_pedes import Drawing, oracle
from tiprctl.data.synth_pedes import drawing as drawing_module
from tiprctl.recipes import RECIPES

SYNTH_SIZE = RECIPES["synth"].model.image_size


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setattr("tiprctl.cli.render._out.width", 200)


def run(*arguments: object):
    return CliRunner().invoke(app, ["prepare", *map(str, arguments)])


def manifests(root) -> list[str]:
    return [path.name for path in root.iterdir() if "manifest" in path.name]


def test_manifest_is_written_and_the_splits_shown(cuhk_root):
    result = run("cuhk-pedes", "--root", cuhk_root)
    assert result.exit_code == 0, result.output
    cells = [re.split(r"\s*[│|]\s*", line.strip("│| ")) for line in result.stdout.splitlines()]
    assert ["train", "4", "8", "16", "nothing"] in cells
    assert ["test", "2", "4", "8", "nothing"] in cells
    assert "32 captions of 16 images" in result.stderr
    assert "train has 4 identities, 8 images, 16 captions; published: 11,003 identities" in result.stderr
    manifest = read_manifest(cuhk_root)
    assert manifest.dataset == "cuhk-pedes"
    assert len(manifest.captions) == 32
    assert manifest.split("val").image_pids.tolist() == [8, 8, 9, 9]


def test_json_is_one_document(cuhk_root):
    (cuhk_root / "imgs/cam_a/001_0.jpg").write_bytes(b"no picture")
    result = run("cuhk-pedes", "--root", cuhk_root.parent, "--json", "--allow-missing")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["splits"]["train"] == {"identities": 4, "images": 8, "captions": 16}
    assert document["published"]["test"] == {"identities": 1000, "images": 3074, "captions": 6156}
    assert document["manifest"] == str(cuhk_root / "manifest.parquet")
    assert document["fingerprint"] == read_manifest(cuhk_root).fingerprint
    assert document["findings"] == [
        {
            "fault": "undecodable image",
            "split": "train",
            "subject": "imgs/cam_a/001_0.jpg",
            "detail": "The file is not an image of a known format",
        }
    ]


def test_missing_images_exit_3_with_number_and_first_names(cuhk_root):
    for path in sorted(cuhk_root.glob("imgs/cam_a/*.jpg"))[:7]:
        path.unlink()
    result = run("cuhk-pedes", "--root", cuhk_root)
    assert result.exit_code == 3
    assert "7 of 16 images missing or damaged: imgs/cam_a/001_0.jpg (there is no such file); " in result.stderr
    assert "and 2 more" in result.stderr
    assert "--allow-missing" in result.stderr
    assert "7 missing images" in result.stdout
    assert manifests(cuhk_root) == []


def test_allow_missing_keeps_the_rest(cuhk_root):
    (cuhk_root / "imgs/cam_a/001_0.jpg").unlink()
    (cuhk_root / "imgs/cam_a/013_1.jpg").write_bytes(b"")
    result = run("cuhk-pedes", "--root", cuhk_root, "--allow-missing")
    assert result.exit_code == 0, result.output
    assert "1 missing image: imgs/cam_a/001_0.jpg" in result.stderr
    assert "1 undecodable image: imgs/cam_a/013_1.jpg (The image file is empty (0 bytes))" in result.stderr
    paths = set(read_manifest(cuhk_root).captions["path"])
    assert len(paths) == 14
    assert not paths & {"imgs/cam_a/001_0.jpg", "imgs/cam_a/013_1.jpg"}


def test_nothing_left_is_an_error(cuhk_root):
    for path in cuhk_root.glob("imgs/cam_a/*.jpg"):
        path.unlink()
    result = run("cuhk-pedes", "--root", cuhk_root, "--allow-missing")
    assert result.exit_code == 3
    assert "No image with a caption is left" in result.stderr
    assert manifests(cuhk_root) == []


def test_check_writes_nothing(cuhk_root):
    result = run("cuhk-pedes", "--root", cuhk_root, "--check")
    assert result.exit_code == 0, result.output
    assert manifests(cuhk_root) == []
    records = json.loads((cuhk_root / "reid_raw.json").read_text())
    records[0]["captions"][0] = ""
    records[-1]["id"] = 1
    (cuhk_root / "reid_raw.json").write_text(json.dumps(records))
    result = run("cuhk-pedes", "--root", cuhk_root, "--check")
    assert result.exit_code == 4
    assert "The check found 2 faults" in result.stderr
    assert "1 empty caption: imgs/cam_a/001_0.jpg (caption 1 of 2)" in result.stderr
    assert "1 shared identity: identity 1 (also in train)" in result.stderr
    assert manifests(cuhk_root) == []
    result = run("cuhk-pedes", "--root", cuhk_root)
    assert result.exit_code == 0, "faults that leave the images usable are warned of, no more"
    assert len(read_manifest(cuhk_root).captions) == 31


def test_images_are_cached_at_the_size_of_the_recipe(cuhk_root):
    result = run("cuhk-pedes", "--root", cuhk_root, "--cache-images", "--workers", 1)
    assert result.exit_code == 0, result.output
    file = cuhk_root / "pixels-384x128.cache"
    assert file.stat().st_size > 16 * 3 * 384 * 128
    assert f"The images are decoded in {file}: 2 MB." in result.stderr
    before = file.stat().st_mtime_ns
    again = run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "384x128", "--json")
    assert json.loads(again.stdout)["image_cache"] == str(file)
    assert file.stat().st_mtime_ns == before


def test_images_are_cached_at_another_size(cuhk_root):
    result = run("cuhk-pedes", "--root", cuhk_root, "--cache-images", "--cache-size", "16x8")
    assert result.exit_code == 0, result.output
    assert [path.name for path in cuhk_root.glob("pixels*")] == ["pixels-16x8.cache"]
    assert json.loads(run("cuhk-pedes", "--root", cuhk_root, "--json").stdout)["image_cache"] is None


def test_images_that_are_left_out_are_not_cached(cuhk_root):
    (cuhk_root / "imgs/cam_a/001_0.jpg").write_bytes(b"")
    assert run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8").exit_code == 3
    assert list(cuhk_root.glob("pixels*")) == []
    assert run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8", "--allow-missing").exit_code == 0
    split = read_manifest(cuhk_root).split("train")
    assert find_image_cache(split, (16, 8))[0].pixels.shape[0] == 15


def test_what_is_cached_is_kept_when_an_image_is_left_out_as_the_message_says(cuhk_root, monkeypatch):
    load, decoded = image_cache.load_pixels, []
    monkeypatch.setattr(image_cache, "load_pixels", lambda path, size: decoded.append(path.name) or load(path, size))
    assert run("cuhk-pedes", "--root", cuhk_root).exit_code == 0
    paths = read_manifest(cuhk_root).captions["path"].unique()
    (cuhk_root / paths[9]).write_bytes(b"")
    asked = ("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8", "--workers", 1)
    refused = run(*asked)
    assert refused.exit_code == 3
    assert "prepare without it, with --allow-missing; what is cached is kept." in " ".join(refused.stderr.split())
    decoded.clear()
    assert run(*asked, "--allow-missing").exit_code == 0
    assert len(decoded) == 6
    assert find_image_cache(read_manifest(cuhk_root).split("train"), (16, 8))[0].pixels.shape[0] == 15
    assert [path.name for path in cuhk_root.glob("pixels*")] == ["pixels-16x8.cache"]


def test_the_remarks_command_works_however_the_set_was_prepared(cuhk_root, tmp_path, monkeypatch):
    """A table elsewhere, images that are missing, and a folder with a space."""
    root = cuhk_root.rename(tmp_path / "my crops")
    table = tmp_path / "mine.csv"
    table.write_text("path,caption\nimgs/cam_a/001_0.jpg,A man.\nimgs/lost.jpg,A woman.\n")
    assert run("folder", "--root", root, "--captions", table, "--allow-missing").exit_code == 0
    before = (root / "manifest.parquet").read_bytes()
    cache_images(read_manifest(root), (8, 4))
    remark = find_image_cache(read_manifest(root).split("test"), (16, 8))[1]
    monkeypatch.setattr("tiprctl.data.checks.check", None)
    result = run(*shlex.split(remark.partition("`")[2].rstrip("`"))[2:])
    assert result.exit_code == 0, result.output
    assert "stands, 1 caption of 1 image: nothing is checked again." in " ".join(result.stderr.split())
    assert (root / "manifest.parquet").read_bytes() == before
    assert find_image_cache(read_manifest(root).split("test"), (16, 8))[0] is not None


def test_what_is_asked_for_besides_the_cache_is_done(cuhk_root):
    (cuhk_root / "manifest.parquet").write_bytes(b"damaged")
    assert run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8").exit_code == 0
    assert len(read_manifest(cuhk_root).captions) == 32
    (cuhk_root / "imgs/cam_a/001_0.jpg").unlink()
    plain = run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8")
    assert plain.exit_code == 3
    assert "There is no such image file" in plain.stderr
    assert "with --allow-missing" in plain.stderr
    assert run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8", "--allow-missing").exit_code == 0
    assert len(read_manifest(cuhk_root).captions) == 30


def test_a_standing_manifest_in_json(cuhk_root):
    first = json.loads(run("cuhk-pedes", "--root", cuhk_root, "--json").stdout)
    again = json.loads(run("cuhk-pedes", "--root", cuhk_root.parent, "--json", "--cache-size", "16x8").stdout)
    assert again == {**first, "image_cache": str(cuhk_root / "pixels-16x8.cache"), "findings": None}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("code", "kept"), [(130, 8), (3, 6)])
def test_a_cache_that_is_not_finished_costs_nothing_else(cuhk_root, monkeypatch, code, kept, as_json):
    load, calls = image_cache.load_pixels, []
    monkeypatch.setattr(image_cache, "_SAVE_EVERY", 4)

    def stopped(path, size):
        calls.append(path)
        if len(calls) == 7 and code == 130:
            os.kill(os.getpid(), signal.SIGINT)
        elif len(calls) == 7:
            raise OSError(28, "No space left on device")
        return load(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "load_pixels", stopped)
        asked = ("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8", "--workers", 1)
        result = run(*asked, *["--json"] * as_json)
    assert result.exit_code == code
    assert "16 images of 16x8 pixels will take 7 kB in" in result.stderr
    if code == 130:
        assert "8 of 16 images are decoded and kept; the same command goes on from there." in result.stderr
    if as_json:
        document = json.loads(result.stdout)
        assert (document["image_cache"], document["manifest"]) == (None, str(cuhk_root / "manifest.parquet"))
    else:
        assert "train" in result.stdout
        assert result.stderr.index("Wrote ") < result.stderr.index("will take")
    assert len(read_manifest(cuhk_root).captions) == 32
    calls.clear()
    monkeypatch.setattr(image_cache, "load_pixels", lambda path, size: (calls.append(path), load(path, size))[1])
    assert run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8").exit_code == 0
    assert len(calls) == 16 - kept


def test_a_folder_that_cannot_be_written_is_told_before_the_images_are_checked(cuhk_root, monkeypatch):
    def refused(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr("tiprctl.data.checks.find_unusable", None)
    result = run("cuhk-pedes", "--root", cuhk_root)
    assert result.exit_code == 3
    assert "Cannot write: Permission denied" in result.stderr
    monkeypatch.undo()
    assert run("cuhk-pedes", "--root", cuhk_root, "--check").exit_code == 0


def test_the_caches_that_are_not_needed_are_named(cuhk_root):
    run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "64x32")
    result = run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "16x8")
    assert f"Not needed for training at 16x8: remove {cuhk_root / 'pixels-64x32.cache'} to free " in result.stderr
    again = run("cuhk-pedes", "--root", cuhk_root, "--cache-size", "64x32")
    assert "remove " + str(cuhk_root / "pixels-16x8.cache") in again.stderr
    assert "pixels-64x32.cache to free" not in again.stderr


@pytest.mark.parametrize("drawn", [["--ids", 4], ["--hard"]])
def test_the_images_of_any_synth_pedes_are_cached_as_they_stand(tmp_path, drawings, drawn):
    root = tmp_path / "new"
    run("synth-pedes", "--root", root, *drawn)
    result = run("synth-pedes", "--root", root, "--cache-size", "16x8")
    assert result.exit_code == 0, result.output
    assert len(drawings) == 1
    assert (root / "pixels-16x8.cache").is_file()
    assert run("synth-pedes", "--root", root, "--cache-size", "16x8", "--ids", 5).exit_code == 3


def test_synth_pedes_is_drawn_before_its_images_are_cached(tmp_path, drawings):
    result = run("synth-pedes", "--root", tmp_path / "new", "--cache-images")
    assert result.exit_code == 0, result.output
    height, width = SYNTH_SIZE
    assert (tmp_path / "new" / f"pixels-{height}x{width}.cache").is_file()


def test_check_takes_sizes_unlike_the_published_for_no_fault(cuhk_root):
    result = run("cuhk-pedes", "--root", cuhk_root, "--check")
    assert result.exit_code == 0
    assert "published: 11,003 identities" in result.stderr
    assert "exit 4 on any fault. Sizes unlike the published are none." in " ".join(
        re.sub("[│|]", " ", run("--help").stdout).split()
    )


def test_help_tells_the_size_that_is_drawn():
    text = run("--help").stdout
    assert [f"default: ({number})" in text for number in (Drawing.ids, Drawing.val_ids, Drawing.test_ids)] == [True] * 3


def test_folder_of_ones_own(cuhk_root, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text('path,caption\ncam_a/001_0.jpg,"A man, walking."\ncam_a/002_1.jpg,A woman.\n')
    result = run("folder", "--root", cuhk_root / "imgs", "--captions", table)
    assert result.exit_code == 0, result.output
    split = read_manifest(cuhk_root / "imgs").split("test")
    assert split.captions == ["A man, walking.", "A woman."]
    assert split.image_pids.tolist() == [0, 1]
    assert "Everything is in the split test" in result.stderr
    table.write_text("path,caption,split\ncam_a/001_0.jpg,A man.,train\ncam_a/002_1.jpg,A woman.,test\n")
    result = run("folder", "--root", cuhk_root / "imgs", "--captions", table)
    assert read_manifest(cuhk_root / "imgs").splits == ("train", "test")
    assert "Everything is in" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["chuk-pedes"], 2, "Did you mean cuhk-pedes?"),
        ([], 2, "Missing argument"),
        (["rstpreid"], 3, "rstpreid is not there: no data_captions.json"),
        (["cuhk-pedes", "--ids", "5"], 2, "--ids belongs to synth-pedes"),
        (["cuhk-pedes", "--hard"], 2, "--hard belongs to synth-pedes"),
        (["synth-pedes", "--hard", "--check"], 3, "`tiprctl prepare synth-pedes --hard` draws it"),
        (["cuhk-pedes", "--report"], 2, "--report belongs to synth-pedes"),
        (["synth-pedes", "--check", "--ids", "5"], 2, "--ids is for drawing; --check takes synth-pedes as it stands"),
        (["synth-pedes", "--check", "--force"], 2, "--force is for drawing"),
        (["cuhk-pedes", "--check", "--cache-images"], 2, "--check writes nothing"),
        (["cuhk-pedes", "--check", "--cache-size", "16x8"], 2, "--check writes nothing"),
        (["cuhk-pedes", "--cache-size", "384"], 2, "not '384'"),
        (["cuhk-pedes", "--cache-size", "0x128"], 2, "Write them as in 384x128."),
        (["synth-pedes", "--test-ids", "0", "--report"], 2, "--report measures the test split"),
        (["folder", "--captions", "none.csv"], 3, "There is no such annotation file"),
    ],
)
def test_bad_usage_and_missing_input(tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_path_that_leaves_the_root_is_refused(cuhk_root):
    (cuhk_root / "reid_raw.json").write_text(
        json.dumps([{"split": "test", "id": 1, "captions": ["x"], "file_path": "../../a.jpg"}])
    )
    result = run("cuhk-pedes", "--root", cuhk_root)
    assert result.exit_code == 3
    assert "Record 0 (counted from 0)" in result.stderr
    assert "leaves the data set's folder" in result.stderr


def test_synth_pedes_as_it_is_really_drawn(tmp_path):
    arguments = ("--root", tmp_path / "new", "--ids", 1, "--val-ids", 1, "--test-ids", 2, "--workers", 1)
    result = run("synth-pedes", *arguments, "--report")
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "new")
    assert manifest.splits == ("train", "val", "test")
    assert len(manifest.split("test").image_paths) == 8
    assert "an oracle that knows every attribute" in result.stdout
    result = run("synth-pedes", *arguments)
    assert result.exit_code == 0
    assert read_manifest(tmp_path / "new").fingerprint == manifest.fingerprint


@pytest.fixture
def drawings(cuhk_root, monkeypatch) -> list[dict]:
    """A stand-in for the drawing of synth-pedes that copies the miniature data set and notes its arguments."""
    calls: list[dict] = []

    def generate(root, drawing, *, on_image, workers):
        calls.append(asdict(drawing))
        for source in [*cuhk_root.glob("imgs/cam_a/*.jpg"), cuhk_root / "reid_raw.json"]:
            target = root / source.relative_to(cuhk_root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        on_image(16)

    monkeypatch.setattr(drawing_module, "generate", generate)
    figures = oracle.DifficultyReport("test", 4, 8, oracle_all=95.0, oracle_main=90.25, baseline=20.5)
    monkeypatch.setattr(oracle, "report", lambda root: figures)
    return calls


def test_synth_pedes_is_drawn_once(tmp_path, drawings):
    root = tmp_path / "new"
    first = run("synth-pedes", "--root", root, "--ids", 4, "--val-ids", 2, "--test-ids", 2)
    assert first.exit_code == 0, first.output
    assert drawings == [{"ids": 4, "val_ids": 2, "test_ids": 2, "seed": 0, "hard": False}]
    assert read_manifest(root).dataset == "synth-pedes"
    again = run("synth-pedes", "--root", root, "--ids", 4, "--val-ids", 2, "--test-ids", 2, "--report")
    assert again.exit_code == 0
    assert len(drawings) == 1
    assert "stands in" in again.stderr
    assert "90.25" in again.stdout
    other = run("synth-pedes", "--root", root)
    assert other.exit_code == 3
    assert "drawn with ids 4, val_ids 2, test_ids 2, seed 0" in other.stderr
    assert f"`tiprctl prepare synth-pedes --root {root} --force`" in other.stderr
    assert run("synth-pedes", "--root", root, "--force", "--seed", 1).exit_code == 0
    assert drawings[1:] == [{"ids": 3000, "val_ids": 100, "test_ids": 200, "seed": 1, "hard": False}]


def test_the_hard_one_stands_beside_the_usual_one(tmp_path, drawings, monkeypatch):
    monkeypatch.setenv("TIPRCTL_DATA", str(tmp_path / "data"))
    for arguments in ([], ["--hard"]):
        result = run("synth-pedes", *arguments)
        assert result.exit_code == 0, result.output
    assert [drawing["hard"] for drawing in drawings] == [False, True]
    for name in ("synth-pedes", "synth-pedes-hard"):
        manifest = find_manifest(name, None)
        assert (manifest.root, manifest.dataset) == (tmp_path / "data" / name, "synth-pedes")
    assert run("synth-pedes", "--hard", "--check").exit_code == 0
    assert len(drawings) == 2
    usual = run("synth-pedes", "--root", tmp_path / "data/synth-pedes", "--hard")
    assert usual.exit_code == 3
    assert "seed 0, hard False" in usual.stderr
    remedy = f"`tiprctl prepare synth-pedes --hard --root {tmp_path / 'data/synth-pedes'} --force`"
    assert remedy in usual.stderr


def test_a_record_that_does_not_speak_of_hard_is_the_usual_one(tmp_path, drawings):
    root = tmp_path / "new"
    run("synth-pedes", "--root", root)
    record = json.loads((root / "synth.json").read_text())
    assert record.pop("hard") is False
    (root / "synth.json").write_text(json.dumps(record))
    assert run("synth-pedes", "--root", root).exit_code == 0
    assert len(drawings) == 1
    assert run("synth-pedes", "--root", root, "--hard").exit_code == 3


def test_synth_pedes_report_in_json(tmp_path, drawings):
    document = json.loads(run("synth-pedes", "--root", tmp_path / "new", "--json", "--report").stdout)
    assert document["report"]["oracle_main"] == 90.25


def test_interrupted_drawing_is_taken_up_again(tmp_path, drawings, monkeypatch):
    root = tmp_path / "new"
    whole = drawing_module.generate

    def stop(root, drawing, **options):
        whole(root, drawing, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawing_module, "generate", stop)
        assert run("synth-pedes", "--root", root).exit_code == 130
    assert run("synth-pedes", "--root", root).exit_code == 0
    assert len(drawings) == 2
    with monkeypatch.context() as patch:
        patch.setattr(drawing_module, "generate", stop)
        assert run("synth-pedes", "--root", root, "--force").exit_code == 130
    assert manifests(root) == [], "it spoke of the former drawings"
    assert run("synth-pedes", "--root", root).exit_code == 0
    (root / "reid_raw.json").unlink()
    assert run("synth-pedes", "--root", root).exit_code == 0
    assert len(drawings) == 5


def test_synth_pedes_never_draws_over_other_files(cuhk_root, drawings):
    result = run("synth-pedes", "--root", cuhk_root)
    assert result.exit_code == 0, result.output
    assert (cuhk_root / "synth-pedes" / "manifest.parquet").is_file()
    (cuhk_root / "synth-pedes" / "synth.json").unlink()
    result = run("synth-pedes", "--root", cuhk_root, "--force")
    assert result.exit_code == 3
    assert "files that are no synth-pedes" in result.stderr
    assert len(drawings) == 1


def test_check_draws_nothing(tmp_path, drawings):
    result = run("synth-pedes", "--root", tmp_path / "new", "--check")
    assert result.exit_code == 3
    assert "`tiprctl prepare synth-pedes` draws it" in result.stderr
    assert drawings == []
    assert not (tmp_path / "new").exists()

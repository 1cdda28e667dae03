"""`tiprctl export`: what it writes and prints, and what it says where it cannot."""

import json
from pathlib import Path

import pytest
import tiny
from console import run

from tiprctl.exporting import TOLERANCE


@pytest.fixture(autouse=True)
def a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.run_folder(Path("runs/a"), tiny.readable())


def test_the_newest_run_is_exported_into_its_folder(capfd):
    done = run("export", "--json")
    document = json.loads(done.stdout)
    assert (document["folder"], document["precision"]) == ("runs/a/export", "float32")
    assert document["model"] == "runs/a/best.safetensors (epoch 1, chosen on val)"
    for name, size in document["files"].items():
        assert Path("runs/a/export", name).stat().st_size == size
    assert document["fingerprint"] == json.loads(Path("runs/a/export/export.json").read_text())["fingerprint"]
    assert max(document["differences"].values()) < 1e-4
    notes = ["Model: runs/a/best.safetensors (epoch 1, chosen on val)", "Writing text.onnx", "Writing image.onnx"]
    assert done.stderr.splitlines() == [*notes, "Comparing with torch"]
    # What the libraries print goes past the runner.
    assert capfd.readouterr() == ("", "")


def test_a_table_tells_sizes_and_differences():
    done = run("export", "runs/a", "--float16", "--output", "deploy", "--quiet")
    assert "deploy (float16)" in done.stdout
    assert "text.onnx" in done.stdout
    assert "MB" in done.stdout
    assert done.stderr == ""
    assert Path("deploy/text.onnx").is_file()
    assert not Path("runs/a/export").exists()


def test_a_failed_check_has_its_own_exit_code_and_leaves_nothing(monkeypatch):
    monkeypatch.setitem(TOLERANCE, "float32", -1.0)
    done = run("export", "runs/a", exit_code=4)
    assert "error: The export differs from torch by" in done.stderr
    assert "more than -1; it is not kept" in done.stderr
    assert not Path("runs/a/export").exists()


def test_what_is_no_model_is_refused_before_torch_works():
    assert "There is no such run" in run("export", "runs/b", exit_code=3).stderr
    Path("deploy").mkdir()
    Path("deploy/photo.jpg").touch()
    done = run("export", "runs/a", "--output", "deploy", exit_code=2)
    assert "The folder holds something else than an export: photo.jpg" in done.stderr

"""What is said of folders and lists, as `tiprctl index` remembers it."""

from __future__ import annotations

from pathlib import Path

import pytest
from colours import MeanColour, paint
from typer.testing import CliRunner

from tiprctl import vector_model
from tiprctl.cli.app import app
from tiprctl.gallery.keeping.store import GalleryStore


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A working folder with a crop of each of two cameras, and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vector_model, "load_vector_model", lambda source, **further: MeanColour())
    paint(Path("crops/cam_a/1.png"))
    paint(Path("crops/cam_b/2.png"), (200, 100, 100))


def run(command, *arguments, code=0):
    done = CliRunner().invoke(app, ["index", command, "--gallery", "g.lance", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def told(column):
    """The column's values, by the names of the files."""
    table = GalleryStore.open("g.lance").dataset.to_table(columns=["path", column])
    return {Path(path).name: value for path, value in zip(*(each.to_pylist() for each in table.columns))}


def test_a_later_table_is_told_in_the_types_of_the_gallery():
    for name, shift in (("a.csv", "1.5"), ("b.csv", "2")):
        Path(name).write_text(f"path,shift\ncam_a/1.png,{shift}\n")
        run("add", "crops", "--metadata", name)
    assert told("shift") == {"1.png": 2.0, "2.png": None}
    Path("c.csv").write_text("path,shift\ncam_a/1.png,late\n")
    refused = run("add", "crops", "--metadata", "c.csv", code=3).stderr
    assert "'shift' is of type double in the gallery" in refused and "c.csv" in refused


def test_the_columns_of_a_list_go_before_the_table_of_a_folder_above():
    Path("shifts.csv").write_text("path,shift\ncam_a/1.png,early\n")
    Path("crops/list.csv").write_text("path,pid\ncam_a/1.png,7\n")
    refused = run("add", "crops/list.csv", "--metadata", "shifts.csv", code=2).stderr
    assert "has columns itself" in refused and "list.csv" in refused
    run("add", "crops", "--metadata", "shifts.csv")
    for _ in range(2):
        run("add", "crops/list.csv")
        assert told("pid") == {"1.png": 7, "2.png": None}
        assert told("shift") == {"1.png": "early", "2.png": None}
    run("add", "crops/list.csv", "--metadata", "none")


def test_a_list_without_columns_takes_the_table_that_is_named_for_it():
    Path("shifts.csv").write_text("path,shift\ncam_a/1.png,early\n")
    Path("crops/list.txt").write_text("cam_a/1.png\n")
    run("add", "crops/list.txt", "--metadata", "shifts.csv")
    assert told("shift") == {"1.png": "early"}


def test_a_folder_that_is_told_of_for_the_first_time_describes_the_rows_it_has():
    run("add", "crops/cam_a", "--camera-from", "{camera}/*")
    done = run("add", "crops", "--camera-from", "cam_{camera}/*")
    assert "described anew" in done.stdout and "crops/cam_a is forgotten" in done.stderr
    assert told("camera") == {"1.png": "a", "2.png": "b"}
    paint(Path("crops/cam_a/3.png"))
    run("add", "crops/cam_a")
    assert told("camera") == {"1.png": "a", "2.png": "b", "3.png": "a"}
    assert "described anew" not in run("add", "crops").stdout


def test_a_folder_of_which_nothing_is_told_leaves_the_rows_of_those_below():
    paint(Path("crops/cam_a2/3.png"))
    run("add", "crops/cam_a", "--camera-from", "{camera}/*")
    assert "described anew" not in run("add", "crops/cam_a2", "--camera-from", "{camera}/*").stdout
    assert "described anew" not in run("add", "crops").stdout
    assert told("camera") == {"1.png": "cam_a", "2.png": None, "3.png": "cam_a2"}

"""`tiprctl index`: its commands as users meet them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from colours import MeanColour, paint
from typer.testing import CliRunner

from tiprctl import vector_model
from tiprctl.cli.app import app
from tiprctl.cli.index_session import IndexOptions, open_session, reading_of
from tiprctl.gallery.filling import writing
from tiprctl.gallery.filling.adding import Changes
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.keeping.engine import ObstacleError
from tiprctl.gallery.keeping.store import GalleryStore


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with six crops of two cameras, and a model whose name is told."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        paint(Path("crops") / f"cam_{'ab'[number % 2]}" / f"2026110{number + 1}_0830.png", (40 * number, 100, 100))
    return tmp_path


@pytest.fixture
def loaded(monkeypatch):
    """The names by which models were loaded; the model is always the same."""
    names = []
    monkeypatch.setattr(
        vector_model, "load_vector_model", lambda source, **further: names.append(source) or MeanColour()
    )
    return names


def run(*arguments, code=0, stdin=None):
    done = CliRunner().invoke(app, ["index", *map(str, arguments)], input=stdin)
    assert done.exit_code == code, done.output
    return done


def rows(*columns):
    return GalleryStore.open("g.lance").dataset.to_table(columns=["path", *columns]).to_pylist()


PATTERNS = ("--camera-from", "cam_{camera}/*", "--time-from", "{time:%Y%m%d_%H%M}*")


def test_add_makes_a_gallery_and_says_what_it_did(home, loaded):
    done = run("add", "crops", "--gallery", "g.lance", "--model", "runs/x", *PATTERNS)
    assert done.stdout == "g.lance: 6 added, 0 updated, 0 removed, 0 unchanged; 6 rows\n"
    assert "Model: mean colours" in done.stderr
    assert "Images: 6 in crops" in done.stderr
    assert loaded == ["runs/x"]
    assert {row["camera"] for row in rows("camera")} == {"a", "b"}
    assert sorted(f"{row['time']:%d %H:%M}" for row in rows("time"))[0] == "01 08:30"


def test_without_a_model_the_gallerys_own_is_used(home, loaded):
    run("add", "crops", "--gallery", "g.lance")
    run("sync", "crops", "--gallery", "g.lance")
    assert loaded == [None, MeanColour.source]


def test_what_was_said_of_a_folder_is_remembered_until_it_is_taken_back(home, loaded):
    run("add", "crops", "--gallery", "g.lance", *PATTERNS)
    paint(Path("crops/cam_c/20261109_0830.png"))
    run("sync", "crops", "--gallery", "g.lance")
    assert {row["camera"] for row in rows("camera")} == {"a", "b", "c"}
    done = run("sync", "crops", "--gallery", "g.lance", "--camera-from", "none")
    assert "7 described anew" in done.stdout
    assert {row["camera"] for row in rows("camera")} == {None}
    assert {row["time"].hour for row in rows("time")} == {8}


def test_add_as_json(home, loaded):
    (home / "crops" / "bad.png").touch()
    document = json.loads(run("add", "crops", "--gallery", "g.lance", *PATTERNS, "--json").stdout)
    assert document.pop("skipped") == [
        {"path": "bad.png", "reason": "The image file is empty (0 bytes)", "damaged": True}
    ]
    assert [one["option"] for one in document.pop("unmatched")] == ["--camera-from", "--time-from"]
    assert (document["images"], document["added"], document["rows"], document["index_due"]) == (7, 6, 6, False)


def test_skipped_files_are_counted_and_the_first_named(home, loaded, tmp_path):
    paint(tmp_path / "private" / "x.png")
    (home / "crops" / "a_link").symlink_to(tmp_path / "private")
    for number in range(5):
        (home / "crops" / f"bad{number}.png").touch()
    stderr = run("add", "crops", "--gallery", "g.lance").stderr
    assert "6 skipped: a_link (a link that leads out of the folder, not followed), bad0.png (The image" in stderr
    assert "and 3 more" in stderr
    assert "bad2" not in stderr
    done = run("add", "crops", "--gallery", "g.lance", "--follow-links")
    assert done.stdout.startswith("g.lance: 1 added")
    assert run("sync", "crops", "--gallery", "g.lance").stdout.startswith("g.lance: 0 added, 0 updated, 0 removed")


def test_a_table_of_metadata_gives_columns_and_its_strange_rows_are_told(home, loaded):
    Path("shifts.csv").write_text("path,shift\ncam_a/20261101_0830.png,early\nnone.png,late\n")
    done = run("add", "crops", "--gallery", "g.lance", "--metadata", "shifts.csv")
    assert "shifts.csv has rows of images that are not there" in done.stderr
    assert "none.png." in done.stderr
    assert {row["shift"] for row in rows("shift")} == {"early", None}
    Path("shifts.csv").write_text("path,shift\ncam_b/20261102_0830.png,late\n")
    assert "6 described anew" in run("sync", "crops", "--gallery", "g.lance").stdout
    assert {row["shift"] for row in rows("shift")} == {"late", None}
    Path("shifts.csv").unlink()
    assert "--metadata none" in run("sync", "crops", "--gallery", "g.lance", code=3).stderr


def test_sync_refuses_to_drop_most_of_a_folder_without_yes(home, loaded):
    run("add", "crops", "--gallery", "g.lance")
    shutil.rmtree("crops/cam_a")
    Path("crops/cam_b/20261102_0830.png").unlink()
    done = run("sync", "crops", "--gallery", "g.lance", code=2)
    assert "4 of the 6 images that the gallery has of this folder are no more" in done.stderr
    assert "--yes" in done.stderr
    assert run("sync", "crops", "--gallery", "g.lance", "--yes").stdout.startswith(
        "g.lance: 0 added, 0 updated, 4 removed"
    )
    shutil.rmtree("crops")
    assert "no such folder" in run("sync", "crops", "--gallery", "g.lance", "--yes", code=3).stderr
    assert len(rows()) == 2


def test_status_tells_what_there_is(home, loaded):
    run("add", "crops", "--gallery", "g.lance", *PATTERNS)
    table = run("status", "--gallery", "g.lance").stdout
    for part in ("a (3), b (3)", "2026-11-01 08:30 to 2026-11-06 08:30", "mean colours", "none needed", "crops"):
        assert part in table
    document = json.loads(run("status", "--gallery", "g.lance", "--json").stdout)
    assert (document["rows"], document["cameras"]) == (6, {"a": 3, "b": 3})
    assert (document["first"], document["last"]) == ("2026-11-01 08:30:00", "2026-11-06 08:30:00")
    assert document["model"]["source"] == MeanColour.source
    assert document["unfinished"] == []
    assert document["bytes"] == sum(file.stat().st_size for file in Path("g.lance").rglob("*") if file.is_file())


def test_status_tells_what_is_unfinished(home, loaded, monkeypatch):
    monkeypatch.setattr(vector_model, "load_vector_model", lambda source, **further: MeanColour(interrupt_at=1))
    done = run("add", "crops", "--gallery", "g.lance", "--batch-size", 4, code=130)
    assert "4 of 6 new images are embedded and kept; the same command goes on from there" in done.stderr
    assert f"add of {home / 'crops'}" in run("status", "--gallery", "g.lance").stdout


def test_remove_takes_paths_folders_and_expressions(home, loaded):
    run("add", "crops", "--gallery", "g.lance", *PATTERNS)
    done = run("remove", "crops/cam_a", "nowhere.png", "--gallery", "g.lance", "--yes")
    assert done.stdout == "g.lance: 3 removed; 3 rows\n"
    assert "No row to remove: nowhere.png" in done.stderr
    assert Path("crops/cam_a/20261101_0830.png").exists()
    assert run("remove", "--where", "time < '2026-11-03'", "--gallery", "g.lance", "--yes").stdout == (
        "g.lance: 1 removed; 2 rows\n"
    )
    document = json.loads(run("remove", "crops/cam_b/20261104_0830.png", "--gallery", "g.lance", "--json").stdout)
    assert (document["removed"], document["rows"]) == (1, 1)


def test_both_a_path_and_an_expression_narrow_the_choice(home, loaded):
    run("add", "crops", "--gallery", "g.lance", *PATTERNS)
    done = run("remove", "crops/cam_a", "--where", "time > '2026-11-02'", "--gallery", "g.lance", "--yes")
    assert done.stdout.endswith("2 removed; 4 rows\n")


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["remove", "--gallery", "g.lance"], 2, "Nothing is named that is to be removed"),
        (["remove", "", "--gallery", "g.lance", "--yes"], 2, "An empty path would mean the whole working folder"),
        (["remove", "--where", "", "--gallery", "g.lance", "--yes"], 2, "The expression '' cannot be read"),
        (["remove", "crops/cam_a", "--gallery", "g.lance"], 2, "3 of 6 rows would be removed, and nobody can be asked"),
        (["remove", "--where", "size > 0", "--gallery", "g.lance"], 2, "Add --yes"),
        (["remove", "nowhere", "--gallery", "g.lance"], 3, "There is no such row in the gallery"),
        (["remove", "--where", "camra = 'a'", "--gallery", "g.lance"], 2, "The columns are path, hash"),
        (["add", "crops", "--gallery", "g.lance", "--camera-from", "{cam}/*"], 2, "{cam} is neither"),
        (["add", "crops", "--gallery", "g.lance", "--camera-from", "x{camera}/*"], 2, "does not match"),
        (["add", "s3://bucket/crops", "--gallery", "g.lance"], 2, "Add --engine ray"),
        (["add", "crops", "--gallery", "g.lance", "--address", "auto"], 2, "Add --engine ray"),
        (["add", "nowhere", "--gallery", "g.lance"], 3, "There is no such folder"),
        (["add", "", "--gallery", "g.lance"], 2, "It is empty"),
        (["sync", "", "--gallery", "g.lance"], 2, "It is empty"),
        (["add", "crops", "--gallery", ""], 2, "It is empty"),
        (["add", "crops", "--gallery", "g.lance", "--camera-from", ""], 2, "it is empty"),
        (["add", "crops", "--gallery", "g.lance", "--time-from", ""], 2, "it is empty"),
        (["sync", "crops/cam_a/20261101_0830.png", "--gallery", "g.lance"], 2, "takes a folder"),
        (["status", "--gallery", "none.lance"], 3, "There is no gallery"),
        (["status"], 2, "--gallery"),
    ],
)
def test_bad_input_is_told(home, loaded, arguments, code, what):
    if arguments[0] == "remove":
        run("add", "crops", "--gallery", "g.lance")
    assert what in run(*arguments, code=code).stderr
    if arguments[0] == "remove":
        assert len(rows()) == 6
    else:
        assert not Path("g.lance").exists()


def test_optimise_puts_a_gallery_in_order(home, loaded, monkeypatch):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_COMMITS", 0.0)
    run("add", "crops", "--gallery", "g.lance", "--batch-size", 1)
    done = run("optimise", "--gallery", "g.lance")
    assert done.stdout.startswith("g.lance: 6 rows; searched exactly, no index; 5 files fewer")
    assert len(rows()) == 6


def test_watch_once_adds_what_has_settled(home, loaded):
    done = run("watch", "crops", "--gallery", "g.lance", "--every", "0.05", "--once")
    assert done.stdout.startswith("g.lance: 6 added")
    assert "Watching crops every 0.05 s" in done.stderr
    assert run("watch", "crops", "--gallery", "g.lance", "--every", "0.05", "--once").stdout == ""


def test_watch_begins_with_an_odd_image(home, loaded):
    watched = run("watch", "crops", "--gallery", "g.lance", "--every", "0.05", "--once", "--camera-from", "x{camera}/*")
    assert watched.stdout.startswith("g.lance: 6 added")
    assert "its camera is null" in watched.stderr or "their camera is null" in watched.stderr


def test_watch_ends_cleanly_on_an_interrupt(home):
    """A real process that adds a file which arrives while it watches."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from colours import MeanColour
        from tiprctl import vector_model
        vector_model.load_vector_model = lambda source, **further: MeanColour()
        from tiprctl.cli.app import app
        app(["index", "watch", "crops", "--gallery", "g.lance", "--every", "0.1"])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("g.lance: 6 added")
    paint(Path("crops/late.png"))
    assert process.stdout.readline().startswith("g.lance: 1 added")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "No longer watching" in stderr
    assert len(rows()) == 7


def test_a_table_of_a_folder_serves_the_folders_below_it(home, loaded):
    Path("shifts.csv").write_text("path,shift\ncam_a/20261101_0830.png,early\ncam_b/20261102_0830.png,late\n")
    run("add", "crops", "--gallery", "g.lance", "--metadata", "shifts.csv")
    paint(Path("crops/cam_a/new.png"))
    Path("shifts.csv").write_text("path,shift\ncam_a/20261101_0830.png,noon\ncam_a/new.png,night\n")
    done = run("add", "crops/cam_a", "--gallery", "g.lance")
    assert "not there" not in done.stderr
    found = {Path(row["path"]).name: row["shift"] for row in rows("shift")}
    assert (found["20261101_0830.png"], found["new.png"]) == ("noon", "night")


@pytest.mark.parametrize("options", [PATTERNS, ("--metadata", "shifts.csv")], ids=["patterns", "table"])
def test_rows_are_described_anew_on_a_cluster_too(home, loaded, monkeypatch, options):
    """The cluster has nothing to embed; an interrupt there leaves the rows to the next command."""
    Path("shifts.csv").write_text("path,camera_name\ncam_a/20261101_0830.png,a\n")
    run("add", "crops", "--gallery", "g.lance")
    monkeypatch.setattr("tiprctl.gallery.cluster.adding.add_with_ray", lambda *arguments, **further: 1 / 0)
    CliRunner().invoke(app, ["index", "add", "crops", "--gallery", "g.lance", "--engine", "ray", *options])
    monkeypatch.setattr(
        "tiprctl.gallery.cluster.adding.add_with_ray", lambda *arguments, **further: Changes(images=6, unchanged=6)
    )
    for described in ("6 described anew", "0 removed, 6 unchanged; 6 rows"):
        assert described in run("add", "crops", "--gallery", "g.lance", "--engine", "ray", *options).stdout
    column = "camera" if options == PATTERNS else "camera_name"
    assert "a" in {row[column] for row in rows(column)}


def test_what_was_added_is_told_before_the_index_is_built(home, loaded, monkeypatch):
    monkeypatch.setattr("tiprctl.gallery.searching.optimising.unindexed", lambda store: "it is time")

    def full(*arguments, **further):
        raise ObstacleError("The disk is full", where="g.lance", remedy="Free some space.")

    monkeypatch.setattr("tiprctl.gallery.searching.optimising.optimise", full)
    done = run("add", "crops", "--gallery", "g.lance", code=3)
    assert done.stdout.startswith("g.lance: 6 added")
    assert "The disk is full" in done.stderr
    done = run("add", "crops", "--gallery", "g.lance", "--json", code=3)
    assert json.loads(done.stdout)["unchanged"] == 6


@pytest.mark.parametrize(
    ("named", "removed"),
    [
        ("crops/linked/x.png", 1),
        ("crops/linked", 2),
        ("alias/linked/x.png", 1),
        ("alias", 8),
        ("private/x.png", 0),
        ("crops/link.png", 0),
    ],
)
def test_an_image_is_removed_by_any_of_its_names(home, loaded, named, removed):
    """Through a link that was followed, and through a link to the folder; but not by what a link has as its target."""
    for name in "xy":
        paint(home / "private" / f"{name}.png", (5, 6, ord(name)))
    (home / "crops" / "linked").symlink_to(home / "private")
    (home / "alias").symlink_to("crops")
    run("add", "crops", "--gallery", "g.lance", "--follow-links")
    (home / "crops" / "link.png").symlink_to("cam_a/20261101_0830.png")
    run("remove", named, "--gallery", "g.lance", "--yes", code=0 if removed else 3)
    assert len(rows()) == 8 - removed


def test_a_table_that_grows_with_a_watched_folder_is_read_again(home, loaded):
    Path("shifts.csv").write_text("path,shift\ncam_a/20261101_0830.png,early\n")
    given = ("crops", "g.lance", None, None, None, Path("shifts.csv"), None, None)
    session = open_session(IndexOptions(*given))
    for shifts in (["early"], ["early", "late"]):
        session.bring(reading_of(8, None), listing=list_images("crops"))
        assert sorted(filter(None, (row["shift"] for row in rows("shift")))) == shifts
        paint(Path("crops/new.png"))
        Path("shifts.csv").write_text("path,shift\ncam_a/20261101_0830.png,early\nnew.png,late\n")


def test_what_is_said_of_a_watched_folder_meanwhile_counts(home, loaded):
    session = open_session(IndexOptions("crops", "g.lance", None, "cam_{camera}/*", None, None, None, None))
    watch = open_session(IndexOptions("crops", "g.lance", None, None, None, None, None, None))
    session.bring(reading_of(8, None))
    watch.bring(reading_of(8, None), listing=list_images("crops"))
    assert {row["camera"] for row in rows("camera")} == {"a", "b"}
    run("add", "crops", "--gallery", "g.lance", "--camera-from", "{camera}/*")
    paint(Path("crops/cam_c/new.png"))
    watch.bring(reading_of(8, None), listing=list_images("crops"))
    assert {row["camera"] for row in rows("camera")} == {"cam_a", "cam_b", "cam_c"}


@pytest.mark.parametrize("spoil", [Path.unlink, lambda table: table.write_text('path,shift\n"half')])
def test_a_table_that_cannot_be_read_for_a_moment_ends_no_watch(home, loaded, capsys, spoil):
    table = Path("shifts.csv")
    table.write_text("path,shift\ncam_a/20261101_0830.png,early\n")
    session = open_session(IndexOptions("crops", "g.lance", None, None, None, table, None, None))
    spoil(table)
    changes = session.bring(reading_of(8, None), listing=list_images("crops"))
    assert changes.added == len(rows("shift")) > 0
    assert [row["shift"] for row in rows("shift") if row["shift"]] == ["early"]
    assert "taken as it was before" in capsys.readouterr().err

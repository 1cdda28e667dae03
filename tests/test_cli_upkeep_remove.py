"""`tiprctl index remove --where`: what is named in vain, and rows that others describe anew meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import galleries
import pyarrow as pa
import pytest
from colours import MeanColour, paint
from typer.testing import CliRunner

from tiprctl.cli import index_upkeep
from tiprctl.cli.app import app
from tiprctl.gallery.filling.adding import Reading, add
from tiprctl.gallery.filling.metadata import Describer
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.keeping.removing import remove_chosen, rows_of
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore

OF_A = "camera = 'a'"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The gallery g.lance of the working folder: three crops of each of the cameras a and b."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        paint(Path("crops") / "ab"[number % 2] / f"{number}.png", (40 * number, 100, 100))
    made = GalleryStore.create("g.lance", ModelIdentity.of(MeanColour()))
    add(made, list_images("crops"), MeanColour(), Reading(Describer(PathPattern.parse("{camera}/*", "camera"))))
    return made


def remove(*arguments, code=0, stdin=None):
    done = CliRunner().invoke(app, ["index", "remove", *arguments, "--gallery", "g.lance"], input=stdin)
    assert done.exit_code == code, done.output
    return done


def names(store):
    store.refresh()
    return sorted(Path(path).stem for path in store.dataset.to_table(columns=["path"])["path"].to_pylist())


def revise(gallery, camera, *paths):
    """Give rows another camera, as another process would."""
    keys = [Path(path).resolve().as_posix() for path in paths]
    assert GalleryStore.open(gallery).revise(pa.table({"path": keys, "camera": [camera] * len(keys)})) == len(keys)


def test_rows_that_are_no_longer_chosen_stay(store):
    chosen = rows_of(store, [], OF_A)
    assert len(chosen.keys) == 3
    revise("g.lance", "b", "crops/a/0.png", "crops/a/4.png")
    assert remove_chosen(store, chosen, [], OF_A) == 1
    assert names(store) == ["0", "1", "3", "4", "5"]


def test_rows_that_were_not_chosen_stay_though_the_expression_holds_of_them_now(store):
    chosen = rows_of(store, [], OF_A)
    revise("g.lance", "a", "crops/b/1.png")
    assert remove_chosen(store, chosen, [], OF_A) == 3
    assert names(store) == ["1", "3", "5"]


def test_rows_that_another_process_removed_are_not_counted(store):
    chosen = rows_of(store, ["crops/a"], None)
    GalleryStore.open("g.lance").remove(chosen.keys[:1])
    assert remove_chosen(store, chosen, ["crops/a"], None) == 2
    assert names(store) == ["1", "3", "5"]


def test_what_changes_while_the_user_is_asked_is_looked_at_again(store, monkeypatch):
    monkeypatch.setattr(index_upkeep, "_confirm", lambda chosen, rows: revise("g.lance", "b", "crops/a/0.png"))
    assert remove("crops", "--where", OF_A).stdout == "g.lance: 2 removed; 4 rows\n"
    assert names(store) == ["0", "1", "3", "5"]


def test_a_process_keeps_the_rows_that_another_one_described_anew(tmp_path):
    place = galleries.archive(tmp_path)
    place.index("add", "crops", "--camera-from", "{camera}/*")
    held = galleries.Moment(at="tiprctl.gallery.keeping.removing:remove_chosen", then="wait")
    removing = place.start_index("remove", "--where", "camera = 'cam_a'", "--yes", at=held)
    removing.reached()
    kept = [tmp_path / "crops" / name for name in galleries.NAMES if name.startswith("cam_a")][:3]
    revise(place.gallery, "cam_c", *kept)
    assert removing.end().document["removed"] == 17
    rows = place.rows()
    assert {path for path, row in rows.items() if row["camera"] != "cam_b"} == {str(path.resolve()) for path in kept}
    assert len(rows) == 23


@pytest.mark.parametrize("yes", [["--yes"], []])
def test_an_expression_that_holds_of_no_row_is_no_error(store, yes):
    done = remove("--where", "camera = 'c'", *yes)
    assert done.stdout == "g.lance: 0 removed; 6 rows\n"
    assert done.stderr == ""
    document = json.loads(remove("--where", "camera = 'c'", "--json", *yes).stdout)
    assert document == {"gallery": "g.lance", "removed": 0, "rows": 6, "missing": [], "unmatched": []}


def test_paths_with_rows_of_which_the_expression_does_not_hold_are_told_as_such(store):
    done = remove("crops/b", "crops/b/1.png", "nowhere", "--where", OF_A)
    assert done.stdout == "g.lance: 0 removed; 6 rows\n"
    assert done.stderr.splitlines() == [
        "warning: No row to remove: nowhere",
        "warning: No row at or below crops/b passes --where",
        "warning: No row at or below crops/b/1.png passes --where",
    ]
    document = json.loads(remove("crops/a", "crops/b", "nowhere", "--where", OF_A, "--yes", "--json").stdout)
    assert (document["removed"], document["missing"], document["unmatched"]) == (3, ["nowhere"], ["crops/b"])


@pytest.mark.parametrize("where", [[], ["--where", OF_A]])
def test_paths_of_which_none_has_a_row_are_an_error(store, where):
    done = remove("nowhere", "crops/9.png", *where, "--yes", code=3)
    assert "There is no such row in the gallery" in done.stderr
    assert "passes --where" not in done.stderr
    assert len(names(store)) == 6

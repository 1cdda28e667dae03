"""Hostile names, expressions, tables and links: data in, data out, and nothing beside what was asked for."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import galleries
import numpy as np
import pytest
from galleries import GALLERY, Workplace
from PIL import Image

from tiprctl.errors import UsageError
from tiprctl.gallery.searching.answer import patterns
from tiprctl.gallery.searching.finding import find

NAMES = [
    "it's.png",
    'say "hi".png',
    "' OR 1=1 --.png",
    "%'; DROP TABLE t;.png",
    "[red]bold[/red].png",
    "<img src=x onerror=alert(1)>.png",
    "\x1b[31m\x1b]0;title\x07.png",
    "line\nbreak.png",
    "carriage\rreturn.png",
    "tab\tstop.png",
    "right\u202eleft.png",
    "$(touch pwned).png",
    "`touch pwned`.png",
    ";touch pwned;.png",
    "|touch pwned.png",
    "-rf.png",
    "--gallery.png",
    "-folder/--json.png",
    "=1+1.png",
    "a,b.png",
    "%s{0}.png",
    "*.png",
    "?.png",
    "[ab].png",
    "back\\slash.png",
    " spaces .png",
    "~.png",
    "ü名.png",
]
ANY = np.eye(1, galleries.WIDTH, dtype=np.float32)
"""A query."""
NOT_UTF8 = b"caf\xe9.png"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Workplace:
    """A gallery of crops with such names."""
    place = Workplace(tmp_path_factory.mktemp("hostile"))
    galleries.write_model(place.folder / "model")
    galleries.paint(place.folder / "crops", NAMES)
    shutil.copy(place.folder / "crops" / NAMES[0], os.fsencode(place.folder / "crops") + b"/" + NOT_UTF8)
    done = place.index("add", "crops").document
    assert done["added"] == len(NAMES)
    assert [one["path"] for one in done["skipped"]] == [r"caf\udce9.png"]
    return place


@pytest.fixture
def place(hostile, tmp_path) -> Workplace:
    """An empty folder with the model."""
    (tmp_path / "model").symlink_to(hostile.folder / "model")
    return Workplace(tmp_path)


def paths_of(place: Workplace, names=NAMES) -> set[str]:
    return {str(place.folder / "crops" / name) for name in names}


def test_names_come_back_as_they_are(hostile):
    assert set(hostile.rows()) == paths_of(hostile)
    found = hostile.query("a red coat", "--top", "99", "--json", "--csv", "hits.csv", "--sheet", "sheet.png")
    hits = found.document["results"][0]["hits"]
    assert {hit["path"] for hit in hits} == paths_of(hostile)
    rows = list(csv.DictReader((hostile.folder / "hits.csv").open(newline="")))
    assert [row["path"] for row in rows] == [hit["path"] for hit in hits]
    assert Image.open(hostile.folder / "sheet.png").size[1] > 100
    again = hostile.index("sync", "crops").document
    assert (again["unchanged"], again["added"], again["removed"]) == (len(NAMES), 0, 0)
    assert not (hostile.folder / "pwned").exists()


def test_a_table_never_commands_the_terminal(hostile):
    shown = hostile.query("a red coat", "--top", "99")
    for sign in ("\x1b", "\u202e", "\x07", "\r"):
        assert sign not in shown.stdout + shown.stderr
    assert "[red]bold[/red].png" in shown.stdout


def test_bare_paths_are_whole_and_a_line_each(hostile):
    listed = hostile.query("a red coat", "--top", "99", "--plain")
    lines = {name for name in NAMES if "\n" not in name and "\r" not in name}
    assert paths_of(hostile, lines) <= set(listed.stdout.split("\n"))
    assert "Some of the paths contain line breaks; --json keeps them apart" in listed.stderr


def test_rows_of_such_names_are_removed_by_them_alone(hostile, tmp_path):
    place = Workplace(tmp_path)
    shutil.copytree(hostile.gallery, place.gallery)
    for name in ("' OR 1=1 --.png", "*.png", "-rf.png"):
        gone = place.run(
            "index", "remove", "--json", "--gallery", GALLERY, "--", str(hostile.folder / "crops" / name)
        ).document
        assert gone["removed"] == 1
        assert str(hostile.folder / "crops" / name) not in place.rows()


@pytest.mark.parametrize("name", ["[ab].png", "back\\slash.png", "-rf.png", "line\nbreak.png"])
def test_a_crop_of_such_a_name_is_left_out_by_its_path(hostile, name):
    path = str(hostile.folder / "crops" / name)
    (found,) = find(hostile.store(), ANY, 99, exclude=patterns(path))
    assert paths_of(hostile) - set(found.rows["path"].to_pylist()) == {path}


REFUSED = [
    "false) or (true",
    "",
    "'",
    '"',
    "camera = 'a",
    "true /*",
    "true; drop table t",
    "1; delete from t",
    "select 1",
    "(select count(*) from t)",
    "exists (select 1)",
    "path in (select path from t)",
    "true union select 1",
    "true limit 1",
    "load_extension('x')",
    "read_csv('/etc/passwd') = 1",
    "pg_read_file('/etc/passwd') = 'a'",
    "1",
    "path",
    "nosuch = 1",
    "\x00",
    "\x1b[31m",
    "(" * 5000 + "true" + ")" * 5000,
    "not " * 5000 + "true",
    "size" + " + size" * 5000 + " = 1",
    "camera" + " is null" * 5000,
    " or ".join(f"camera = '{number}'" for number in range(5000)),
]
HARMLESS = {
    "true": len(NAMES),
    "true -- path = 'none'": len(NAMES),
    "/* path = 'none' */ true": len(NAMES),
    "path like '%OR 1=1%'": 1,
    "path like '%it''s.png'": 1,
    "path = '%''; DROP TABLE t;.png'": 0,
    f"path in ({', '.join(repr(str(number)) for number in range(20_000))})": 0,
}


@pytest.mark.parametrize("where", REFUSED, ids=range(len(REFUSED)))
def test_an_expression_that_is_none_is_refused(hostile, where):
    store = hostile.store()
    with pytest.raises(UsageError) as caught:
        find(store, ANY, 99, where=where)
    assert len(str(caught.value).splitlines()) <= 3
    assert len(str(caught.value)) < 1000


def test_an_expression_chooses_rows_and_does_nothing_else(hostile):
    store, version = hostile.store(), hostile.store().dataset.version
    for where, count in HARMLESS.items():
        (found,) = find(store, ANY, 99, where=where)
        assert len(found) == count
    assert hostile.store().dataset.version == version
    assert len(hostile.rows()) == len(NAMES)


@pytest.mark.parametrize("where", ["size" + " + size" * 5000 + " = 1", "\x1b[31m'"])
def test_the_program_outlives_a_hostile_expression(hostile, where):
    refused = hostile.query("a red coat", "--where", where)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "\x1b" not in refused.stderr
    assert len(refused.stderr.splitlines()) <= 5


def test_no_link_leads_out_unless_asked(place):
    inside, outside = place.folder / "crops", place.folder / "outside"
    galleries.paint(inside, ["a.png", "below/b.png"])
    galleries.paint(outside, ["secret.png", "below/secret.png"], seed=1)
    (inside / "file.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside / "below")
    (inside / "chain.png").symlink_to(inside / "file.png")
    (inside / "relative.png").symlink_to("../outside/secret.png")
    (inside / "loop").symlink_to(inside)
    (inside / "self.png").symlink_to(inside / "self.png")
    (inside / "dangling.png").symlink_to(inside / "none.png")
    (inside / "twin.png").symlink_to(inside / "a.png")
    done = place.index("add", "crops").document
    assert {Path(path).relative_to(inside).as_posix() for path in place.rows()} == {"a.png", "below/b.png"}
    reasons = {one["path"]: one["reason"] for one in done["skipped"]}
    out = "a link that leads out of the folder, not followed"
    assert {path for path, reason in reasons.items() if reason == out} == {
        "file.png",
        "folder",
        "chain.png",
        "relative.png",
    }
    assert {"dangling.png", "self.png"} <= reasons.keys()
    searched = place.run("query", "a red coat", "--gallery", "crops", "--model", "model", "--plain", "--top", "99")
    assert sorted(searched.stdout.split()) == ["crops/a.png", "crops/below/b.png"]
    followed = place.index("add", "crops", "--follow-links").document
    assert followed["rows"] == 4
    later = place.index("sync", "crops", "--no-follow-links").document
    assert (later["rows"], later["added"]) == (4, 0)


def test_a_folder_and_a_gallery_may_be_links_themselves(place):
    galleries.paint(place.folder / "real", ["a.png", "b.png"])
    (place.folder / "crops").symlink_to(place.folder / "real")
    assert place.run("index", "add", "crops", "--gallery", "real.lance", "--model", "model").returncode == 0
    place.gallery.symlink_to(place.folder / "real.lance")
    assert place.index("add", "real").document["unchanged"] == 2
    galleries.paint(place.folder / "real", ["c.png"], seed=1)
    assert place.index("add", "crops").document["added"] == 1
    assert place.gallery.is_symlink()
    assert set(place.rows("real.lance")) == {str(place.folder / "real" / name) for name in ("a.png", "b.png", "c.png")}


def test_no_gallery_is_made_where_a_link_leads(place):
    galleries.paint(place.folder / "crops", ["a.png"])
    place.gallery.symlink_to(place.folder / "elsewhere.lance")
    refused = place.index("add", "crops")
    assert refused.returncode == 2
    assert "There is something else in the gallery's place\n  gallery.lance" in refused.stderr
    assert not (place.folder / "elsewhere.lance").exists()


CELLS = {
    "note": ['=HYPERLINK("http://x","y")', "+1", "@SUM(A1)", "-2", "line\nbreak", "\x1b[31mred", "'; DROP TABLE t; --"],
    "a b": ["x"] * 7,
    "select": ["y"] * 7,
    'quo"te': ["z"] * 7,
}


def test_cells_of_a_table_are_data(place):
    names = [f"{number}.png" for number in range(7)]
    galleries.paint(place.folder / "crops", names)
    with (place.folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", *CELLS])
        table.writerows(zip(names, *CELLS.values()))
        table.writerow(["../../etc/passwd", *["none"] * len(CELLS)])
    assert place.index("add", "crops", "--metadata", "table.csv").document["added"] == 7
    notes = {Path(path).name: row["note"] for path, row in place.rows().items()}
    assert notes == dict(zip(names, CELLS["note"]))
    found = place.query("a red coat", "--json", "--csv", "hits.csv", "--where", "note like '%DROP TABLE%'").document
    (hit,) = found["results"][0]["hits"]
    assert hit["columns"]["note"] == CELLS["note"][-1]
    written = place.query("a red coat", "--csv", "-").stdout
    for row in csv.DictReader(io.StringIO(written, newline="")):
        assert not row["note"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert "\x1b" not in place.query("a red coat").stdout


@pytest.mark.parametrize("name", ["Vector", "_rowid", "camera"])
def test_a_column_cannot_take_the_name_of_ours(place, name):
    galleries.paint(place.folder / "crops", ["a.png"])
    (place.folder / "table.csv").write_text(f"file,{name}\na.png,x\n")
    refused = place.index("add", "crops", "--metadata", "table.csv")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"The column {name!r} cannot be added" in refused.stderr
    assert not place.gallery.exists()

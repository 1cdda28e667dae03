"""A gallery whose writers are killed: what was committed is there, and the same command brings the rest."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import galleries
import numpy as np
import pytest
from galleries import BATCH, EMBED, INDEX_FROM, NAMES, PUT, REMOVE, Moment, Workplace, same_rows

from tiprctl.gallery.filling.origins import recall
from tiprctl.gallery.searching import finding

CAMERAS = ("--camera-from", "{camera}/*")
KILLED_ADDS = {
    "creating": (Moment("os:rename"), 0),
    "before its first commit": (Moment(PUT), 0),
    "embedding": (Moment(EMBED, 3), 2),
    "between batches": (Moment(PUT, 2, after=True), 2),
    "writing data": (Moment(PUT, 3, file_in="data"), 2),
    "writing the transaction": (Moment(PUT, 3, file_in="_transactions"), 2),
    "writing the version": (Moment(PUT, 3, file_in="_versions"), 2),
    "finishing": (Moment("tiprctl.gallery.filling.bringing:remember", 2), 5),
}
"""The moment, and how many batches were committed before for certain."""


KILLED_SYNCS = {
    "embedding": Moment(EMBED),
    "between embedding and dropping": Moment("tiprctl.gallery.filling.adding:still_gone"),
    "dropping": Moment(REMOVE, 2, file_in="_transactions"),
    "finishing": Moment(REMOVE, 2, after=True),
}

KILLED_OPTIMISES = {
    "joining files": Moment("tiprctl.gallery.keeping.upkeep:compact", file_in="data"),
    "between joining and indexing": Moment("tiprctl.gallery.keeping.upkeep:index_scalars"),
    "indexing columns": Moment("tiprctl.gallery.keeping.upkeep:index_scalars", file_in="_indices"),
    "indexing vectors": Moment("tiprctl.gallery.searching.optimising:build", file_in="_indices"),
    "before calibrating": Moment("tiprctl.gallery.searching.optimising:calibrate"),
    "before removing versions": Moment("tiprctl.gallery.keeping.upkeep:forget_old_versions"),
    "removing versions": Moment(
        "tiprctl.gallery.keeping.upkeep:forget_old_versions", file_in="_versions", forgets=True
    ),
}


@pytest.fixture
def place(archive, tmp_path) -> Workplace:
    """A folder of its own beside the same crops, without a gallery."""
    (tmp_path / "model").symlink_to(archive.folder / "model")
    return Workplace(tmp_path)


@pytest.fixture
def changed(archive, tmp_path) -> Workplace:
    """A gallery of crops of its own, of which some are deleted then, others painted anew, and others new."""
    place = Workplace(tmp_path)
    shutil.copytree(archive.folder / "model", tmp_path / "model")
    shutil.copytree(archive.folder / "crops", tmp_path / "crops")
    place.index("add", "crops", *CAMERAS)
    for name in NAMES[: 2 * BATCH]:
        (tmp_path / "crops" / name).unlink()
    new = [f"cam_c/{number}.png" for number in range(BATCH)]
    galleries.paint(tmp_path / "crops", [*NAMES[-BATCH:], *new], seed=1)
    return place


def unfinished(place: Workplace) -> list[str]:
    """What the gallery says is not at its end."""
    return [one.unfinished for one in recall(place.store().settings()).values() if one.unfinished]


@pytest.mark.parametrize("name", KILLED_ADDS)
def test_an_add_that_is_killed_goes_on_where_it_stopped(archive, place, name):
    moment, batches = KILLED_ADDS[name]
    crops = str(archive.folder / "crops")
    assert place.index("add", crops, at=moment).returncode == -signal.SIGKILL
    committed = place.rows() if place.gallery.exists() else {}
    assert len(committed) >= batches * BATCH
    assert committed.keys() <= archive.rows().keys()
    again = place.index("add", crops).document
    assert (again["unchanged"], again["added"]) == (len(committed), len(NAMES) - len(committed))
    same_rows(place.rows(), archive.rows())
    assert unfinished(place) == []


@pytest.mark.parametrize("name", KILLED_SYNCS)
def test_a_sync_that_is_killed_goes_on_where_it_stopped(changed, name):
    rows = changed.rows()
    assert changed.index("sync", "crops", at=KILLED_SYNCS[name]).returncode == -signal.SIGKILL
    kept = changed.rows()
    untouched = [str(changed.folder / "crops" / one) for one in NAMES[2 * BATCH : -BATCH]]
    assert {path: kept[path] for path in untouched} == {path: rows[path] for path in untouched}
    assert changed.index("sync", "crops").returncode == 0
    whole = changed.run("index", "add", "crops", *CAMERAS, "--gallery", "whole.lance", "--model", "model")
    assert whole.returncode == 0
    same_rows(changed.rows(), changed.rows("whole.lance"))
    assert unfinished(changed) == []


@pytest.mark.parametrize("name", KILLED_OPTIMISES)
def test_an_optimise_that_is_killed_costs_no_row_and_is_begun_anew(many, tmp_path, monkeypatch, name):
    monkeypatch.setattr(finding, "EXACT_ROWS", INDEX_FROM)
    monkeypatch.setattr(finding, "_DEEPEST", 1.0)  # else the answer is too large a part of so few rows for the index
    place = Workplace(tmp_path)
    shutil.copytree(many.folder, tmp_path, dirs_exist_ok=True)
    moment = replace(KILLED_OPTIMISES[name], indexed=True)
    assert place.index("optimise", at=moment).returncode == -signal.SIGKILL
    for again in (False, True):
        if again:
            done = place.index("optimise", at=Moment(indexed=True)).document
            assert done["index"] in ("built", "extended")
        assert place.rows() == many.rows()
        assert galleries.recall(place.store(), many.rows()) > 0.8
    query = np.full((1, galleries.WIDTH), galleries.WIDTH**-0.5, np.float32)
    assert not finding.find(place.store(), query, 1)[0].exact

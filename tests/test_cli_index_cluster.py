"""`tiprctl index add --engine ray`: what it does around the cluster's job, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from colours import MeanColour, paint
from typer.testing import CliRunner

from tiprctl import vector_model
from tiprctl.cli.app import app
from tiprctl.gallery.filling.adding import Changes
from tiprctl.gallery.filling.listing import ImageFile, Unreadable

ADD = ("index", "add", "--gallery", "g.lance", "--engine", "ray")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with a crop and a link out of it, and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vector_model, "load_vector_model", lambda source, **further: MeanColour())
    paint(Path("crops/a.png"))
    paint(Path("private/b.png"))
    Path("crops/link").symlink_to(tmp_path / "private")


def test_what_was_skipped_while_listing_and_while_reading_is_told(home, monkeypatch):
    changes = Changes(images=1, unreadable=[Unreadable("a.png", "It was deleted")])
    monkeypatch.setattr("tiprctl.gallery.cluster.adding.add_with_ray", lambda *arguments, **further: changes)
    done = CliRunner().invoke(app, [*ADD, "crops", "--json"])
    assert done.exit_code == 0, done.output
    assert [each["path"] for each in json.loads(done.stdout)["skipped"]] == ["link", "a.png"]


def test_patterns_that_do_not_match_are_told_before_anything_is_embedded(home, monkeypatch):
    embedded = []
    monkeypatch.setattr(
        "tiprctl.gallery.cluster.adding.add_with_ray",
        lambda *arguments, **further: embedded.append(1) or Changes(images=2),
    )
    done = CliRunner().invoke(app, [*ADD, "crops", "--camera-from", "x{camera}/*"])
    assert done.exit_code == 2 and "does not match" in done.stderr and "--camera-from" in done.stderr
    assert not embedded and not Path("g.lance").exists()
    paint(Path("crops/cam_a/b.png"))
    done = CliRunner().invoke(app, [*ADD, "crops", "--camera-from", "cam_{camera}/*"])
    assert done.exit_code == 0 and "a.png, one of 2: its camera is null" in done.stderr
    assert embedded


def test_patterns_are_compared_with_the_first_objects_of_a_store(home, monkeypatch):
    taken = []
    objects = [ImageFile(f"cam_a/{number}.png", 1, 1) for number in range(3)]
    monkeypatch.setattr("tiprctl.cli.index_cluster._FIRST", 2)
    monkeypatch.setattr("tiprctl.gallery.cluster.sources.list_objects", lambda uri: iter(objects))
    monkeypatch.setattr(
        "tiprctl.gallery.cluster.adding.add_with_ray",
        lambda store, root, images, *arguments, **further: taken.extend(images) or Changes(images=3),
    )
    done = CliRunner().invoke(app, [*ADD, "s3://b/crops", "--camera-from", "x{camera}/*"])
    assert done.exit_code == 2 and "s3://b/crops/cam_a/0.png nor 1 others of 2" in done.stderr
    assert not taken and not Path("g.lance").exists()
    done = CliRunner().invoke(app, [*ADD, "s3://b/crops", "--camera-from", "cam_{camera}/*"])
    assert done.exit_code == 0 and taken == objects


def test_a_pattern_that_matches_nothing_of_a_new_folder_is_refused_by_a_gallery_of_others(home, monkeypatch):
    monkeypatch.setattr("tiprctl.gallery.cluster.adding.add_with_ray", lambda *arguments, **further: Changes(images=1))
    assert CliRunner().invoke(app, ["index", "add", "--gallery", "g.lance", "private"]).exit_code == 0
    done = CliRunner().invoke(app, [*ADD, "crops", "--camera-from", "x{camera}/*"])
    assert done.exit_code == 2 and "does not match" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "where", "what"),
    [
        (["crops", "--workers", "2"], "--workers", "shares out the cores"),
        (["s3://bucket/crops", "--follow-links"], "s3://bucket/crops", "has no links"),
        (["s3://bucket/crops", "--no-follow-links"], "s3://bucket/crops", "has no links"),
    ],
)
def test_options_that_tell_a_cluster_nothing_are_refused(home, arguments, where, what):
    done = CliRunner().invoke(app, [*ADD, *arguments])
    assert done.exit_code == 2
    assert what in done.stderr and where in done.stderr
    assert not Path("g.lance").exists()

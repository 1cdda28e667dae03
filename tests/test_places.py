"""Local paths and URIs, told apart and followed upwards."""

from __future__ import annotations

import pytest

from tiprctl.gallery.keeping.places import absolute, is_remote, parents


@pytest.mark.parametrize(
    ("place", "remote"), [("/a/b", False), ("a:b", False), ("s3://bucket/a", True), ("memory://x", True)]
)
def test_a_uri_is_remote(place, remote):
    assert is_remote(place) is remote


@pytest.mark.parametrize(
    ("place", "above"),
    [
        ("/a/b/c.png", ["/a/b", "/a", "/"]),
        ("s3://bucket/a/b", ["s3://bucket/a", "s3://bucket"]),
        ("s3://bucket", []),
    ],
)
def test_the_folders_above_a_place(place, above):
    assert list(parents(place)) == above


def test_what_is_there_is_named_absolutely_and_a_tag_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    assert absolute("run") == absolute("link") == str(tmp_path.resolve() / "run")
    assert absolute("openai/ViT-B-16") == "openai/ViT-B-16"
    assert absolute("s3://bucket/run") == "s3://bucket/run"

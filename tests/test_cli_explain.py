"""`tiprctl explain`: its good output, its JSON, its bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import restoring
from PIL import Image
from typer.testing import CliRunner

from tiprctl.cli.app import app
from tiprctl.config import ObjectiveConfig

TEXT = "a woman in a red coat"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return restoring.checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors")


@pytest.fixture(autouse=True)
def crop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return restoring.crop(tmp_path / "crop.png")


def run(*arguments: object):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_the_picture_is_written_and_the_errors_shown(model, tmp_path):
    result = run("--run", model, "--image", "crop.png", "--text", TEXT, "--versus", "a man")
    assert result.exit_code == 0, result.output
    assert "6 of 8 patches hidden" in result.stdout
    assert [name in result.stdout for name in (TEXT, "a man", "(no text)")] == [True] * 3
    assert "Picture: explanation.png" in result.stderr
    assert f"Model: {model} (epoch 3)" in result.stderr
    with Image.open(tmp_path / "explanation.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1000


def test_json_is_one_document(model):
    arguments = ("--run", model, "--image", "crop.png", "--text", TEXT, "--json", "--output", "new/a.png")
    document = json.loads(run(*arguments, "--seed", 4).stdout)
    assert (document["patches"], document["hidden"], document["seed"]) == (8, 6, 4)
    assert document["picture"] == "new/a.png"
    assert [one["text"] for one in document["restored"]] == [TEXT, ""]
    assert [one["word"] for one in document["words"]] == TEXT.split()
    assert np.shape(document["words"][0]["weights"]) == (4, 2)
    assert json.loads(run(*arguments, "--seed", 4).stdout) == document
    assert json.loads(run(*arguments, "--seed", 5).stdout)["restored"] != document["restored"]


def test_a_long_description_is_cut_with_a_warning(model):
    result = run("--run", model, "--image", "crop.png", "--text", "red " * 80)
    assert result.exit_code == 0, result.output
    assert "The sentence is cut after 75 of its 80 tokens" in result.stderr


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"--image": "none.jpg"}, 3, "There is no such image file"),
        ({"--image": "notes.txt"}, 3, "not an image of a known format"),
        ({"--text": "  "}, 2, "The description is empty\n  --text"),
        ({"--versus": ""}, 2, "The description is empty\n  --versus"),
        ({"--run": "runs/none"}, 3, "There is no such run, checkpoint or pretrained CLIP\n  runs/none"),
        ({"--run": "ViT-B-16/openai"}, 2, "No restoration can be read from this model"),
        ({"--run": "sdm.safetensors"}, 2, "tiprctl train --aux tir"),
        ({"--run": None}, 2, "There is no finished run to use"),
        ({"--output": "a.jpg"}, 2, "The picture is a PNG file"),
        ({"--output": "crop.png"}, 2, "The picture would replace the image"),
        ({"--output": "notes.txt/a.png"}, 3, "Cannot write"),
        ({"--device": "abacus"}, 2, "cannot be used"),
        ({"--text": None}, 2, "Missing option '--text'"),
    ],
)
def test_bad_input(model, tmp_path, changed, code, said):
    (tmp_path / "notes.txt").write_text("no picture")
    restoring.checkpoint(tmp_path / "sdm.safetensors", ObjectiveConfig(name="sdm"))
    options = {"--run": model, "--image": "crop.png", "--text": TEXT, **changed}
    result = run(*(part for option, value in options.items() if value is not None for part in (option, value)))
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "explanation.png").exists()

"""A gallery's own model, where none is named: the same for all commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from colours import MeanColour, paint
from typer.testing import CliRunner

from tiprctl import vector_model
from tiprctl.cli.app import app
from tiprctl.errors import InputError

COMMANDS = {
    "add": ["index", "add", "crops", "--gallery", "g.lance"],
    "sync": ["index", "sync", "crops", "--gallery", "g.lance"],
    "query": ["query", "red", "--gallery", "g.lance"],
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The models that there are, by their names; None is the newest finished run. The gallery has that of `runs/mean`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIPRCTL_CACHE", str(tmp_path / "cache"))
    found = {"runs/mean": MeanColour()}

    def load(source, **_):
        if source not in found:
            raise InputError("There is no such run", where=source)
        return found[source]

    monkeypatch.setattr(vector_model, "load_vector_model", load)
    monkeypatch.setattr("tiprctl.runs.latest_run", lambda: "a run" if None in found else None)
    # What warns of long sentences asks for it.
    monkeypatch.setattr(MeanColour, "tokenizer", None, raising=False)
    monkeypatch.setattr("tiprctl.cli.query.warn_of_long", lambda texts, tokenizer: None)
    paint(Path("crops/a.png"))
    run(["index", "add", "crops", "--gallery", "g.lance", "--model", "runs/mean"])
    del found["runs/mean"]
    return found


def run(arguments, code=0):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_model_that_was_moved_is_the_newest_run_if_that_is_it(models, arguments):
    models[None] = MeanColour()
    assert "Model: mean colours" in run(arguments).stderr


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("name", ["none", None, "runs/mean"])
def test_any_other_is_refused(models, arguments, name):
    models[name] = MeanColour("another")
    done = run(arguments, code=2)
    assert "is no longer there, or has changed: mean colours" in done.stderr
    assert "--model" in done.stderr


def test_the_index_is_calibrated_by_it(models):
    models[None] = MeanColour()
    assert "not measured" not in run(["index", "optimise", "--gallery", "g.lance"]).stderr
    models[None] = MeanColour("another")
    done = run(["index", "optimise", "--gallery", "g.lance"])
    assert "The recall for sentences is not measured: The model that the gallery" in done.stderr

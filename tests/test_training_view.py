"""What a training shows: rows that fit a terminal, whatever it is trained by."""

from pathlib import Path

import pytest
import tiny

from tiprctl.cli import training_view
from tiprctl.cli.training_view import ContenderView, TrainingView, _cell
from tiprctl.evaluation import Evaluation
from tiprctl.metrics import RetrievalMetrics
from tiprctl.objectives.composition import loss_names
from tiprctl.progress import EpochRecord
from tiprctl.recipes import find_recipe

SEN = find_recipe("sen", "synth-pedes").objectives
MANY = tiny.objectives("itc", "sdm", "id", "mlm", "tir", "triplet", "mgf", "cfr", "fcd")


@pytest.fixture(autouse=True)
def no_board(monkeypatch):
    monkeypatch.setattr(training_view, "find_spec", lambda name: None)


def shown(view, objectives, capsys):
    """What two epochs of a training print, line by line."""
    metrics = RetrievalMetrics({1: 100.0, 5: 100.0, 10: 100.0}, 87.654, 81.2, 400, 0)
    evaluation = Evaluation("test", 200, 400, metrics, metrics)
    losses = dict.fromkeys(loss_names(objectives), 0.012345) | {"sdm/figure": 1.0}
    with view:
        view.on_start(config=tiny.recipe(objectives=objectives), folder=Path(), epochs=60, steps=60, done=0)
        for epoch in (59, 60):
            view.on_epoch(EpochRecord(epoch, losses, 9.8765e-06, 12345.6, evaluation, best=epoch == 59))
    return capsys.readouterr().err.splitlines()


def test_a_row_has_all_losses_where_there_is_room(capsys):
    header, first, second = shown(TrainingView(), SEN, capsys)
    losses = ["itc", "sdm", "id", "tir", "triplet"]
    assert header.split() == ["epoch", *losses, "lr", "pairs/s", "test", "R@1", "test", "mAP"]
    assert first.split() == ["59/60", *["0.0123"] * 5, "9.88e-06", "12346", "100", "87.65", "best"]
    assert second.split() == ["60/60", *first.split()[1:-1]]
    assert max(map(len, (header, first))) <= 100
    for heading, cell in (("triplet", "0.0123"), ("test R@1", "100"), ("test mAP", "87.65")):
        end = header.index(heading) + len(heading)
        assert first[:end].endswith(f" {cell}")


@pytest.mark.parametrize("view", [TrainingView(), ContenderView(())])
def test_losses_without_room_are_left_to_the_file_and_named(view, capsys):
    header, note, first, _ = shown(view, MANY, capsys)
    assert max(map(len, (header, first))) <= 100
    assert header.split()[1:7] == ["itc", "sdm", "id", "mlm", "tir", "lr"]
    assert note == "There is no room for triplet, mgf, cfr+fcd: see metrics.jsonl in the run's folder."
    assert first.split()[-2:] == ["87.65", "best"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0.0000"), (-0.01234, "-0.0123"), (0.1234567, "0.1235"), (45.678, "45.68"), (1234.5, "1234"), ("", "")],
)
def test_numbers_are_short(value, expected):
    assert _cell("sdm", value) == expected

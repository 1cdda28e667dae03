"""The benchmarks judge their figures, and the short form of drawing runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_goals_of_ranking(benchmarks):
    from ranking import shortfalls

    assert shortfalls(5, 1_000_000_000) == []
    assert shortfalls(4.94, 0) == ["tiprctl is 4.9 times as fast as argsort, less than 5"]
    assert shortfalls(9, 1_200_000_000) == ["tiprctl takes 1,200 MB beside the features, more than 1,000 MB"]
    assert len(shortfalls(1, 2_000_000_000)) == 2


def test_goal_of_drawing(benchmarks):
    from drawing import shortfalls

    assert shortfalls(300) == []
    assert shortfalls(212.3) == ["212 images a second are fewer than 300"]


def test_a_missed_goal_fails_where_goals_are_enforced(benchmarks, capsys):
    from _report import verdict

    assert verdict(["too slow"], enforced=True) == 1
    assert verdict(["too slow"], enforced=False) == 0
    assert verdict([], enforced=True) == 0
    captured = capsys.readouterr()
    assert captured.out == ""


def test_drawing_reports_its_rate():
    command = [sys.executable, BENCHMARKS / "drawing.py", "--ids", "1", "--repeat", "1", "--workers", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    document = json.loads(done.stdout)
    assert document["images"] == 4
    assert document["images_per_second"] == pytest.approx(4 / document["seconds"])
    assert document["ratio"] == pytest.approx(document["images_per_second"] / 300)
    assert done.returncode == (document["images_per_second"] < 300)

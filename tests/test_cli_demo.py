import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from tiprctl.cli.app import app


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """The commands that the demo runs, instead of running them; `steps.fails_at` names one that fails."""

    class Steps(list):
        fails_at, code = "", 0

    taken = Steps()

    class Recorded:
        def __init__(self, command):
            self.command = command
            taken.append(command[3:])

        def wait(self):
            return taken.code if self.command[3] == taken.fails_at else 0

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return taken


def test_the_demo_goes_the_whole_way_and_shows_each_step_as_a_user_would_type_it(steps, tmp_path):
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0
    assert [step[0] for step in steps] == ["prepare", "train", "eval", "query", "query", "query", "query"]
    shown = [line for line in result.stderr.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line)[2:] for line in shown] == steps
    assert (tmp_path / "demo" / "queries.txt").read_text().splitlines()[0] == "woman in red coat"
    assert "demo/sheet.png" in result.stderr


def test_each_step_is_a_command_that_the_program_understands(steps, monkeypatch):
    CliRunner().invoke(app, ["demo"])
    monkeypatch.undo()
    for step in list(steps):
        result = CliRunner().invoke(app, [*step, "--no-such-option"])
        assert "No such option: --no-such-option" in result.stderr


def test_a_step_that_fails_ends_the_demo_and_is_named(steps):
    steps.fails_at, steps.code = "train", 3
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 3
    assert len(steps) == 2
    assert "tiprctl train synth-pedes" in result.stderr
    assert "exit code 3" in result.stderr


def test_ctrl_c_leaves_a_step_the_time_to_save(tmp_path, monkeypatch):
    slow = (
        "import pathlib, signal, time\n"
        "def save(*_): time.sleep(1); pathlib.Path('saved').touch(); raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, save); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    demo = (
        "import subprocess, sys; from tiprctl.cli.app import app\n"
        "popen = subprocess.Popen\n"
        f"subprocess.Popen = lambda command: popen([sys.executable, '-c', {slow!r}])\n"
        "app(['demo'])"
    )
    process = subprocess.Popen([sys.executable, "-c", demo], cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert (tmp_path / "saved").exists()


def test_ctrl_c_in_a_step_interrupts_the_demo(steps):
    steps.fails_at, steps.code = "prepare", 130
    assert CliRunner().invoke(app, ["demo"]).exit_code == 130

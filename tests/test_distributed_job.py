"""Jobs of two gloo processes that torchrun starts for real: training, evaluation, and all the ways they may end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from console import run

from tiprctl.checkpoint import load_encoder

MINIATURE = ["--model", "tiny", "--pretrained", "none", "--recipe", "synth", "--epochs", "2", "--batch-size", "4"]
TRAIN = ["train", *MINIATURE, "--set", "model.image_size=[16,8]", "--device", "cpu"]
STEPS = 4
"""Steps of an epoch of the miniature."""

SIGNALLED = """
import os, signal, sys
from tiprctl.cli import main
from tiprctl.job import place
from tiprctl.training import Trainer

name, process, before = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
step, steps = Trainer._step, []

def signalled(*given):
    steps.append(given)
    if place().process == process and len(steps) == before:
        os.kill(os.getppid() if name == "SIGINT" else os.getpid(), signal.Signals[name])
    return step(*given)

Trainer._step = signalled
main()
"""
"""The program, but before a step of the given number a process kills itself, or torchrun is interrupted."""


@pytest.fixture(scope="module")
def folder(shared_manifest) -> Path:
    """A working folder with the miniature CUHK-PEDES under ./data, and a run of one process."""
    home = shared_manifest.root.parent
    (home / "data").mkdir()
    shared_manifest.root.rename(home / "data" / "CUHK-PEDES")
    (home / "signalled.py").write_text(SIGNALLED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run(*TRAIN, "--output", "runs/one")
    return home


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)


def job(*arguments: str, script: tuple[str, ...] = ("-m", "tiprctl")) -> subprocess.CompletedProcess[str]:
    """What two processes print; torchrun's own reports, which go to stderr as well, name its package."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)


def signalled(name: str, *arguments: str, process: int = 0, before: int) -> subprocess.CompletedProcess[str]:
    return job(*arguments, script=("signalled.py", name, str(process), str(before)))


def losses(folder: str) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def assert_same_training(folder: str) -> None:
    """It came to the losses of one process that nothing stopped, and to its figures."""
    expected, found = losses("runs/one"), losses(folder)
    assert len(found) == len(expected) == 2
    for one, two in zip(expected, found):
        assert two == pytest.approx(one, rel=1e-4)
    results = [json.loads(Path(each, "result.json").read_text()) for each in ("runs/one", folder)]
    assert results[0]["evaluation"] == results[1]["evaluation"]


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The errors that the processes told, without torchrun's."""
    return re.findall(r"^(?:error|unexpected fault).*", done.stderr, re.MULTILINE)


def test_two_processes_train_as_one_does_and_speak_with_one_voice():
    done = job(*TRAIN, "--output", "runs/two")
    assert done.returncode == 0, done.stderr
    assert_same_training("runs/two")
    assert done.stdout == "runs/two\n"
    assert len(re.findall("^ +[12]/2 ", done.stderr, re.MULTILINE)) == 2
    assert "Warning" not in done.stderr
    assert done.stderr.count("Trained in") == done.stderr.count("recipe synth") == 1
    assert {file.name for file in Path("runs/two").iterdir()} == {file.name for file in Path("runs/one").iterdir()}
    assert Path("runs/latest").resolve().name == "two"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_and_evaluate_as_one_process_does():
    without_device = TRAIN[: TRAIN.index("--device")]
    done = job(*without_device, "--set", "amp=off", "--output", "runs/gpus")
    assert done.returncode == 0, done.stderr
    for one, two in zip(losses("runs/one"), losses("runs/gpus"), strict=True):
        assert two == pytest.approx(one, rel=1e-2)
    assert job("eval", "runs/gpus", "--json").returncode == 0


def test_eval_in_two_processes_gives_the_figures_of_one():
    done = job("eval", "runs/one", "--device", "cpu", "--json", "--save-ranks", "ranks.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(run("eval", "runs/one", "--device", "cpu", "--json").stdout)
    assert len(Path("ranks.jsonl").read_text().splitlines()) == 8


def test_ctrl_c_stops_both_after_one_step_and_one_process_goes_on():
    done = signalled("SIGINT", *TRAIN, "--output", "runs/stopped", before=STEPS + 2)
    assert done.stdout == ""
    assert done.stderr.count("Stopped and saved. Go on with: tiprctl train --resume runs/stopped") == 1
    assert told(done) == []
    assert len(losses("runs/stopped")) == 1
    run("train", "--resume", "runs/stopped", "--device", "cpu")
    assert_same_training("runs/stopped")


@pytest.mark.parametrize("process", [0, 1])
def test_a_killed_process_ends_the_job_with_one_message_and_two_go_on(process):
    folder = f"runs/killed{process}"
    done = signalled("SIGKILL", *TRAIN, "--output", folder, process=process, before=STEPS + 2)
    assert done.returncode == 1
    assert len(told(done)) == 1, done.stderr
    assert "The job was cut short: one of its processes was killed" in told(done)[0]
    assert f"tiprctl train --resume {folder}" in done.stderr
    assert len(losses(folder)) == 1
    assert not list(Path(folder).glob(".*"))
    load_encoder(Path(folder, "last.safetensors"))
    if process == 1:
        assert job("train", "--resume", folder, "--device", "cpu").returncode == 0
        assert_same_training(folder)


def test_what_only_the_second_process_meets_is_told_by_it(folder):
    image = folder / "data/CUHK-PEDES/imgs/cam_a/013_1.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    try:
        done = job("eval", "runs/one", "--device", "cpu")
    finally:
        image.write_bytes(whole)
    assert done.returncode == 1
    assert len(told(done)) == 1, done.stderr
    assert "013_1.jpg" in done.stderr.split(told(done)[0])[1].splitlines()[1]
    assert done.stdout == ""


def test_a_batch_that_cannot_be_shared_is_refused_once_with_the_sizes_that_can():
    done = job(*TRAIN, "--batch-size", "7", "--output", "runs/odd")
    assert told(done) == ["error: A batch of 7 cannot be shared among 2 processes"]
    assert "Choose 6 or 8" in done.stderr
    assert not Path("runs/odd").exists()


def test_other_commands_keep_to_one_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tiprctl.cli.render.tell_once", lambda tell: tell())
    for command in ("ablate", "compare", "demo", "augment"):
        assert "one process, not in 2" in run(command, exit_code=2).stderr

"""Jobs of two gloo processes, where it matters started by torchrun: training, evaluation, and all ways to end."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import tiny
import torch
from console import run
from jobs import Done, Signal, forked, torchrun

from tiprctl.checkpoint import load_encoder
from tiprctl.data.manifest import read_manifest
from tiprctl.errors import InputError
from tiprctl.training import Trainer

MINIATURE = ["--model", "tiny", "--pretrained", "none", "--recipe", "synth", "--epochs", "2", "--batch-size", "4"]
TRAIN = ["train", *MINIATURE, "--amp", "off", "--set", "model.image_size=[16,8]", "--device", "cpu"]
STEPS = 4
"""Steps of an epoch of the miniature."""


@pytest.fixture(scope="module")
def folder(shared_manifest) -> Path:
    """A working folder with the miniature CUHK-PEDES under ./data, and a run of one process."""
    home = shared_manifest.root.parent
    (home / "data").mkdir()
    shared_manifest.root.rename(home / "data" / "CUHK-PEDES")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run(*TRAIN, "--output", "runs/one")
    return home


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)


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


def told(done: Done) -> list[str]:
    """The errors that the processes told, without torchrun's."""
    return re.findall(r"^(?:error|unexpected fault).*", done.stderr, re.MULTILINE)


def test_two_processes_train_as_one_does_and_speak_with_one_voice():
    done = torchrun(*TRAIN, "--output", "runs/two")
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
    done = torchrun(*without_device, "--output", "runs/gpus")
    assert done.returncode == 0, done.stderr
    for one, two in zip(losses("runs/one"), losses("runs/gpus"), strict=True):
        assert two == pytest.approx(one, rel=1e-2)
    assert torchrun("eval", "runs/gpus", "--json").returncode == 0


def test_eval_in_two_processes_gives_the_figures_of_one():
    done = forked("eval", "runs/one", "--device", "cpu", "--json", "--save-ranks", "ranks.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(run("eval", "runs/one", "--device", "cpu", "--json").stdout)
    assert len(Path("ranks.jsonl").read_text().splitlines()) == 8


def test_re_ranking_in_two_processes_gives_the_order_of_one_and_counts_no_image_twice(folder):
    manifest = read_manifest(folder / "data/CUHK-PEDES")
    model = tiny.checkpoint(manifest, folder / "scvd.safetensors", head="division", captions={"tagger": "textblob"})
    command = ("eval", model, "--rerank", "3", "--device", "cpu", "--json", "--save-ranks")
    done = forked(*command, "two.jsonl")
    assert done.returncode == 0, done.stderr
    found, expected = (
        {(row["model"], row["direction"], row.get("rerank")): row for row in json.loads(printed)["results"]}
        for printed in (done.stdout, run(*command, "one.jsonl").stdout)
    )
    for row in (*found.values(), *expected.values()):
        row.get("rerank_cost", {}).pop("seconds", None)
    assert found == expected
    paths = [
        [[hit["path"] for hit in json.loads(line)["hits"]] for line in Path(file).read_text().splitlines()]
        for file in ("one.jsonl", "two.jsonl")
    ]
    assert paths[0] == paths[1]


def test_ctrl_c_stops_both_after_one_step_and_one_process_goes_on():
    done = torchrun(*TRAIN, "--output", "runs/stopped", sent=Signal("SIGINT", before=STEPS + 2))
    assert done.stdout == ""
    command = "torchrun --nproc-per-node 2 -m tiprctl train --resume runs/stopped --device cpu"
    assert done.stderr.count(f"Stopped and saved. Go on with: {command}\n") == 1
    assert told(done) == []
    assert len(losses("runs/stopped")) == 1
    run("train", "--resume", "runs/stopped", "--device", "cpu")
    assert_same_training("runs/stopped")


def test_a_killed_process_ends_the_job_with_one_message():
    done = torchrun(*TRAIN, "--output", "runs/killed", sent=Signal("SIGKILL", process=0, before=STEPS + 2))
    assert done.returncode == 1
    assert_cut_short(done, "runs/killed")


def test_two_processes_go_on_from_what_one_left_and_from_what_two_left(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("os.getppid", os.getpid)
        patch.setattr(Trainer, "take_steps", Trainer.take_steps)
        Signal("SIGINT", before=3).arm()
        run(*TRAIN, "--output", "runs/left", exit_code=130)
    assert not Path("runs/left/metrics.jsonl").exists()
    resume = ("train", "--resume", "runs/left", "--device", "cpu")
    # Without torchrun the other process hears of it by the connection that broke.
    assert_cut_short(forked(*resume, sent=Signal("SIGKILL", process=1, before=STEPS)), "runs/left")
    assert forked(*resume).returncode == 0
    assert_same_training("runs/left")


def assert_cut_short(done: Done, folder: str) -> None:
    """A process was killed in the second epoch, which was told once; the first epoch is whole."""
    assert len(told(done)) == 1, done.stderr
    assert "The job was cut short: one of its processes was killed" in told(done)[0]
    assert f"tiprctl train --resume {folder}" in done.stderr
    assert len(losses(folder)) == 1
    assert not list(Path(folder).glob(".*"))
    load_encoder(Path(folder, "last.safetensors"))


def test_what_only_the_second_process_meets_is_told_by_it(folder):
    image = folder / "data/CUHK-PEDES/imgs/cam_a/013_1.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    try:
        done = forked("eval", "runs/one", "--device", "cpu")
    finally:
        image.write_bytes(whole)
    assert done.returncode == InputError.exit_code
    assert len(told(done)) == 1, done.stderr
    assert "013_1.jpg" in done.stderr.split(told(done)[0])[1].splitlines()[1]
    assert done.stdout == ""


def test_a_batch_that_cannot_be_shared_is_refused_once_with_the_sizes_that_can():
    done = forked(*TRAIN, "--batch-size", "7", "--output", "runs/odd")
    assert told(done) == ["error: A batch of 7 cannot be shared among 2 processes"]
    assert "Choose 6 or 8" in done.stderr
    assert not Path("runs/odd").exists()


def test_other_commands_keep_to_one_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tiprctl.cli.render.tell_once", lambda tell: tell())
    for command in ("ablate", "compare", "demo", "augment"):
        assert "one process, not in 2" in run(command, exit_code=2).stderr

"""`tiprctl train` and `tiprctl eval` as users meet them, on a miniature data set."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from console import run

from tiprctl.checkpoint import load_encoder
from tiprctl.data.manifest import Manifest, write_manifest

MINIATURE = ["--model", "tiny", "--pretrained", "none", "--recipe", "synth", "--epochs", "1", "--batch-size", "4"]


@pytest.fixture
def trained(home):
    run("train", *MINIATURE, "--output", "runs/a")
    return home / "runs" / "a"


def test_train_needs_no_name_when_one_data_set_is_prepared(home):
    result = run("train", *MINIATURE)
    folder = Path(result.stdout.strip())
    assert folder.name.startswith("cuhk-pedes-synth-")
    assert (folder / "best.safetensors").is_file()
    assert (home / "runs" / "latest").resolve() == folder.resolve()
    assert "best on val" in result.stderr
    assert f"tiprctl eval {folder}" in result.stderr


def test_train_shows_a_row_an_epoch_with_its_objectives(home):
    result = run("train", "cuhk-pedes", *MINIATURE, "--losses", "sdm,id", "--aux", "triplet", "--epochs", "2")
    header, first, second = [line.split() for line in result.stderr.splitlines() if "epoch" in line or "/2" in line][:3]
    assert " ".join(header) == "epoch sdm id triplet lr pairs/s val R@1 val mAP"
    assert (first[0], second[0]) == ("1/2", "2/2")
    assert float(first[1]) > 0
    assert 0 <= float(first[6]) <= 100


def test_objectives_that_are_added_bring_their_head_and_the_features_its_width(home):
    run("train", *MINIATURE, "--aux", "mgf,cfr,fcd", "--set", "parts.image_ratio=0.25", "--output", "runs/a")
    config = json.loads(Path("runs/a/run.json").read_text())["config"]
    assert (config["model"]["head"], config["model"]["head_options"]["image_ratio"]) == ("parts", 0.25)
    assert {"mgf": 1.0, "cfr": 10.0, "fcd": 10.0}.items() <= {
        each["name"]: each["weight"] for each in config["objectives"]
    }.items()
    encoder, _ = load_encoder(Path("runs/a/best.safetensors"))
    assert encoder.head.width == 3 * encoder.clip.config.embed_dim
    assert json.loads(run("eval", "runs/a", "--json").stdout)["results"][0]["queries"] == 8


def test_a_head_that_an_objective_cannot_train_is_named_with_the_one_that_it_needs(home):
    asked = ["--aux", "mgf", "--set", "model.head=global"]
    stderr = " ".join(run("train", *MINIATURE, *asked, exit_code=2).stderr.split())
    assert "mgf needs the head parts, but the model has the head global" in stderr
    assert "--set model.head=parts" in stderr


def test_a_checkpoint_without_a_head_of_its_own_starts_one_with_and_not_the_other_way_round(home):
    run("train", *MINIATURE, "--output", "runs/a")
    second = ["--recipe", "synth", "--epochs", "1", "--batch-size", "4", "--losses", "itc"]
    result = run("train", *second, "--aux", "cfr", "--pretrained", "runs/a", "--output", "runs/b")
    assert "warning" not in result.stderr
    stderr = run("train", *second, "--pretrained", "runs/b", exit_code=3).stderr
    assert "has the head parts, not global" in " ".join(stderr.split())
    assert "runs/b/best.safetensors" in stderr


def test_tensorboard_gets_the_figures_where_it_is_installed(home, monkeypatch):
    from tiprctl.cli import training_view

    class Board:
        def __enter__(self):
            return self

        def __exit__(self, *problem):
            written.append("closed")

        def add_scalar(self, name, value, epoch):
            written.append((name, epoch))

    written = []
    monkeypatch.setattr(training_view, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setattr(training_view, "_board", lambda folder: Board())
    run("train", *MINIATURE)
    assert {("itc", 1), ("lr", 1), ("val R@1", 1)} <= set(written)
    assert written[-1] == "closed"


def test_quiet_leaves_only_the_result(home):
    result = run("train", *MINIATURE, "-q")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1


def test_several_data_sets_are_listed(home):
    other = home / "data" / "other"
    other.mkdir()
    row = {"split": ["train"], "pid": [1], "path": ["a.jpg"], "caption": ["a"]}
    write_manifest(Manifest("folder", other, pd.DataFrame(row)))
    result = run("train", *MINIATURE, exit_code=2)
    assert "cuhk-pedes" in result.stderr
    assert "other" in result.stderr


def test_no_data_set_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    assert "tiprctl prepare synth-pedes" in run("train", exit_code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "sen2"], "no recipe named 'sen2'"),
        (["--recipe", "ira"], "Did you mean irra? Choices: irra, "),
        (["--aux", "tri"], "Did you mean tir? Choices: tir, "),
        (["--set", "optim.lrr=1"], "Did you mean lr?"),
        (["--aux", "triplett"], "Did you mean triplet?"),
        (["--losses", "sdm,sdm"], "named twice"),
        (["--aux", "cfr,scvd"], "cfr needs the head parts, and scvd the head division"),
        (["--model", "tinny", "--pretrained", "none", "--batch-size", "4"], "Did you mean tiny?"),
        (["--model", "tiny", "--pretrained", "none", "--batch-size", "400"], "at most 16"),
        (["--lr", "-1"], "optim.lr"),
        (["--device", "tpu9"], "--device"),
        (["--resume", "runs/a", "--epochs", "3"], "keeps its own"),
        (["--select-on", "never"], "never"),
    ],
)
def test_wrong_usage_is_explained(home, arguments, message):
    assert message in run("train", *arguments, exit_code=2).stderr


def test_settings_come_from_flag_then_variable_then_file(home, monkeypatch):
    settings = '["captions.mask_other=0.5", "itc.temperature=1", "captions.mask_content=0.5"]'
    Path("tiprctl.toml").write_text(f"[train]\nepochs = 4\nseed = 5\nbatch_size = 8\nset = {settings}\n")
    monkeypatch.setenv("TIPRCTL_TRAIN_SEED", "6")
    arguments = [word for word in MINIATURE if word not in ("--batch-size", "4")]
    folder = run("train", *arguments).stdout.strip()
    config = json.loads((Path(folder) / "run.json").read_text())["config"]
    assert (config["epochs"], config["seed"], config["batch_size"]) == (1, 6, 8)
    assert (config["captions"]["mask_other"], config["objectives"][0]["options"]) == (0.5, {"temperature": 1})


def test_a_damaged_settings_file_is_named(home):
    Path("tiprctl.toml").write_text("[train\n")
    assert "tiprctl.toml" in run("train", exit_code=2).stderr


def test_ctrl_c_saves_and_tells_how_to_go_on(home):
    script = (
        "import os, signal\n"
        "from tiprctl.cli.app import app\n"
        "from tiprctl.cli.training_view import TrainingView as View\n"
        "step = View.on_step\n"
        "View.on_step = lambda self, n: (step(self, n), os.kill(os.getpid(), signal.SIGINT))\n"
        f"app({['train', *MINIATURE, '--epochs', '2', '--output', 'runs/b']!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "tiprctl train --resume runs/b" in done.stderr
    assert done.stdout == ""
    assert run("train", "--resume", "runs/b").stdout.strip() == "runs/b"
    assert "finished" in run("train", "--resume", "runs/b", exit_code=2).stderr


def test_ctrl_c_in_the_last_evaluation_is_told_beside_the_result(home, monkeypatch):
    from tiprctl import training

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*given)

    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", interrupted)
    result = run("train", *MINIATURE, "--output", "runs/a", exit_code=130)
    assert "Trained in" in result.stderr
    assert result.stdout == "runs/a\n"


def test_a_start_that_is_set_brings_its_size_and_input(home):
    first = run("train", *MINIATURE, "--set", "model.image_size=[32,16]", "--output", "runs/a").stdout.strip()
    second = ["--recipe", "clip", "--epochs", "1", "--batch-size", "4", "--set", f"model.pretrained={first}"]
    run("train", *second, "--output", "runs/b")
    model = json.loads(Path("runs/b/run.json").read_text())["config"]["model"]
    assert (model["name"], model["image_size"]) == ("tiny", [32, 16])
    assert model["pretrained"].startswith("runs/a/")


def test_a_set_with_a_name_of_its_own_is_called_by_it(home):
    (home / "data" / "CUHK-PEDES").rename(home / "data" / "CUHK-PEDES-small")
    result = run("train", *MINIATURE)
    assert result.stdout.startswith("runs/cuhk-pedes-small-synth-")
    assert "cuhk-pedes-small: recipe synth" in result.stderr


def test_settings_meant_for_new_runs_do_not_stop_a_resumed_one(home, monkeypatch):
    monkeypatch.setenv("TIPRCTL_TRAIN_EPOCHS", "7")
    Path("tiprctl.toml").write_text("[train]\nseed = 5\n")
    run("train", *MINIATURE, "--output", "runs/a")
    (home / "runs" / "a" / "result.json").unlink()
    run("train", "--resume", "runs/a")


LEVERS = {"compile": False, "checkpoint_blocks": True, "accumulate": 2, "deterministic": True}


@pytest.fixture
def unfinished(home):
    """A training of one epoch that the result alone is missing of; carried out as in `LEVERS`."""
    flags = ("--checkpoint-blocks", "--accumulate", "2", "--deterministic")
    run("train", *MINIATURE, "--amp", "off", "--output", "runs/a", *flags)
    (home / "runs/a/result.json").unlink()
    return home / "runs/a"


def executions(folder):
    return json.loads((folder / "run.json").read_text())["executions"]


def test_a_resumed_run_is_carried_out_as_before(unfinished, monkeypatch):
    first = executions(unfinished)
    assert len(first) == 1
    assert first[0].items() >= {**LEVERS, "device": "cpu", "precision": "float32", "first_step": 1}.items()
    # Variables and files were meant for new runs.
    monkeypatch.setenv("TIPRCTL_TRAIN_ACCUMULATE", "4")
    Path("tiprctl.toml").write_text("[train]\ncompile = true\n")
    said = run("train", "--resume", "runs/a").stderr
    assert "--deterministic: kernels" in said
    assert "otherwise than so far" not in said
    second = executions(unfinished)
    assert second[:1] == first
    assert second[1] == first[0] | {"first_step": second[1]["first_step"]}
    assert second[1]["first_step"] > 1


def test_a_resumed_run_is_carried_out_as_typed_and_says_what_changed(unfinished):
    said = run("train", "--resume", "runs/a", "--accumulate", "1", "--no-deterministic").stderr
    changed = "The run goes on otherwise than so far: accumulate 1 (was 2), deterministic off (was on)."
    assert changed in said
    assert "--deterministic: kernels" not in said
    last = executions(unfinished)[-1]
    assert last.items() >= {**LEVERS, "accumulate": 1, "deterministic": False}.items()
    (unfinished / "result.json").unlink()
    run("train", "--resume", "runs/a")
    assert executions(unfinished)[-1] == last


def test_a_run_of_an_older_version_is_carried_out_as_typed(unfinished):
    told = json.loads((unfinished / "run.json").read_text())
    del told["executions"]
    (unfinished / "run.json").write_text(json.dumps(told))
    run("train", "--resume", "runs/a", "--checkpoint-blocks")
    assert [each["checkpoint_blocks"] for each in executions(unfinished)] == [True]
    assert executions(unfinished)[0]["accumulate"] == 1


def test_settings_of_a_resumed_run_are_refused_by_their_flags(unfinished):
    refused = run("train", "--resume", "runs/a", "--amp", "bf16", "--batch-size", "8", exit_code=2).stderr
    assert "its own data set and settings" in refused
    assert "--amp, --batch-size" in refused


@pytest.mark.parametrize("lever", ["compile", "checkpoint-blocks", "deterministic"])
def test_a_lever_that_a_file_sets_can_be_undone(home, lever):
    Path("tiprctl.toml").write_text(f"[train]\n{lever} = true\n")
    run("train", *MINIATURE, f"--no-{lever}", "--output", "runs/a")
    assert not executions(home / "runs/a")[0][lever.replace("-", "_")]


def test_the_help_has_the_levers_together_and_no_flag_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    levers = run("train", "--help").stdout.split("Speed and memory")[1]
    for flag in ("compile", "checkpoint-blocks", "deterministic"):
        assert f"--{flag} " in levers
        assert f"--no-{flag} " in levers
    assert "--accumulate " in levers


@pytest.mark.parametrize(
    ("place", "typed", "expected"),
    [
        ({}, (), "tiprctl train --resume"),
        ({}, ("--device", "cpu"), "tiprctl train --resume RUN --device cpu"),
        ({}, ("--device", "cpu", "--root", "my data"), "tiprctl train --resume RUN --root 'my data' --device cpu"),
        ({"processes": 2, "locals": 2}, (), "torchrun --nproc-per-node 2 -m tiprctl train --resume RUN"),
        ({"processes": 8, "locals": 4}, (), "torchrun --nnodes 2 … --nproc-per-node 4 -m tiprctl train --resume RUN"),
    ],
)
def test_the_command_to_go_on_with_has_what_this_one_had(monkeypatch, place, typed, expected):
    import typer

    from tiprctl.cli import train
    from tiprctl.cli.app import app
    from tiprctl.job import Place

    monkeypatch.setattr(train, "place", lambda: Place(**place))
    command = typer.main.get_command(app).get_command(None, "train")
    context = command.make_context("train", list(typed))
    assert train._resuming(context, Path("my runs/a")).startswith(expected.replace("RUN", "'my runs/a'"))


def test_a_job_cut_short_is_started_again_until_there_is_something_to_go_on_with(home, monkeypatch):
    from tiprctl import process_group, training

    jobs, told = [], []

    @contextmanager
    def joined(device, tell):
        with together(device, tell) as job:
            jobs.append(job)
            yield job

    class Watched(training.Trainer):
        def __init__(self, *given, **named):
            told.append(jobs[0].cut_short().remedy)
            super().__init__(*given, **named)

        def take_steps(self):
            told.append(jobs[0].cut_short().remedy)
            return super().take_steps()

    together = process_group.joined
    monkeypatch.setattr(process_group, "joined", joined)
    monkeypatch.setattr(training, "Trainer", Watched)
    run("train", *MINIATURE, "--output", "runs/a")
    assert told == ["Start it again.", "Go on with: tiprctl train --resume runs/a"]


@pytest.mark.parametrize("parts", ["0", "5"])
def test_a_batch_cannot_be_taken_in_more_parts_than_it_has_rows(home, parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiprctl.training", None)
    refused = run("train", *MINIATURE, "--accumulate", parts, exit_code=2).stderr
    assert "--accumulate" in refused
    assert "from 1 to 4" in refused


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_loaded(unfinished, monkeypatch):
    from tiprctl.cli import train
    from tiprctl.job import Place

    monkeypatch.setitem(sys.modules, "tiprctl.training", None)
    monkeypatch.setattr(train, "place", lambda: Place(processes=3, locals=3))
    new = run("train", *MINIATURE, exit_code=2).stderr
    assert "--batch-size" in new
    assert "Choose 3 or 6" in new
    resumed = run("train", "--resume", "runs/a", exit_code=2).stderr
    assert "Resume with 1, 2 or 4 processes." in resumed
    assert "--batch-size" not in resumed


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(home, monkeypatch):
    from tiprctl.cli import train

    class Stopped(train.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2)

    monkeypatch.setattr(train, "datetime", Stopped)
    names = [run("train", *MINIATURE).stdout.strip() for _ in range(2)]
    assert names == ["runs/cuhk-pedes-synth-20260102-000000", "runs/cuhk-pedes-synth-20260102-000000-2"]


def test_a_training_that_does_not_begin_leaves_no_folder(home):
    run("train", *MINIATURE, "--batch-size", "400", exit_code=2)
    assert list((home / "runs").iterdir()) == []


def test_an_output_that_cannot_be_a_folder_is_refused(home):
    (home / "file").touch()
    assert "is a file" in run("train", *MINIATURE, "--output", "file", exit_code=2).stderr
    assert "cannot be made" in run("train", *MINIATURE, "--output", "file/run", exit_code=3).stderr


def test_resume_of_what_is_no_run_is_refused(home):
    assert "run's folder" in run("train", "--resume", "data/CUHK-PEDES/reid_raw.json", exit_code=3).stderr
    assert "no such file" in run("train", "--resume", "data", exit_code=3).stderr


def test_a_folder_that_holds_a_run_is_not_overwritten(trained):
    assert "--resume" in run("train", *MINIATURE, "--output", "runs/a", exit_code=2).stderr


def test_eval_prints_both_directions_with_the_published_rows_beneath(trained):
    result = run("eval", "runs/a")
    assert "cuhk-pedes, test split, percent" in result.stdout
    lines = result.stdout.splitlines()
    own = next(i for i, line in enumerate(lines) if "runs/a" in line)
    published = next(i for i, line in enumerate(lines) if "IRRA" in line)
    assert own < published
    assert "val" in lines[own]
    assert "73.38" in lines[published]
    assert "test" in lines[published]
    assert {"t2i", "i2t"} <= {cell.strip() for line in lines for cell in line.split("│")}


def test_eval_as_json(trained):
    document = json.loads(run("eval", "runs/a", "--json").stdout)
    forward, backward = document["results"]
    assert document["split"] == "test"
    assert (forward["direction"], backward["direction"]) == ("text_to_image", "image_to_text")
    assert (forward["queries"], backward["queries"]) == (8, 4)
    assert forward["selected_on"] == "val"
    assert 0 <= forward["R@1"] <= forward["R@5"] <= forward["R@10"] <= 100
    assert document["published"]["cuhk-pedes"][0]["R@1"] == 73.38


def test_eval_takes_the_latest_run_another_split_and_a_checkpoint_file(trained):
    latest = json.loads(run("eval", "--json", "--split", "val").stdout)["results"][0]
    by_file = json.loads(run("eval", trained / "best.safetensors", "--json", "--split", "val").stdout)["results"][0]
    assert latest["queries"] == 8
    assert {**latest, "model": 0} == {**by_file, "model": 0}
    kept = json.loads((trained / "result.json").read_text())["evaluation"]["text_to_image"]
    assert latest["R@1"] == pytest.approx(kept["recall"]["1"], abs=0.01)
    assert latest["mAP"] == pytest.approx(kept["mean_ap"], abs=0.01)


def test_eval_of_several_runs_adds_mean_and_deviation(trained):
    run("train", *MINIATURE, "--seed", "1", "--output", "runs/b")
    rows = json.loads(run("eval", "runs/a", "runs/b", "--json").stdout)["results"]
    first, second = (row["mAP"] for row in rows[:4] if row["direction"] == "text_to_image")
    summary = next(row for row in rows[4:] if row["direction"] == "text_to_image")
    assert summary["mAP"] == pytest.approx((first + second) / 2, abs=0.01)
    assert summary["std"]["mAP"] == pytest.approx(abs(first - second) / 2**0.5, abs=0.01)
    table = run("eval", "runs/a", "runs/b").stdout
    assert "mean of 2 synth runs" in table
    assert "± standard deviation" in table


def test_eval_saves_the_ranks_of_each_query(trained):
    run("eval", "runs/a", "--save-ranks", "ranks.jsonl")
    lines = [json.loads(line) for line in Path("ranks.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert {"caption", "pid", "hits"} == lines[0].keys()
    scores = [hit["score"] for hit in lines[0]["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert Path(lines[0]["hits"][0]["path"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["runs/a", "--split", "vali"], 3, "train, val, test"),
        (["nowhere"], 3, "no such run"),
        (["runs/a", "--data", "cuhk-peds"], 2, "cuhk-pedes"),
        (["runs/a", "runs/a", "--save-ranks", "x"], 2, "one model"),
    ],
)
def test_eval_explains_bad_input(trained, arguments, exit_code, message):
    assert message in run("eval", *arguments, exit_code=exit_code).stderr


def test_eval_without_a_run_explains_the_two_ways_forward(home):
    stderr = run("eval", exit_code=2).stderr
    assert "tiprctl train" in stderr
    assert "ViT-B-16/openai" in stderr


def test_an_image_that_vanished_is_named(trained):
    gone = next(Path("data/CUHK-PEDES/imgs").rglob("012_0.jpg"))
    gone.unlink()
    told = run("eval", "runs/a", exit_code=3).stderr
    assert "There is no such image file" in told
    assert "012_0.jpg" in told
    assert "prepare the data set again without it: --allow-missing" in told


def test_unexpected_faults_are_one_line_unless_verbose(home, monkeypatch):
    monkeypatch.setattr("tiprctl.data.manifest.find_manifest", lambda *_: 1 / 0)
    short = run("train", exit_code=1).stderr
    assert "ZeroDivisionError" in short
    assert "Traceback" not in short
    assert "Traceback" in run("train", "-v", exit_code=1).stderr


def test_version_help_and_misspelt_commands():
    assert run("--version").stdout.startswith("tiprctl ")
    for command in ("prepare", "train", "eval", "query", "demo"):
        lines = [line.strip() for line in run(command, "-h").stdout.splitlines() if line.strip()]
        assert any(line.startswith(f"tiprctl {command}") for line in lines[1:5])
    assert "train" in run("trian", exit_code=2).stderr

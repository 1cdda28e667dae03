"""`tiprctl ablate` as users meet it, on a miniature data set."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import console
import pytest

from tiprctl.ablation import measuring
from tiprctl.cli.training_view import ContenderView

run = partial(console.run, "ablate")

MINIATURE = [
    *("--recipe", "synth", "--parts", "triplet", "--set", "batch_size=4"),
    *("--start-epochs", "0.25", "--epochs", "0.25"),
]


@pytest.fixture(scope="module", autouse=True)
def few_steps_are_timed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "WARM_UP", 1)
        patch.setattr(measuring, "MEASURED", 2)
        yield


@pytest.fixture(scope="module")
def carried_out(shared_manifest, few_steps_are_timed):
    """A working folder with a data set that has a name of its own, and what its ablation over two seeds printed."""
    data = shared_manifest.root.rename(shared_manifest.root.with_name("CUHK-PEDES-small"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data.parent)
        patch.setenv("TIPRCTL_DATA", str(data.parent))
        return data.parent, run(*MINIATURE, "--seeds", 2)


@pytest.fixture
def printed(carried_out, monkeypatch):
    """What the ablation printed, with its working folder as the current one; nothing is to be changed there."""
    folder, result = carried_out
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TIPRCTL_DATA", str(folder))
    return result


def test_a_table_for_each_budget_with_differences_and_one_of_costs(printed):
    lines = [[cell.strip() for cell in line.split("│")] for line in printed.stdout.splitlines() if "│" in line]
    assert [cells[1] for cells in lines] == ["plain", "triplet"] * 3
    plain, triplet, *_, costs, _ = lines
    assert plain[2] == "0.25"
    assert all(0 <= float(cell) <= 100 for cell in plain[3:6])
    assert plain[6:8] == ["", ""]
    assert all(" ± " in cell and cell[0] in "+-" for cell in triplet[6:8])
    assert (costs[3], costs[4].isdecimal(), costs[5][-2:]) == ("1.00", True, " M"), "no memory: it is not measured"
    titles = [line for line in printed.stdout.splitlines() if line.startswith(("equal ", "costs "))]
    assert [title.strip() for title in titles] == ["equal steps", "equal time", "costs on cpu"]
    assert "the epoch best on val, mean over seeds: 2\n" in printed.stdout
    assert max(map(len, printed.stdout.splitlines())) <= 100
    assert "warning" not in printed.stderr
    assert "8 trainings of" in printed.stderr
    assert "Costs of a step on cpu" in printed.stderr
    assert "8 of 8: seed1/time/triplet" in printed.stderr
    assert "chosen on val" in printed.stderr


def test_a_set_with_a_name_of_its_own_is_called_by_it(printed):
    assert "cuhk-pedes-small, test split" in printed.stdout
    assert [folder.name for folder in Path("runs").iterdir()] == ["cuhk-pedes-small-synth-ablation"]


def test_json_has_a_row_a_run_and_a_second_call_trains_nothing(printed, monkeypatch):
    monkeypatch.setattr("tiprctl.training.Trainer.run", lambda self: pytest.fail("trained again"))
    first = json.loads(run(*MINIATURE, "--seeds", 1, "--json").stdout)
    assert [(row["budget"], row["subset"]) for row in first["runs"]] == [
        ("steps", "plain"),
        ("steps", "triplet"),
        ("time", "triplet"),
    ]
    plain, triplet, _ = first["runs"]
    result = first["results"]["steps"][1]
    assert result["differences"]["R@1"]["mean"] == pytest.approx(triplet["R@1"] - plain["R@1"], abs=0.02)
    assert result["differences"]["R@1"]["error"] is None
    assert first["costs"]["plain"]["ratio"] == 1.0
    assert (first["recipe"], first["parts"], first["device"]) == ("synth", ["triplet"], "cpu")
    assert json.loads(run(*MINIATURE, "--seeds", 1, "--json").stdout) == first
    assert "vs plain" in run(*MINIATURE, "--seeds", 1, "--budget", "steps").stdout


def test_other_settings_for_the_same_folder_are_named(printed):
    result = run(*MINIATURE, "--epochs", "0.5", exit_code=2)
    assert "other settings: --epochs 0.25 there, 0.5 here\n" in result.stderr
    assert "--output" in result.stderr


def test_ctrl_c_saves_and_the_same_command_goes_on(home):
    arguments = [*MINIATURE, "--seeds", "1", "--budget", "steps", "--output", "runs/a"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContenderView, "on_step", lambda self, samples: os.kill(os.getpid(), signal.SIGINT))
        stopped = run(*arguments, exit_code=130)
    assert "Go on with the same command" in stopped.stderr
    assert stopped.stdout == ""
    assert "3 of 3" in run(*arguments).stderr


def test_only_what_is_new_to_the_shared_start_is_no_surprise(capsys):
    view = ContenderView(("tir",))
    view.on_warning("tir starts from random weights", objective="tir")
    view.on_warning("id starts from random weights", objective="id")
    assert capsys.readouterr().err == "warning: id starts from random weights\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--parts", "trplet"], 2, "Did you mean triplet?"),
        (["--parts", "tir,tir"], 2, "named twice"),
        (["--recipe", "sen2"], 2, "no recipe named 'sen2'"),
        (["--seeds", "0"], 2, "--seeds"),
        (["--start-epochs", "0"], 2, "--start-epochs"),
        (["--epochs", "0"], 2, "--epochs"),
        (["--set", "batch_size=400"], 2, "at most 16"),
        (["--parts", "prune"], 3, "tiprctl augment"),
        (["--set", "seed=7"], 2, "Use --seeds"),
        (["--set", "mlm.weight=2"], 2, "Name it in --parts"),
        (["--set", "model.pretrained=nope.pth"], 3, "nope.pth"),
        (["--output", "data"], 2, "something else"),
        (["--root", "nowhere"], 3, "tiprctl prepare"),
        (["--device", "tpu9"], 2, "--device"),
    ],
)
def test_bad_input_is_explained_before_anything_is_trained(home, arguments, exit_code, message):
    assert message in run(*MINIATURE, *arguments, exit_code=exit_code).stderr
    assert not (home / "runs").exists()


def test_help_opens_with_examples():
    lines = [line.strip() for line in run("-h").stdout.splitlines() if line.strip()]
    assert any(line.startswith("tiprctl ablate") for line in lines[1:7])


def test_a_misspelt_part_imports_neither_torch_nor_pandas():
    code = (
        "import sys\n"
        "from tiprctl.cli.app import app\n"
        "try: app(['ablate', '--parts', 'tirr'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

"""The program around the commands: what `tiprctl.toml` and variables may set, and what is said of mistakes in them."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiprctl.cli.app import app


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)


def stderr_of(*arguments: str, code: int) -> str:
    """What a command says, on one line."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "misspelt option": ("[train]\nepocs = 3\n", ["no option named 'epocs'", "Did you mean epochs?", "[train]"]),
        "misspelt command": ("[trian]\nepochs = 3\n", ["no command named 'trian'", "Did you mean train?"]),
        "another command's option": ("[train]\ntop = 3\n", ["no option named 'top'"]),
        "value for a table": ("train = 3\n", ["'train' is no table", "Write [train]"]),
        "value at the top": ("epochs = 3\n", ["no command named 'epochs'"]),
    }.values(),
)
def test_mistakes_in_the_settings_file_are_refused(text, said):
    Path("tiprctl.toml").write_text(text)
    stderr = stderr_of("prepare", "folder", code=2)
    for part in ["tiprctl.toml", *said]:
        assert part in stderr


@pytest.mark.parametrize("key", ["batch-size", "batch_size"])
def test_the_settings_file_spells_options_as_the_flags_or_with_underscores(key):
    Path("tiprctl.toml").write_text(f'[train]\n"{key}" = "four"\n')
    assert "Invalid value for '--batch-size'" in stderr_of("train", code=2)


def test_the_settings_file_knows_flags_not_the_names_within():
    Path("tiprctl.toml").write_text("[prepare]\njson = true\n[query]\nopen = false\n")
    done = CliRunner().invoke(app, ["prepare", "synth-pedes", "--ids", "1", "--val-ids", "1", "--test-ids", "1", "-q"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("{")


def test_a_bad_value_is_blamed_on_where_it_was_set(monkeypatch):
    Path("tiprctl.toml").write_text("[train]\nepochs = 0\n")
    assert "(set in tiprctl.toml)" in stderr_of("train", code=2)
    monkeypatch.setenv("TIPRCTL_TRAIN_EPOCHS", "many")
    assert "(set by TIPRCTL_TRAIN_EPOCHS)" in stderr_of("train", code=2)
    assert "(set" not in stderr_of("train", "--epochs", "0", code=2)


def test_the_settings_file_is_checked_without_heavy_imports():
    Path("tiprctl.toml").write_text("[train]\nepocs = 3\n")
    code = "import sys\nfrom tiprctl.cli.app import app\ntry: app(['train'])\nexcept SystemExit: pass\n"
    code += "print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), "no option named 'epocs'" in done.stderr) == ("set()", True)

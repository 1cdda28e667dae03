"""The program around the commands: what `tiprctl.toml` and variables may set, and what is said of mistakes in them."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tiprctl.cli import render
from tiprctl.cli.app import Commands, Program, app, root
from tiprctl.cli.options import SHARED_SETTINGS, command


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


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "error: Out of memory: libtorch_cpu.so: failed to map segment from shared object End what else runs",
        ),
        (MemoryError(), "error: Out of memory End what else runs"),
        (ImportError("No module named 'torch'"), "unexpected fault: ImportError: No module named 'torch'"),
    ],
)
def test_a_lack_of_memory_is_told_as_such_and_no_other_fault_is(monkeypatch, fault, said):
    def exhausted(*_given):
        raise fault

    monkeypatch.setattr("tiprctl.data.manifest.find_manifest", exhausted)
    assert stderr_of("train", code=1).startswith(said)


def test_a_lack_of_memory_that_torch_has_no_error_for_is_told_as_such(monkeypatch):
    def exhausted(*_given):
        import torch

        torch.empty(2**50)

    monkeypatch.setattr("tiprctl.data.manifest.find_manifest", exhausted)
    told = stderr_of("train", code=1)
    assert told.startswith("error: Out of memory: ")
    assert "End what else runs" in told


def test_what_the_library_logs_is_told_when_more_is_asked_for(capsys):
    log = logging.getLogger("tiprctl.data.anything")
    try:
        for level in (1, 1, 0, -1):
            render.set_verbosity(level)
            log.info("level %s", level)
    finally:
        render.set_verbosity(0)
    assert capsys.readouterr().err == "level 1\n" * 2


def test_a_group_within_the_program_has_its_own_tables_and_variables(monkeypatch):
    def add(size: int = 1) -> None:
        print(f"size {size}")

    group = typer.Typer(cls=Commands, name="shelf")
    group.command("add")(command(add))
    program = typer.Typer(cls=Program, context_settings=SHARED_SETTINGS)
    program.callback()(root)
    program.add_typer(group)

    def said(*arguments):
        done = CliRunner().invoke(program, ["shelf", "add", *arguments])
        return " ".join((done.output + done.stderr).split())

    Path("tiprctl.toml").write_text("[shelf.add]\nsize = 2\n")
    assert said() == "size 2"
    monkeypatch.setenv("TIPRCTL_SHELF_ADD_SIZE", "3")
    assert said() == "size 3"
    assert said("--size", "4") == "size 4"
    for text, parts in {
        "[shelf.ad]\nsize = 2\n": ["no command named 'ad'", "[shelf]", "Did you mean add?"],
        "[shelf.add]\nsizes = 2\n": ["no option named 'sizes'", "[shelf.add]", "Did you mean size?"],
        "[shelf]\nadd = 2\n": ["'shelf.add' is no table", "Write [shelf.add]"],
    }.items():
        Path("tiprctl.toml").write_text(text)
        assert all(part in said() for part in parts), said()

"""`tiprctl augment`: its table, its JSON, its taking up again, and what it says of bad input."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import console
import pytest

from tiprctl.cli import augment
from tiprctl.data.manifest import write_manifest
from tiprctl.data.pruning import FILE_NAME, PARTIAL_NAME, read_pruned
from tiprctl.data.tagging import TAGGERS

run = partial(console.run, "augment", "--workers", 1)


@pytest.fixture
def root(cuhk_manifest, monkeypatch):
    monkeypatch.chdir(cuhk_manifest.root.parent)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    return cuhk_manifest.root


def test_captions_are_shown_before_and_after_with_the_totals(root, cuhk_manifest):
    result = run("CUHK-PEDES", "--preview", 3)
    assert result.stdout.count("A person in a green coat, view 0.") == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    pruned = read_pruned(cuhk_manifest).pruned
    assert rows[0] == ["A person in a green coat, view 0.", "person green coat view", "person, green coat, view"]
    assert len(rows) == 4
    before = sum(len(caption.split()) for caption in cuhk_manifest.split("train").captions)
    after = sum(len(caption.split()) for caption in pruned)
    assert rows[-1] == ["16", f"{after / before:.1%}", "0", "0"]
    assert f"Wrote CUHK-PEDES/{FILE_NAME}, made with hanta {TAGGERS['hanta'].version}" in result.stderr


def test_the_table_tells_which_data_set_of_the_name_it_is(root):
    other = root.rename(root.with_name("CUHK-PEDES-2017"))
    assert "cuhk-pedes-2017" in run("--root", other).stdout


def test_json_is_one_document(root, cuhk_manifest):
    document = json.loads(run("--root", root, "--json", "--preview", 2).stdout)
    assert (document["captions"], document["tagged_now"], document["left_whole"]) == (16, 16, 0)
    assert 0.3 < document["words_kept"] < 0.7
    assert document["file"] == str(root / FILE_NAME)
    assert (document["tagger"], document["version"]) == ("hanta", TAGGERS["hanta"].version)
    captions = cuhk_manifest.split("train").captions
    assert [example["caption"] for example in document["examples"]] == [captions[0], captions[8]]
    assert document["examples"][0]["phrases"] == ["person", "green coat", "view"]


@pytest.mark.parametrize(("preview", "shown"), [(0, 0), (5, 5), (99, 16)])
def test_so_many_captions_are_shown(root, preview, shown):
    assert len(json.loads(run("--root", root, "--json", "--preview", preview).stdout)["examples"]) == shown


def test_a_second_run_says_that_all_is_done(root):
    run("--root", root)
    again = run("--root", root)
    assert "There already is" in again.stderr
    assert json.loads(run("--root", root, "--json").stdout)["tagged_now"] == 0


def test_a_file_that_was_only_to_be_finished_is_written(root):
    run("--root", root)
    (root / FILE_NAME).rename(root / PARTIAL_NAME)
    assert "Wrote" in run("--root", root).stderr


def test_captions_without_a_word_to_keep_and_without_a_noun_phrase_are_counted(cuhk_manifest, monkeypatch):
    kinds = {"they": "p", "walking quickly away": "...", "red coat": "an", "walking": "."}
    captions = cuhk_manifest.captions.iloc[:4].assign(split="train", caption=list(kinds))
    write_manifest(replace(cuhk_manifest, captions=captions))
    monkeypatch.setattr("tiprctl.data.pruning.classify", lambda caption, tagger: kinds[caption])
    document = json.loads(run("--root", cuhk_manifest.root, "--json").stdout)
    assert (document["captions"], document["left_whole"], document["without_phrase"]) == (4, 2, 3)
    table = run("--root", cuhk_manifest.root, "--preview", 0).stdout
    assert "without a noun phrase" in table
    assert [cell.strip() for cell in table.splitlines()[-2].split("│")[1:-1]][2:] == ["2", "3"]


def test_another_tagger_is_taken_when_asked(root):
    pytest.importorskip("textblob")
    run("--root", root)
    assert json.loads(run("--root", root, "--tagger", "textblob", "--json").stdout)["tagger"] == "textblob"


def test_ctrl_c_saves_and_the_next_run_goes_on(root):
    script = (
        "import os, signal, sys; from tiprctl.data import pruning; from tiprctl.cli.app import app\n"
        "count, prune = [], pruning.prune\n"
        "def pressing(*each):\n"
        "    count.append(1)\n"
        "    if len(count) == 5: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return prune(*each)\n"
        "pruning.prune = pressing\n"
        "app(['augment', '--root', sys.argv[1], '--workers', '1'])"
    )
    stopped = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=False)
    assert stopped.returncode == 130
    assert "the same command goes on from there" in stopped.stderr
    assert (root / PARTIAL_NAME).is_file()
    resumed = run("--root", root)
    assert "Going on after 5 captions" in resumed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--tagger", "hantha"], 2, "hanta"),
        (["--preview", "-1"], 2, "--preview"),
        (["icfg-pedes"], 3, "tiprctl prepare icfg-pedes"),
        (["cuhk-pedess"], 2, "Did you mean cuhk-pedes?"),
    ],
)
def test_bad_input_is_explained(root, arguments, code, said):
    assert said in run(*arguments, "--root", root.parent, exit_code=code).stderr


def test_a_folder_that_cannot_be_written_is_named_before_the_work(root, monkeypatch):
    (root / FILE_NAME).mkdir()
    monkeypatch.setattr("tiprctl.data.pruning.classify", lambda *_: pytest.fail("tagged before"))
    assert FILE_NAME in run("--root", root, exit_code=3).stderr


def test_training_without_the_file_says_how_to_make_it(root):
    arguments = ["train", "--root", str(root), "--recipe", "synth", "--set", "captions.prune=0.2", "--batch-size", "4"]
    assert f"tiprctl augment {root}" in console.run(*arguments, exit_code=3).stderr
    assert not any(Path("runs").glob("*"))


def test_the_choices_are_the_taggers_there_are():
    assert [choice.value for choice in augment.Tagger] == list(TAGGERS)

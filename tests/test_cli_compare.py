"""`tiprctl compare` as users meet it, on a miniature data set."""

import json
import os
import pickle
import shutil
import signal
import time
from functools import partial
from mmap import mmap
from multiprocessing import active_children
from pathlib import Path
from shlex import split
from threading import Thread

import console
import pytest
import tiny
import torch

from tiprctl import training
from tiprctl.ablation import measuring
from tiprctl.ablation.measuring import peak_memory, weigh
from tiprctl.ablation.methods import check_alike, plan_recipes
from tiprctl.ablation.settings import settings_of
from tiprctl.cli.compare import compare
from tiprctl.config import override
from tiprctl.data.manifest import find_manifest
from tiprctl.data.pruning import prune_captions
from tiprctl.errors import TrainingError, UsageError
from tiprctl.recipes import RECIPES, find_recipe
from tiprctl.runs import Run
from tiprctl.training import Trainer

run = partial(console.run, "compare")

MINIATURE = [
    *("--start-epochs", "0.25", "--epochs", "0.25", "--set", "batch_size=4", "--set", "model.name=tiny"),
    *("--set", "model.pretrained=none", "--set", "model.image_size=[16,8]", "--set", "optim.warmup=0"),
]
METHODS = ["clip", "irra", "sen", "cfine", "scvd"]
COMPARISON = [*MINIATURE, "--recipes", ",".join(METHODS), "--seeds", 1, "--budget", "steps"]


@pytest.fixture(scope="module", autouse=True)
def little_is_measured():
    memory = iter(range(120_000_000, 10**9, 50_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "WARM_UP", 1)
        patch.setattr(measuring, "MEASURED", 2)
        patch.setattr("tiprctl.ablation.experiment.peak_memory", lambda *_, **__: next(memory))
        yield


@pytest.fixture(scope="module")
def carried_out(shared_manifest, little_is_measured):
    """A working folder, and what the comparison of all methods there printed."""
    folder = shared_manifest.root.parent
    prune_captions(shared_manifest, "hanta")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TIPRCTL_DATA", str(folder))
        return folder, run(*COMPARISON)


@pytest.fixture
def printed(carried_out, monkeypatch):
    """What the comparison printed, with its working folder as the current one; nothing is to be changed there."""
    folder, result = carried_out
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TIPRCTL_DATA", str(folder))
    return result


def tables(result):
    """The lines of each table, its heading first."""
    found = []
    for line in result.stdout.splitlines():
        if line.startswith("┃"):
            found.append([])
        if line.startswith(("┃", "│")):
            found[-1].append([cell.strip() for cell in line.replace("┃", "│").split("│")][1:-1])
    return found


def test_a_table_of_figures_with_differences_and_one_of_costs(printed):
    (heading, clip, irra, *_), costs = tables(printed)
    assert heading == ["recipe", "epochs", "R@1", "mAP", "mINP", "R@1 vs clip", "mAP vs clip"]
    assert (clip[:2], irra[:2]) == (["clip", "0.25"], ["irra", "0.25"])
    assert all(0 <= float(cell) <= 100 for cell in (*clip[2:5], *irra[2:5]))
    assert clip[5:] == ["", ""]
    for difference, figure in ((5, 2), (6, 3)):
        expected = float(irra[figure]) - float(clip[figure])
        assert float(irra[difference].split(" ± ")[0]) == pytest.approx(expected, abs=0.02)
    heading, clip, irra, *_ = costs
    assert heading == ["recipe", "s/step", "cost", "memory", "width", "parameters"]
    assert (clip[2:4], irra[3]) == (["1.00", "120 MB"], "170 MB")
    assert float(irra[1]) / float(clip[1]) == pytest.approx(float(irra[2]), rel=0.02)
    assert float(irra[5].removesuffix(" M")) > float(clip[5].removesuffix(" M"))
    assert "cuhk-pedes, test split, percent; the epoch best on val, mean over seeds: 1\n" in printed.stdout
    assert "\nequal steps " in printed.stdout
    assert "warning" not in printed.stderr
    assert "6 of 6: seed0/steps/scvd" in printed.stderr
    assert "peak resident memory" in printed.stderr
    begun = [line.removesuffix(" …") for line in printed.stderr.splitlines() if line.endswith(" …")]
    memories = [f"Memory of {name}" for name in METHODS]
    assert begun == ["Trying the recipes", *memories, "Making the recipes", "Time of a step, in turn"]


def test_all_methods_start_from_the_same_checkpoint(printed):
    (_, *lines), (_, *costs) = tables(printed)
    assert [cells[0] for cells in lines] == METHODS
    widths = {cells[0]: int(cells[4]) for cells in costs}
    assert widths["clip"] == widths["irra"] == widths["sen"] < widths["cfine"]
    seed = Path("runs/cuhk-pedes-comparison/seed0").absolute()
    configs = [Run(seed / "steps" / name).config for name in METHODS]
    assert {config.model.pretrained for config in configs} == {str(seed / "start" / "last.safetensors")}


def test_json_has_costs_results_and_runs_and_a_second_call_trains_nothing(printed, monkeypatch):
    for name in ("tiprctl.training.Trainer.run", "tiprctl.ablation.experiment.peak_memory"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("done again"))
    document = json.loads(run(*COMPARISON, "--json").stdout)
    assert (document["recipes"], document["device"]) == (METHODS, "cpu")
    assert [(row["budget"], row["recipe"]) for row in document["runs"]] == [("steps", name) for name in METHODS]
    clip, irra, *_ = document["runs"]
    result = document["results"]["steps"][1]
    assert result["recipe"] == "irra"
    assert result["differences"]["R@1"]["mean"] == pytest.approx(irra["R@1"] - clip["R@1"], abs=0.02)
    assert (document["costs"]["irra"]["memory"], document["costs"]["clip"]["ratio"]) == (170_000_000, 1.0)
    assert document["costs"]["clip"]["width"] == document["costs"]["irra"]["width"] > 0
    assert tables(run(*COMPARISON)) == tables(printed)


def test_the_tables_of_large_models_fit_a_terminal(printed, tmp_path):
    folder = shutil.copytree("runs/cuhk-pedes-comparison", tmp_path / "large")
    kept = json.loads((folder / "comparison.json").read_text())
    for cost in kept["costs"].values():
        cost |= {"seconds": 12.3456, "parameters": 149_620_737, "memory": 23_456_789_012, "width": 1536}
    (folder / "comparison.json").write_text(json.dumps(kept))
    result = run(*COMPARISON, "--output", folder)
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert tables(result)[1][-1] == ["scvd", "12.3", "1.00", "23,457 MB", "1536", "150 M"]


def test_another_experiments_folder_is_refused(printed):
    assert "other settings: irra" in run(*COMPARISON, "--set", "mlm.weight=2", exit_code=2).stderr
    fewer = run(*COMPARISON, "--recipes", "clip,sen", exit_code=2).stderr
    assert "other settings: --recipes clip,irra,sen,cfine,scvd there, clip,sen here\n" in fewer
    ablation = ("ablate", "--recipe", "irra", "--parts", "mlm", "--output", "runs/cuhk-pedes-comparison")
    assert "something else" in console.run(*ablation, exit_code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--recipes", "clip,ira"], 2, "Did you mean irra?"),
        (["--recipes", "clip,irra,clip"], 2, "'clip' is named twice"),
        (["--recipes", "irra"], 2, "nothing to compare irra with"),
        (["--recipes", ","], 2, "nothing to compare\n"),
        (["--recipes", "clip,sen"], 3, "tiprctl augment"),
        (["--seeds", "0"], 2, "--seeds"),
        (["--start-epochs", "0"], 2, "no start"),
        (["--set", "batch_size=400"], 2, "at most 16"),
        (["--set", "seed=7"], 2, "Use --seeds"),
        (["--set", "model.head=parts"], 2, "Use --recipes"),
        (["--set", "tir.weight=2"], 2, "Name it in --recipes"),
        (["--set", "parts.image_ratio=0.2"], 2, "Name a recipe with that head in --recipes."),
        (["--set", "mlmm.weight=2"], 2, "Did you mean mlm? Choices: mlm, "),
        (["--set", "global.weight=2"], 2, "no place named 'global'"),
        (["--set", "model.pretrained=nope.pth"], 3, "nope.pth"),
        (["--output", "data"], 2, "something else"),
        (["--root", "nowhere"], 3, "tiprctl prepare"),
    ],
)
def test_bad_input_is_explained_before_anything_is_trained(home, arguments, exit_code, message):
    assert message in run(*MINIATURE, "--recipes", "clip,irra", *arguments, exit_code=exit_code).stderr
    assert not (home / "runs").exists()


def test_what_one_recipe_cannot_take_is_said_with_its_name_before_any_is_measured(home, monkeypatch):
    monkeypatch.setattr("tiprctl.ablation.experiment.peak_memory", lambda *_, **__: pytest.fail("measured"))
    prune_captions(find_manifest(None, None), "hanta")
    arguments = ["--recipes", "clip,irra,scvd", "--set", "captions.phrases=0"]
    stderr = run(*MINIATURE, *arguments, exit_code=2).stderr
    assert "The objective scvd reads the phrases" in stderr
    assert "recipe scvd: captions.phrases\n" in stderr
    assert not (home / "runs").exists()


def test_an_interruption_while_costs_are_measured_keeps_nothing_and_says_so(home, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tiprctl.ablation.experiment.measure_costs", interrupted)
    stderr = run(*MINIATURE, "--recipes", "clip,irra", exit_code=130).stderr
    assert stderr.endswith("nothing is kept. The same command begins again.\n")
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (
            ("sen", "sen-xl"),
            r"differ in model.name \(sen ViT-B-16, sen-xl ViT-L-14\); model.image_size .*\n--recipes\n",
        ),
        (
            ("clip", "irra-published"),
            r"batch_size \(clip 128, irra-published 64\)\n.*\n.*alike, as in --set batch_size=128",
        ),
        (
            ("irra", "cfine"),
            r"image_size \(irra \(384, 128\), cfine \(224, 224\)\); batch_size \(irra 128, cfine 32\)"
            r"\n--recipes\n.* --set 'model.image_size=\[384, 128\]' --set batch_size=128$",
        ),
        (
            ("clip", "irra", "sen", "cfine", "scvd"),
            r"model.image_size \(cfine \(224, 224\), the others \(384, 128\)\); "
            r"batch_size \(cfine 32, the others 128\)\n",
        ),
        (("clip", "synth"), r"model.pretrained \(clip openai, synth none\)"),
    ],
)
def test_recipes_that_steps_would_not_compare_are_refused(recipes, message):
    with pytest.raises(UsageError, match=message):
        check_alike({name: RECIPES[name] for name in recipes})


def test_one_text_encoder_by_two_names_is_one():
    bert, named, other = (
        override(RECIPES["clip"], {"model.text_encoder": encoder})
        for encoder in ("bert", "bert:bert-base-uncased", "bert:elsewhere")
    )
    check_alike({"bert": bert, "named": named})
    with pytest.raises(UsageError, match=r"model.text_encoder \(bert bert, other bert:elsewhere\)"):
        check_alike({"bert": bert, "other": other})


@pytest.mark.parametrize(
    ("example", "names"),
    [
        ("tiprctl compare cuhk-pedes --recipes irra,sen --budget steps", ["irra", "sen"]),
        (
            "tiprctl compare --set batch_size=128 --set 'model.image_size=[384,128]'",
            ["clip", "irra", "sen", "cfine", "scvd"],
        ),
    ],
)
def test_the_examples_for_photographs_compare_what_can_be_compared(home, monkeypatch, example, names):
    """Up to where the experiment begins, which here it does not."""
    plans = []

    def planned(plan, *_, **__):
        plans.append(plan)
        raise UsageError("Planned")

    monkeypatch.setattr("tiprctl.ablation.experiment.Experiment", planned)
    assert f"\n    {example}\n" in compare.__doc__
    assert run(*split(example)[2:], exit_code=2).stderr == "error: Planned\n"
    (plan,) = plans
    assert plan.names == names
    assert {contender.config.batch_size for contender in plan.contenders} == {128}
    assert {contender.config.model.image_size for contender in plan.contenders} == {(384, 128)}


def test_a_setting_concerns_the_recipes_that_have_its_objective():
    recipes = [RECIPES[name] for name in ("clip", "irra", "sen")]
    settings = ["batch_size=8", "tir.weight=5", "sdm.weight=2", "optim.lr=0.1", "triplett.margin=1"]
    clip, irra, sen = (settings_of(recipe, settings, recipes) for recipe in recipes)
    assert clip == ["batch_size=8", "optim.lr=0.1", "triplett.margin=1"]
    assert irra == ["batch_size=8", "sdm.weight=2", "optim.lr=0.1", "triplett.margin=1"]
    assert sen == settings


def test_recipes_go_on_with_all_their_objectives_from_a_start_of_contrast_alone():
    found = {name: find_recipe(name, "synth-pedes") for name in ("irra", "sen")}
    plan = plan_recipes(found, find_recipe("clip", "synth-pedes"), seeds=1)
    assert [objective.name for objective in plan.start.objectives] == ["itc"]
    assert plan.start.model.head == "global"
    assert (plan.start_epochs, plan.epochs, plan.names) == (7, 3, ["irra", "sen"])
    irra, sen = (contender.config for contender in plan.contenders)
    assert [objective.name for objective in irra.objectives] == ["sdm", "id", "mlm"]
    assert [objective.name for objective in sen.objectives] == ["sdm", "id", "tir", "triplet"]
    assert {(objective.start, objective.stop) for objective in sen.objectives} == {(0.0, 1.0)}
    assert (irra.captions.prune, sen.captions.prune) == (0.0, 0.2)
    assert plan.new_to_start(irra) == {"sdm", "id", "mlm"}
    on_pretrained = plan_recipes({name: RECIPES[name] for name in ("clip", "irra")}, RECIPES["clip"], seeds=1)
    assert (on_pretrained.start_epochs, on_pretrained.epochs) == (0, 60)
    assert on_pretrained.new_to_start(irra) == set()


CPU = torch.device("cpu")
on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")


def mapped(megabytes):
    """So much memory, written to. Not allocated: what earlier tests gave back to an allocator would not count."""
    block = mmap(-1, megabytes * 1_000_000)
    for _ in range(megabytes):
        block.write(bytes(1_000_000))
    return block


@on_linux
def test_memory_is_the_growth_of_the_peak_while_a_training_is_built_and_takes_steps(cuhk_manifest, monkeypatch):
    monkeypatch.setattr(Trainer, "take_steps", lambda trainer: iter([mapped(200).close()]))
    # What was held before, and given back, is not the training's.
    mapped(400).close()
    assert 195e6 < weigh(tiny.recipe(), cuhk_manifest, CPU, 0) < 300e6


@on_linux
def test_captions_take_no_memory_of_a_recipe_neither_held_nor_in_passing_and_weights_do(cuhk_manifest, monkeypatch):
    read, build = training.TrainingBatches, training.build_start
    held = []

    def read_much(*args, **kwargs):
        mapped(400).close()
        held.append(mapped(300))
        return read(*args, **kwargs)

    def build_much(*args):
        held.append(mapped(200))
        return build(*args)

    monkeypatch.setattr(training, "TrainingBatches", read_much)
    monkeypatch.setattr(training, "build_start", build_much)
    monkeypatch.setattr(Trainer, "take_steps", lambda trainer: iter([]))
    assert 195e6 < weigh(tiny.recipe(), cuhk_manifest, CPU, 0) < 290e6
    assert len(held) == 2


@on_linux
def test_memory_is_measured_in_a_process_of_its_own_and_holds_the_optimiser(cuhk_manifest, tmp_path):
    trainer = Trainer(tiny.recipe(), cuhk_manifest, tmp_path, device=CPU)
    weights = 4 * sum(parameter.numel() for parameter in trainer.composition.parameters())
    # Weights, gradients and Adam's two moments; beside them the images, activations and what they leave behind.
    assert 4 * weights < peak_memory(trainer.config, cuhk_manifest, device=CPU, workers=0) < 12 * weights


def test_an_error_comes_whole_from_another_process():
    error = pickle.loads(pickle.dumps(UsageError("What", where="where", remedy="remedy")))
    assert str(error) == "What\nwhere\nremedy"


def too_long(*_):
    time.sleep(600)


def interrupt_once_it_works():
    while not active_children():
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_the_process_that_measures_memory(cuhk_manifest, monkeypatch):
    monkeypatch.setattr(measuring, "weigh", too_long)
    begun = time.perf_counter()
    Thread(target=interrupt_once_it_works).start()
    with pytest.raises(KeyboardInterrupt):
        peak_memory(tiny.recipe(), cuhk_manifest, device=CPU, workers=0)
    assert time.perf_counter() - begun < 300
    assert not active_children()


def ended_from_outside(*_):
    os.abort()


def test_a_process_that_is_ended_from_outside_is_told(cuhk_manifest, monkeypatch):
    monkeypatch.setattr(measuring, "weigh", ended_from_outside)
    with pytest.raises(TrainingError, match="recipe synth was being measured") as raised:
        peak_memory(tiny.recipe(), cuhk_manifest, device=CPU, workers=0)
    assert "batch_size" in raised.value.remedy

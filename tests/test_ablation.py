import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import tiny
import torch

from tiprctl.ablation import measuring
from tiprctl.ablation.cost import Cost, paces, ratios
from tiprctl.ablation.experiment import ROWS, Experiment
from tiprctl.ablation.parts import label, lasting, parse_parts, plan_subsets, subsets, with_all, with_parts
from tiprctl.ablation.summary import Difference, Row, paired_difference, summarise
from tiprctl.config import ObjectiveConfig, override
from tiprctl.data.batches import TrainingBatches
from tiprctl.data.pruning import PrunedCaptions, prune_captions
from tiprctl.errors import InputError, UsageError
from tiprctl.progress import Listener
from tiprctl.recipes import FIGURES, RECIPES, find_recipe
from tiprctl.runs import LAST, METRICS, RUN, Run, write_records
from tiprctl.settings import with_settings
from tiprctl.tokenizer import default_tokenizer
from tiprctl.training import Trainer

SEN = find_recipe("sen", "synth-pedes")
PARTS = ("tir", "triplet", "prune")


class Interrupting(Listener):
    def on_step(self, samples):
        os.kill(os.getpid(), signal.SIGINT)


def costs(**seconds):
    return {name: Cost(value, 46, 1000) for name, value in seconds.items()}


def named(config):
    return [objective.name for objective in config.objectives]


def test_parts_are_objectives_and_what_is_done_to_captions():
    assert parse_parts(" tir, prune,mask ") == ("tir", "prune", "mask")


@pytest.mark.parametrize(
    ("text", "message"),
    [("tri", "no part named 'tri'"), ("pruned", "Did you mean prune"), ("tir,tir", "named twice"), (",", "No part")],
)
def test_wrong_parts_are_explained(text, message):
    with pytest.raises(UsageError, match=message):
        parse_parts(text)


def test_all_subsets_small_ones_first():
    assert list(map(label, subsets(("a", "b", "c")))) == ["plain", "a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]


@pytest.mark.parametrize("chosen", subsets(PARTS), ids=label)
def test_a_subset_has_its_parts_as_the_recipe_has_them_and_no_others(chosen):
    config = with_parts(RECIPES["sen"], PARTS, chosen)
    assert named(config) == ["sdm", "id", *(part for part in chosen if part != "prune")]
    assert all(objective in RECIPES["sen"].objectives for objective in config.objectives)
    assert config.captions.prune == (0.2 if "prune" in chosen else 0.0)


def test_a_part_that_the_recipe_lacks_comes_with_its_default():
    config = with_all(RECIPES["irra"], ("triplet", "mask", "prune"))
    assert with_all(config, ("triplet", "mask", "prune")) == config
    assert config.objectives[-1].weight == 10.0
    assert (config.captions.prune, config.captions.mask_content, config.captions.mask_other) == (0.2, 0.3, 0.05)


def test_masking_stays_as_the_recipe_has_it():
    published = RECIPES["irra-published"]
    assert with_all(published, ("mask",)) == with_parts(published, ("mask",), ("mask",)) == published
    assert with_parts(published, ("mask",), ()).captions == RECIPES["irra"].captions
    assert with_parts(published, ("mlm",), ()).captions == published.captions


def test_what_is_no_part_comes_first_so_that_it_is_initialised_alike():
    assert named(with_parts(RECIPES["sen"], ("sdm", "tir"), ("sdm", "tir"))) == ["id", "triplet", "sdm", "tir"]


def test_a_training_is_gone_on_with_without_its_first_phase():
    config = lasting(SEN)
    assert named(config) == ["sdm", "id", "tir", "triplet"]
    assert {(objective.start, objective.stop) for objective in config.objectives} == {(0.0, 1.0)}
    assert [objective.weight for objective in config.objectives] == [1.0, 0.3, 10.0, 10.0]


def test_a_part_is_gone_on_with_as_the_recipe_has_it_though_it_ends_early_there():
    recipe = with_settings(SEN, ["triplet.stop=0.9", "triplet.weight=5", "triplet.margin=0.3"])
    triplet = plan_subsets(recipe, ("triplet",), seeds=1).contenders[-1].config.objectives[-1]
    assert triplet == ObjectiveConfig(name="triplet", weight=5, options={"margin": 0.3})


@pytest.mark.parametrize(
    ("recipe", "parts", "remedy"),
    [
        (SEN, ("prune", "sdm", "id", "tir", "triplet"), "Leave one out, as in --parts prune,id,tir,triplet."),
        (RECIPES["cfine"], ("mgf", "cfr", "fcd"), "Leave one out, as in --parts cfr,fcd."),
        (RECIPES["clip"], ("itc",), "Take other parts, or another recipe."),
    ],
)
def test_without_any_objective_nothing_can_be_compared(recipe, parts, remedy):
    message = (
        f"Without {', '.join(parts)}, the recipe {recipe.recipe} has no objective to train with to the end"
        f"\n--parts\n{remedy}$"
    )
    with pytest.raises(UsageError, match=message):
        plan_subsets(recipe, parts, seeds=1)


def test_the_plan_starts_each_seed_once_and_trains_the_plain_one_once(tmp_path):
    plan = plan_subsets(SEN, ("tir", "prune"), seeds=2, start_epochs=4, epochs=3)
    trainings = plan.trainings(tmp_path, costs(plain=1.0, tir=1.5, prune=0.96, **{"tir+prune": 1.6}))
    of_a_seed = ["start", *(f"steps/{name}" for name in ("plain", "tir", "prune", "tir+prune"))]
    of_a_seed += [f"time/{name}" for name in ("tir", "prune", "tir+prune")]
    assert [training.name for training in trainings] == [f"seed{seed}/{name}" for seed in (0, 1) for name in of_a_seed]
    start, plain, tir, *_ = trainings
    assert (named(start.config), start.config.captions.prune) == (["itc", "sdm", "id", "triplet"], 0.0)
    assert (named(plain.config), named(tir.config)) == (["sdm", "id", "triplet"], ["sdm", "id", "triplet", "tir"])
    assert [training.config.epochs for training in trainings[:8]] == [4, 3, 3, 3, 3, 2, 3.125, 1.875]
    assert [training.config.seed for training in trainings] == [0] * 8 + [1] * 8
    assert plain.config.model.pretrained == tir.config.model.pretrained == str(tmp_path / "seed0" / "start" / LAST)


@pytest.mark.parametrize(
    ("budget", "names"), [("steps", ["steps/plain", "steps/tir"]), ("time", ["steps/plain", "time/tir"])]
)
def test_pretrained_weights_are_the_start_and_a_budget_trains_what_it_needs(tmp_path, budget, names):
    plan = plan_subsets(RECIPES["sen"], ("tir",), seeds=1, budgets=(budget,))
    trainings = plan.trainings(tmp_path, costs(plain=1.0, tir=2.0))
    assert [training.name for training in trainings] == [f"seed0/{name}" for name in names]
    assert {training.config.model.pretrained for training in trainings} == {"openai"}
    assert trainings[0].config.epochs == 60


def test_the_plans_defaults_and_bounds():
    assert (plan_subsets(SEN, PARTS, seeds=1).start_epochs, plan_subsets(SEN, PARTS, seeds=1).epochs) == (7, 3)
    assert plan_subsets(SEN, PARTS, seeds=1, start_epochs=2, epochs=0.5).epochs == 0.5
    with pytest.raises(UsageError, match="no start"):
        plan_subsets(SEN, PARTS, seeds=1, start_epochs=0)
    with pytest.raises(UsageError, match="epochs"):
        plan_subsets(SEN, PARTS, seeds=1, epochs=-1)


def test_paired_differences_and_their_standard_error_by_hand():
    # Differences 1, 2, 6: mean 3, deviations -2, -1, 3, variance 14 / 2 = 7, standard error sqrt(7 / 3).
    difference = paired_difference([71.0, 74.0, 66.0], [70.0, 72.0, 60.0])
    assert difference == Difference(pytest.approx(3.0), pytest.approx((7 / 3) ** 0.5))
    assert paired_difference([71.0], [70.0]) == Difference(1.0, None)


def row(seed, contender, value, budget="steps"):
    return Row(seed, budget, contender, 3.0, 2, "val", "test", dict.fromkeys(FIGURES, value))


def test_equal_steps_and_time_where_an_epoch_has_more_steps():
    measured = {"clip": Cost(1.0, 30, 1), "sen": Cost(2.0, 40, 1)}
    assert (paces(measured), ratios(measured)) == ({"clip": 1.0, "sen": 0.75}, {"clip": 1.0, "sen": 2.0})


def test_a_summary_pairs_by_seed_whatever_the_order_of_the_rows():
    rows = [
        row(1, "tir", 64.0),
        row(0, "plain", 70.0),
        row(0, "tir", 71.0),
        row(1, "plain", 60.0),
        row(2, "tir", 99.0),
        row(0, "tir", 69.0, "time"),
    ]
    plain, tir = summarise(rows, ["plain", "tir", "id"], "steps")
    assert (plain.contender, plain.seeds, plain.figures["R@1"]) == ("plain", 2, 65.0)
    assert (tir.contender, tir.seeds, tir.figures["mAP"]) == ("tir", 2, 67.5)
    assert tir.differences["R@1"] == Difference(2.5, pytest.approx(1.5))
    assert plain.differences["mAP"] == Difference(0.0, 0.0)
    plain, tir = summarise(rows, ["plain", "tir"], "time")
    assert (plain.figures["R@1"], tir.seeds, tir.differences["R@1"]) == (65.0, 1, Difference(-1.0, None))
    with_other_first = summarise(rows, ["tir", "plain"], "steps")
    assert with_other_first[1].differences["R@1"] == Difference(-2.5, pytest.approx(1.5))


def test_costs_are_medians_of_steps_taken_in_turn_after_a_warm_up(monkeypatch):
    now, order, told = [0.0], [], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def walk(name, durations):
        for duration in durations:
            order.append(name)
            now[0] += duration
            yield

    warm_up = [50.0] * measuring.WARM_UP
    walks = {"plain": walk("plain", [*warm_up, 1.0, 9.0, 2.0]), "tir": walk("tir", [*warm_up, 3.0, 3.0, 30.0])}
    seconds = measuring.median_seconds(walks, measuring.WARM_UP + 3, told.append)
    assert told == [1] * len(order)
    assert seconds == {"plain": 2.0, "tir": 3.0}
    in_turn = ["plain", "tir", "tir", "plain"]
    assert order == (in_turn * len(order))[: len(order)]
    assert len(order) == 2 * (measuring.WARM_UP + 3)
    assert ratios(costs(**seconds)) == {"plain": 1.0, "tir": 1.5}


def test_pruning_leaves_batches_and_augmentation_alone(cuhk_manifest, monkeypatch):
    """What pairing rests on: the same captions in the same batches, the same flips and crops."""
    captions = cuhk_manifest.split("train").captions
    pruned = PrunedCaptions(None, ["coat"] * len(captions), [""] * len(captions))
    monkeypatch.setattr("tiprctl.data.captions.read_pruned", lambda manifest: pruned)
    plain, changed = (
        list(
            TrainingBatches(cuhk_manifest, tiny.recipe(**{"captions.prune": probability}), default_tokenizer()).epoch(
                0, skip=0, device=torch.device("cpu")
            )
        )
        for probability in (0.0, 0.5)
    )
    for one, other in zip(plain, changed, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.pids, other.pids)
    assert any(not torch.equal(one.token_ids, other.token_ids) for one, other in zip(plain, changed, strict=True))


MINIATURE = {"recipe": tiny.recipe(), "parts": ("triplet",), "seeds": 1, "start_epochs": 0.5, "epochs": 0.25}


@pytest.fixture
def plan():
    return plan_subsets(**MINIATURE)


@pytest.fixture(scope="module", autouse=True)
def few_steps_are_timed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "WARM_UP", 1)
        patch.setattr(measuring, "MEASURED", 2)
        yield


@pytest.fixture
def ablation(plan, cuhk_manifest, tmp_path):
    return make(plan, cuhk_manifest, tmp_path / "ablation")


@pytest.fixture(scope="module")
def carried_out(shared_manifest, few_steps_are_timed):
    """An ablation that was carried out, only to look at."""
    ablation = make(plan_subsets(**MINIATURE), shared_manifest, shared_manifest.root.parent / "ablation")
    carry_out(ablation)
    return ablation


@pytest.fixture
def finished(carried_out, plan, cuhk_manifest, tmp_path):
    """An ablation that was carried out, of a test's own."""
    return make(plan, cuhk_manifest, shutil.copytree(carried_out.folder, tmp_path / "ablation"))


def make(plan, manifest, folder):
    return Experiment(plan, manifest, folder, device=torch.device("cpu"))


def carry_out(ablation):
    for training in ablation.trainings:
        if not ablation.is_finished(training):
            assert ablation.train(training, Listener())
            if training.budget != "start":
                ablation.measure(training)


def test_subsets_go_on_from_the_same_start_on_the_same_batches(carried_out):
    assert all(map(carried_out.is_finished, carried_out.trainings))
    plain, triplet = (
        json.loads((carried_out.folder / "seed0" / "steps" / name / METRICS).read_text())
        for name in ("plain", "triplet")
    )
    # One step each: the losses are those of the start, before a part could change anything.
    assert plain["losses"]["itc"] == triplet["losses"]["itc"]
    assert plain["losses"]["id"] == triplet["losses"]["id"]
    assert (plain["losses"].keys() ^ triplet["losses"].keys()) == {"triplet"}
    rows = carried_out.rows
    assert [(row.budget, row.contender) for row in rows] == [
        ("steps", "plain"),
        ("steps", "triplet"),
        ("time", "triplet"),
    ]
    assert {(row.selected_on, row.split) for row in rows} == {("val", "test")}
    assert all(row.figures.keys() == set(FIGURES) for row in rows)
    assert carried_out.costs["triplet"].parameters == carried_out.costs["plain"].parameters
    assert carried_out.costs["plain"].steps == 4
    assert {file.parent.name for file in carried_out.folder.rglob(LAST)} == {"start"}
    assert not list(carried_out.folder.rglob("latest"))


def test_rows_tell_the_epochs_that_were_trained_by_whole_steps(finished, monkeypatch):
    monkeypatch.setattr(Experiment, "costs", {"plain": Cost(3.5, 4, 1), "triplet": Cost(1.0, 4, 1)})
    shutil.rmtree(finished.folder / "seed0" / "time" / "triplet")
    write_records(finished.folder / ROWS, map(vars, finished.rows[:2]))
    carry_out(finished)
    # 0.25 epochs at 3.5 times the speed are 3.5 of the 4 steps of an epoch.
    assert [row.epochs for row in finished.rows] == [0.25, 0.25, 1.0]


def test_costs_are_medians_of_many_steps_however_short_an_epoch_is(plan, cuhk_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "MEASURED", 9)
    longer = replace(plan, epochs=1.5)
    seen = []
    monkeypatch.setattr(measuring, "median", lambda values: seen.append(len(values)) or 1.0)
    for number, each in enumerate((plan, longer)):
        assert make(each, cuhk_manifest, tmp_path / str(number)).ratios == {"plain": 1.0, "triplet": 1.0}
    assert seen == [9] * 4


def test_an_interruption_in_the_last_evaluation_stops_the_ablation(ablation, plan, cuhk_manifest, monkeypatch):
    start = ablation.trainings[0]

    class Measured(Listener):
        def on_epoch(self, record):
            os.kill(os.getpid(), signal.SIGINT)

    assert not ablation.train(start, Measured())
    assert ablation.is_finished(start)
    assert ablation.train(start, Listener())


def test_other_pruned_captions_and_another_device_are_other_settings(cuhk_manifest, tmp_path, monkeypatch):
    plan = plan_subsets(tiny.recipe(), ("prune",), seeds=1, start_epochs=0.5, epochs=0.25)
    prune_captions(cuhk_manifest, "hanta")
    assert make(plan, cuhk_manifest, tmp_path / "ablation").costs
    make(plan, cuhk_manifest, tmp_path / "ablation")
    prune_captions(cuhk_manifest, "textblob")
    monkeypatch.setattr(Experiment, "device_name", "NVIDIA H100")
    with pytest.raises(UsageError, match="other settings: captions; device\n"):
        make(plan, cuhk_manifest, tmp_path / "ablation")


def test_what_cannot_be_started_from_is_said_before_costs_are_kept(cuhk_manifest, tmp_path):
    recipe = override(tiny.recipe(), {"model.pretrained": str(tmp_path / "nope.pth")})
    with pytest.raises(InputError, match=r"nope.pth"):
        _ = make(plan_subsets(recipe, ("triplet",), seeds=1), cuhk_manifest, tmp_path / "a").costs
    assert not (tmp_path / "a").exists()


def test_what_was_done_is_neither_measured_nor_trained_again(finished, plan, cuhk_manifest, monkeypatch):
    rows = finished.rows
    for name in ("measure_costs", "Trainer", "evaluate"):
        monkeypatch.setattr(f"tiprctl.ablation.experiment.{name}", lambda *_, **__: pytest.fail("done again"))
    again = make(plan, cuhk_manifest, finished.folder)
    carry_out(again)
    assert again.rows == rows
    assert again.trainings == finished.trainings


def test_a_training_without_its_row_is_measured_again_but_not_trained(finished, plan, cuhk_manifest, monkeypatch):
    rows = finished.rows
    (finished.folder / ROWS).unlink()
    again = make(plan, cuhk_manifest, finished.folder)
    assert [again.is_finished(training) for training in again.trainings] == [True, False, False, False]
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained again"))
    carry_out(again)
    assert again.rows == rows


def test_an_interrupted_training_goes_on_with_the_plan_of_the_first_day(plan, cuhk_manifest, tmp_path, monkeypatch):
    plan = replace(plan, budgets=("steps",))
    ablation = make(plan, cuhk_manifest, tmp_path / "ablation")
    start = ablation.trainings[0]
    assert not ablation.train(start, Interrupting())
    assert not ablation.is_finished(start)
    monkeypatch.setattr("tiprctl.ablation.experiment.measure_costs", lambda *_, **__: pytest.fail("measured again"))
    again = make(plan, cuhk_manifest, ablation.folder)
    assert again.trainings == ablation.trainings
    carry_out(again)
    assert Run(ablation.folder / start.name).result["epoch"] == 1
    assert len(again.rows) == 2


def test_seeds_and_budgets_can_be_added(finished, plan, cuhk_manifest):
    more = make(replace(plan, seeds=2, budgets=("steps",)), cuhk_manifest, finished.folder)
    assert [more.is_finished(training) for training in more.trainings] == [True] * 3 + [False] * 3
    assert len(more.rows) == 2


def test_an_older_versions_folder_is_gone_on_with(finished, plan, cuhk_manifest, monkeypatch):
    """It kept a subset's parts in place of its name, and knew neither heads nor phrases nor what else a step costs."""
    rows = finished.rows
    kept = json.loads(finished.file.read_text())
    for name in ("head", "head_options"):
        del kept["settings"]["recipe"]["model"][name]
    del kept["settings"]["recipe"]["captions"]["phrases"]
    kept["costs"] = {
        name: {key: cost[key] for key in ("seconds", "steps", "parameters")} for name, cost in kept["costs"].items()
    }
    finished.file.write_text(json.dumps(kept))
    lines = [vars(row) | {"parts": [] if row.contender == "plain" else [row.contender]} for row in rows]
    for line in lines:
        del line["contender"]
    write_records(finished.folder / ROWS, lines[:2])
    again = make(plan, cuhk_manifest, finished.folder)
    assert again.rows == rows[:2]
    assert again.trainings == finished.trainings
    assert [again.is_finished(training) for training in again.trainings] == [True, True, True, False]
    carry_out(again)
    assert again.rows == rows


@pytest.mark.parametrize(
    ("changes", "named_in_message"),
    [
        ({"epochs": 0.5}, "--epochs 0.25 there, 0.5 here"),
        (
            {"parts": ("triplet", "itc"), "start_epochs": 1},
            "--parts triplet there, triplet,itc here; --start-epochs 0.5 there, 1 here",
        ),
        ({"recipe": tiny.recipe(batch_size=6)}, "recipe"),
    ],
)
def test_another_ablations_folder_is_refused(finished, plan, cuhk_manifest, changes, named_in_message):
    with pytest.raises(UsageError, match=f"other settings: {named_in_message}\n"):
        make(plan_subsets(**{**MINIATURE, **changes}), cuhk_manifest, finished.folder)


def test_other_data_of_the_same_title_would_not_go_into_the_same_folder_unseen(finished, plan, cuhk_manifest):
    other = replace(cuhk_manifest, captions=cuhk_manifest.captions.iloc[1:])
    assert other.title == cuhk_manifest.title
    with pytest.raises(UsageError, match=r"other settings: data_fingerprint\n.*\n.*name another --output"):
        make(plan, other, finished.folder)


def test_a_folder_of_something_else_and_one_that_cannot_be_written_are_refused(plan, cuhk_manifest, tmp_path):
    with pytest.raises(UsageError, match="something else"):
        make(plan, cuhk_manifest, cuhk_manifest.root)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        make(plan, cuhk_manifest, tmp_path / "file" / "ablation")


def test_what_cannot_be_trained_is_said_before_anything_is(cuhk_manifest, tmp_path):
    plan = plan_subsets(tiny.recipe(), ("prune",), seeds=1, start_epochs=0.5, epochs=0.25)
    with pytest.raises(InputError, match="tiprctl augment"):
        make(plan, cuhk_manifest, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_pretrained_weights_need_no_start_training(carried_out, cuhk_manifest, tmp_path):
    recipe = override(tiny.recipe(), {"model.pretrained": str(carried_out.folder / "seed0" / "start")})
    plan = plan_subsets(recipe, ("triplet",), seeds=1, epochs=0.25, budgets=("steps",))
    ablation = make(plan, cuhk_manifest, tmp_path / "ablation")
    carry_out(ablation)
    assert [row.contender for row in ablation.rows] == ["plain", "triplet"]
    assert not (tmp_path / "ablation" / "seed0" / "start" / RUN).exists()

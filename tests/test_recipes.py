"""Recipes: what they ask for, what their papers report, how they fit the built-in data, and that each one trains."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from console import run
from typer.main import get_command

from tiprctl.cli.app import app
from tiprctl.config import AugmentConfig, ModelConfig, ObjectiveConfig, OptimConfig, override, to_dict
from tiprctl.data.manifest import find_manifest
from tiprctl.errors import UsageError
from tiprctl.models.clip import SIZES, Clip, named_size
from tiprctl.models.encoder import DualEncoder
from tiprctl.objectives import OBJECTIVES, find_objective
from tiprctl.objectives.base import Objective
from tiprctl.objectives.composition import Composition
from tiprctl.optimisation import parameter_groups
from tiprctl.recipes import DEFAULT_WEIGHTS, FIGURES, RECIPES, find_recipe, published_rows, with_objectives
from tiprctl.runs import METRICS, RUN, read_records
from tiprctl.settings import with_settings
from tiprctl.training import Trainer

SHARED_SCHEDULE = [name for name in RECIPES if name.startswith(("irra", "scvd", "sen"))]
WITH_PRUNED_FILE = {"scvd", "sen", "sen-published", "sen-xl"}


def weights(config):
    return {objective.name: objective.weight for objective in config.objectives}


def compose(config):
    encoder = DualEncoder(Clip(tiny.CLIP), config.model.head, config.model.head_options)
    return Composition(encoder, config.objectives, identities=3)


def trained(losses):
    """The objectives that named losses are of; some share one."""
    return {name for loss in losses if "/" not in loss for name in loss.split("+")}


def differences(one, other, place=""):
    """The dotted places where two configurations differ, objectives by their names, with the other's values."""
    values = [
        {**to_dict(config), "objectives": {each["name"]: each for each in to_dict(config)["objectives"]}}
        for config in (one, other)
    ]

    def walk(a, b, place):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in a.keys() | b.keys():
                yield from walk(a.get(key), b.get(key), f"{place}.{key}" if place else key)
        elif a != b:
            yield place, b

    return dict(walk(*values, ""))


def test_the_literatures_methods_weigh_their_objectives_as_published():
    assert weights(RECIPES["clip"]) == {"itc": 1}
    assert weights(RECIPES["irra"]) == {"sdm": 1, "id": 1, "mlm": 1}
    assert weights(RECIPES["sen"]) == weights(RECIPES["sen-xl"]) == {"sdm": 1, "id": 1, "tir": 10, "triplet": 10}
    assert weights(RECIPES["cfine"]) == {"mgf": 1, "cfr": 10, "fcd": 10}
    assert weights(RECIPES["scvd"]) == {"scvd": 1}
    recipes = map(RECIPES.__getitem__, ("irra", "sen", "cfine", "scvd"))
    assert dict(DEFAULT_WEIGHTS) == {name: weight for recipe in recipes for name, weight in weights(recipe).items()}


def test_cfine_has_the_rates_and_the_input_of_its_code():
    config = RECIPES["cfine"]
    assert (config.epochs, config.batch_size, config.model.image_size) == (50, 32, (224, 224))
    assert (config.optim.lr, config.optim.weight_decay, config.optim.warmup_start) == (1e-5, 4e-5, 0.01)
    assert [part * config.epochs for part in (config.optim.warmup, *config.optim.milestones)] == [10, 20, 25, 35]
    assert replace(config.augment, flip=0.0) == AugmentConfig(flip=0, pad=0, jitter=0, erase=0)


def test_cfines_towers_learn_at_the_base_rate_and_all_else_ten_times_as_fast():
    config = RECIPES["cfine"]
    composition = compose(config)
    groups = parameter_groups(composition.roles(), config.optim)
    factors = {id(parameter): group["factor"] for group in groups for parameter in group["params"]}
    learning = {name: parameter for name, parameter in composition.named_parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in learning.values()} == factors.keys()
    assert {id(parameter) for parameter in composition.encoder.clip.parameters()} < factors.keys()
    for name, parameter in learning.items():
        assert factors[id(parameter)] == (1 if name.startswith("encoder.clip.") else 10), name
    assert any(name.startswith("objectives.mgf.") for name in learning)


@pytest.mark.parametrize("recipe", SHARED_SCHEDULE)
def test_the_literatures_methods_share_optimiser_and_schedule(recipe):
    config = RECIPES[recipe]
    assert config.optim == OptimConfig()
    assert config.epochs == 60
    assert all((each.start, each.stop) == (0, 1) for each in config.objectives)


def test_a_published_variant_is_its_method_under_the_conditions_of_its_code():
    assert differences(RECIPES["irra"], RECIPES["irra-published"]) == {
        "recipe": "irra-published",
        "batch_size": 64,
        "captions.mask_content": 0.15,
        "captions.mask_other": 0.15,
        "augment.erase_fill": "published",
        "objectives.mlm.options.attend_padding": True,
    }
    assert differences(RECIPES["sen"], RECIPES["sen-published"]) == {
        "recipe": "sen-published",
        "captions.mask_content": 0.3,
        "captions.mask_other": 0.05,
        "augment.erase_fill": "published",
        "objectives.tir.options.attend_padding": True,
    }
    assert (RECIPES["irra"].seed, RECIPES["sen"].seed, RECIPES["sen"].batch_size) == (1, 42, 128)
    assert RECIPES["sen"].captions.prune == 0.2


def test_sen_xl_has_the_published_grid_on_an_input_that_its_patches_divide():
    model = RECIPES["sen-xl"].model
    sizes = named_size(model.name).with_input(model.image_size, model.stride)
    assert sizes.grid == named_size(model.name).with_input((384, 128), None).grid == (27, 9)
    assert all(side % sizes.patch_size == 0 for side in sizes.image_size)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_options_of_a_recipe_are_those_of_its_objectives(recipe):
    assert with_settings(RECIPES[recipe], []) == RECIPES[recipe]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            "cuhk-pedes",
            {
                "IRRA (CVPR 2023)": [73.38, 89.93, 93.71, 66.13, 50.24],
                "CFine (TIP 2023)": [69.57, 85.93, 91.15, None, None],
                "SEN (Neural Networks 2025)": [75.00, 89.98, 94.09, 67.23, 51.45],
                "SEN-XL (Neural Networks 2025)": [76.64, 91.33, 94.66, 69.19, 53.88],
            },
        ),
        (
            "icfg-pedes",
            {
                "IRRA (CVPR 2023)": [63.46, 80.25, 85.82, 38.06, 7.93],
                "CFine (TIP 2023)": [60.83, 76.55, 82.42, None, None],
                "SEN (Neural Networks 2025)": [64.56, 80.49, 85.88, 40.80, 9.51],
                "SEN-XL (Neural Networks 2025)": [66.76, 81.57, 86.55, 44.28, 12.26],
            },
        ),
        (
            "rstpreid",
            {
                "IRRA (CVPR 2023)": [60.20, 81.30, 88.20, 47.17, 25.28],
                "CFine (TIP 2023)": [50.55, 72.50, 81.60, None, None],
                "SEN (Neural Networks 2025)": [61.60, 81.75, 88.05, 48.62, 26.43],
                "SEN-XL (Neural Networks 2025)": [62.70, 83.60, 89.15, 49.89, 27.56],
            },
        ),
        ("synth-pedes", {}),
    ],
)
def test_the_papers_figures_of_a_data_set(dataset, expected):
    rows = published_rows(dataset)
    assert {row["model"]: [row[figure] for figure in FIGURES] for row in rows} == expected
    assert all((row["direction"], row["selected_on"]) == ("text_to_image", "test") for row in rows)


def test_the_help_of_train_names_every_recipe():
    train = get_command(app).commands["train"]
    text = next(option.help for option in train.params if option.name == "recipe")
    assert set(text.removeprefix("A method: ").removesuffix(".").split(", ")) == set(RECIPES)


def test_without_a_name_the_data_set_chooses():
    assert find_recipe(None, "cuhk-pedes") == RECIPES["baseline"]
    assert find_recipe(None, "synth-pedes") == find_recipe("synth", "synth-pedes") == RECIPES["synth"]
    assert find_recipe("sen", "cuhk-pedes") == RECIPES["sen"]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("clip", "synth")])
def test_on_the_built_in_data_a_method_follows_a_contrast_from_random_weights(recipe):
    method, synth, config = RECIPES[recipe], RECIPES["synth"], find_recipe(recipe, "synth-pedes")
    assert config.recipe == recipe
    model = replace(synth.model, head=method.model.head, head_options=method.model.head_options)
    methods_optim = replace(synth.optim, lr=1e-3, weight_decay=0.05)
    assert (config.model, config.augment, config.sampling) == (model, synth.augment, synth.sampling)
    assert (config.optim, config.epochs, config.batch_size) == (methods_optim, 7, 64)
    assert config.captions == method.captions
    first, *second = config.objectives
    assert first == ObjectiveConfig(name="itc", stop=0.5)
    weights_there = {"sdm": 1.0, "id": 0.3, "cfr": 0.01, "fcd": 0.01}
    assert second == [
        replace(each, start=0.5, weight=weights_there.get(each.name, each.weight))
        for each in method.objectives
        if each.name != "itc"
    ]


def test_on_the_built_in_data_contrast_alone_lasts():
    assert find_recipe("clip", "synth-pedes").objectives == (ObjectiveConfig(name="itc"),)


def test_an_objective_brings_its_head_and_its_phrases():
    config = with_objectives(RECIPES["baseline"], None, "scvd")
    assert differences(RECIPES["baseline"], config) == {
        "model.head": "division",
        "captions.phrases": 6,
        "objectives.scvd": to_dict(ObjectiveConfig(name="scvd")),
    }


def test_cfines_objectives_bring_its_head_and_leave_the_captions():
    config = with_objectives(RECIPES["irra"], None, "mgf,cfr,fcd")
    cfine = RECIPES["cfine"]
    assert differences(RECIPES["irra"], config) == {
        "model.head": "parts",
        "model.head_options.image_ratio": 0.1,
        "model.head_options.text_ratio": 0.2,
        "objectives.mgf": to_dict(ObjectiveConfig(name="mgf")),
        "objectives.cfr": to_dict(ObjectiveConfig(name="cfr", weight=10)),
        "objectives.fcd": to_dict(ObjectiveConfig(name="fcd", weight=10)),
    }
    assert config.model.head_options == cfine.model.head_options


@pytest.mark.parametrize(
    ("head", "options", "phrases"),
    [("parts", RECIPES["cfine"].model.head_options, 0), ("division", {}, 6), ("mine", {}, 0), ("global", {}, 0)],
)
def test_an_objective_of_ones_own_brings_the_head_that_it_needs(monkeypatch, head, options, phrases):
    monkeypatch.setitem(OBJECTIVES, "own", type("Own", (Objective,), {"name": "own", "needs_head": head}))
    config = with_objectives(RECIPES["sen"], None, "own")
    assert (config.model.head, config.model.head_options, config.captions.phrases) == (head, options, phrases)
    assert replace(config.model, head="global", head_options={}) == RECIPES["sen"].model
    there = override(RECIPES["sen"], {"model.head": head, "model.head_options": {"kept": 1}})
    assert with_objectives(there, None, "own").model == there.model
    other = "scvd" if head == "parts" else "mgf"
    with pytest.raises(UsageError, match=f"own needs the head {head}, and {other} the head"):
        with_objectives(RECIPES["sen"], None, f"own,{other}")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_can_be_added_by_name_alone(objective):
    config = with_objectives(RECIPES["baseline"], objective, None)
    compose(config)
    needed = find_objective(objective).needs_head
    assert config.model.head == (needed or "global")
    if needed:
        with pytest.raises(UsageError, match=f"{objective} needs the head {needed}, .* the head global"):
            compose(replace(config, model=ModelConfig()))


@pytest.mark.parametrize(
    ("recipe", "losses", "aux"),
    [("cfine", None, "scvd"), ("baseline", "mgf,scvd", None), ("baseline", "sdm,mgf", "fcd,scvd")],
)
def test_objectives_that_need_different_heads_are_refused_with_both_named(recipe, losses, aux):
    with pytest.raises(UsageError, match=r"mgf needs the head parts, and scvd the head division\nobjectives\n.*one of"):
        with_objectives(RECIPES[recipe], losses, aux)


def test_losses_of_another_head_replace_that_of_the_recipe():
    assert with_objectives(RECIPES["cfine"], "scvd", None).model.head == "division"
    assert with_objectives(RECIPES["scvd"], "mgf", "sdm").model.head == "parts"


def test_a_head_that_is_there_and_phrases_that_are_read_stay_as_they_are():
    recipe = override(RECIPES["scvd"], {"model.head_options": {"local_weight": 0.7}, "captions.phrases": 3})
    config = with_objectives(recipe, None, "id")
    assert (config.model, config.captions) == (recipe.model, recipe.captions)


@pytest.mark.parametrize("recipe", RECIPES)
def test_other_objectives_leave_the_recipes_head_and_captions(recipe):
    config = with_objectives(RECIPES[recipe], "itc,id", "triplet")
    assert (config.model, config.captions) == (RECIPES[recipe].model, RECIPES[recipe].captions)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_head_and_the_phrases_that_its_objectives_need(recipe):
    assert with_objectives(RECIPES[recipe], None, None) == RECIPES[recipe]


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    """A miniature of the built-in data set, drawn, prepared and pruned."""
    home = tmp_path_factory.mktemp("home")
    root = home / "data" / "synth-pedes"
    run("prepare", "synth-pedes", "--root", root, "--ids", 4, "--val-ids", 1, "--test-ids", 1, "--workers", 0)
    run("augment", "--root", root, "--workers", 1, "--preview", 0)
    return home


@pytest.fixture
def home(built_in, tmp_path, monkeypatch):
    """A working folder beside the miniature, and the smallest encoder that can read it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIPRCTL_DATA", str(built_in / "data"))
    smallest = replace(tiny.CLIP, image_size=(64, 32), patch_size=8, stride=8, vocab_size=49408, quick_gelu=False)
    monkeypatch.setitem(SIZES, "tiny", smallest)
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_two_epochs_of_the_built_in_data(home, recipe):
    result = run("train", "--recipe", recipe, "--epochs", 2, "--batch-size", 16, "--output", "run")
    first, second = read_records(Path("run") / METRICS)
    names = {each.name for each in RECIPES[recipe].objectives}
    assert first["losses"].keys() & {"sdm", "itc"} == {"itc"}
    assert trained(second["losses"]) == names
    assert all(0 <= loss < 1e3 for loss in second["losses"].values())
    assert json.loads((Path("run") / RUN).read_text())["config"]["recipe"] == recipe
    assert ("small encoder from random weights" in result.stderr) == (recipe != "synth")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_with_its_own_sampling_augmentation_and_captions(home, recipe):
    method = RECIPES[recipe]
    model = find_recipe(recipe, "synth-pedes").model
    small = {"model": to_dict(model), "epochs": 1, "batch_size": 8}
    config = override(find_recipe(recipe, "cuhk-pedes"), small)
    assert (config.sampling, config.augment, config.captions) == (method.sampling, method.augment, method.captions)
    trainer = Trainer(config, find_manifest("synth-pedes", None), Path("run"), device=torch.device("cpu"))
    steps = list(trainer.take_steps())
    assert len(steps) > 2
    losses = [(name, loss) for step in steps for name, loss in step.losses.items() if "/" not in name]
    assert trained(name for name, _ in losses) == {each.name for each in method.objectives}
    assert all(0 <= loss < 1e3 for _, loss in losses)
    in_pairs = config.sampling.sampler == "pairs"
    assert all(4 <= step.pairs <= 8 if in_pairs else step.pairs == 8 for step in steps)


@pytest.mark.parametrize("recipe", sorted(WITH_PRUNED_FILE))
def test_without_pruned_captions_a_recipe_says_how_to_make_them(home, built_in, recipe):
    file = built_in / "data" / "synth-pedes" / "captions_pruned.parquet"
    content = file.read_bytes()
    file.unlink()
    try:
        stderr = run("train", "--recipe", recipe, exit_code=3).stderr
    finally:
        file.write_bytes(content)
    assert "tiprctl augment" in stderr


def test_restoration_needs_patches_that_divide_the_image(home):
    stderr = run("train", "--recipe", "sen", "--batch-size", 8, "--set", "model.image_size=[60,32]", exit_code=2).stderr
    assert "objective tir" in stderr
    assert "60" in stderr
    assert list(Path("runs").iterdir()) == []

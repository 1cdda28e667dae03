"""`--set KEY=VALUE`: what can be set, and what is said of what cannot."""

import pytest

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import InputError, UsageError
from tiprctl.recipes import RECIPES
from tiprctl.settings import resolve, with_settings

SEN = RECIPES["sen"]


def objective(config, name):
    return next(each for each in config.objectives if each.name == name)


def test_settings_reach_objectives_their_options_and_the_configuration():
    config = with_settings(
        SEN,
        [
            "triplet.margin=0.1",
            "tir.weight=5",
            "tir.mask_ratio=0.5",
            "id.start=0.25",
            "captions.prune=0.3",
            "optim.eps=1e-6",
            "optim.name=adamw",
            "optim.decay_vectors=false",
            "model.image_size=[256, 128]",
            "model.stride=12",
            "epochs=5",
        ],
    )
    assert objective(config, "triplet").options == {"margin": 0.1}
    tir = ObjectiveConfig(name="tir", weight=5, options={"mask_ratio": 0.5, "depth": 4})
    assert objective(config, "tir") == tir
    assert objective(config, "id").start == 0.25
    assert config.captions.prune == 0.3
    assert (config.optim.eps, config.optim.name, config.optim.decay_vectors) == (1e-6, "adamw", False)
    assert (config.model.image_size, config.model.stride, config.epochs) == ((256, 128), 12, 5)
    assert objective(config, "sdm") == objective(SEN, "sdm")
    assert (config.augment, config.sampling, config.recipe) == (SEN.augment, SEN.sampling, "sen")


def test_the_last_of_several_settings_counts_and_null_is_a_value():
    config = with_settings(SEN, ["model.stride=8", "model.stride=12", "triplet.margin=1", "triplet.margin=0.2"])
    assert (config.model.stride, objective(config, "triplet").options["margin"]) == (12, 0.2)
    assert with_settings(config, ["model.stride=null"]).model.stride is None


def test_nothing_set_changes_nothing_and_the_recipe_stays_as_it_was():
    assert with_settings(SEN, []) == SEN
    with_settings(SEN, ["triplet.margin=0.1"])
    assert objective(RECIPES["sen"], "triplet").options == {"margin": 0.05}


def test_a_setting_reaches_an_option_of_the_head():
    config = with_settings(SEN, ["model.head=division", "division.local_weight=0.7", "division.local_weight=0.8"])
    assert (config.model.head, config.model.head_options) == ("division", {"local_weight": 0.8})
    assert SEN.model.head_options == {}


def test_another_head_leaves_the_options_of_the_one_before():
    cfine = RECIPES["cfine"]
    assert cfine.model.head_options
    for head in ("global", "division"):
        model = with_settings(cfine, [f"model.head={head}"]).model
        assert (model.head, model.head_options) == (head, {})
    settings = ["division.local_weight=0.7", "model.head=division"]
    assert with_settings(cfine, settings).model.head_options == {"local_weight": 0.7}


def test_the_same_head_keeps_its_options():
    cfine = RECIPES["cfine"]
    assert with_settings(cfine, ["model.head=parts"]) == cfine


@pytest.mark.parametrize("head", ["[1]", "{}", "3"])
def test_a_head_that_is_no_name_is_refused(head):
    with pytest.raises(UsageError, match=r"model\.head: .*valid string"):
        with_settings(SEN, [f"model.head={head}"])


def test_settings_are_judged_together():
    config = with_settings(RECIPES["synth"], ["itc.start=0.6", "itc.stop=0.9"])
    assert (objective(config, "itc").start, objective(config, "itc").stop) == (0.6, 0.9)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("triplet.margin", r"'triplet.margin' sets nothing\n--set\nWrite KEY=VALUE"),
        ("=3", "sets nothing"),
        (
            "triplet.margn=0.1",
            r"no setting of triplet named 'margn'\n--set\nDid you mean margin\? Choices: margin, start",
        ),
        ("tirr.weight=1", r"no place named 'tirr'\n--set\nDid you mean tir\?"),
        ("mlm.weight=1", r"objective 'mlm' does not take part in this training\n--set\nName it in --losses or --aux"),
        ("captions.prun=1", r"Did you mean prune\? Choices: prune, "),
        ("epoch=1", r"Did you mean epochs\?"),
        ("objectives=[]", r"objectives cannot be set this way\n--set\nUse --losses or --aux"),
        ("recipe=clip", r"recipe cannot be set this way\n--set\nUse --recipe"),
        ("tir=5", "no setting named 'tir'"),
        ("captions.prune.now=1", "no place named 'captions.prune'"),
        ("captions.prune=1.5", r"captions.prune: .*less than or equal to 1"),
        ("captions.mask_other=NaN", r"captions.mask_other: "),
        (
            "model.image_size=224,224",
            r"image_size is a list, not 224,224\n--set\n.*`--set 'model\.image_size=\[384,128\]'`",
        ),
        ("optim.betas=0.9", r"optim\.betas is a list, not 0\.9\n--set\n.*`--set 'optim\.betas=\[0\.9,0\.999\]'`"),
        ("optim.eps=-1", r"optim.eps: .*greater than 0"),
        ("optim.name=sgd", r"optim.name: .*'adam' or 'adamw'"),
        ("tir.weight=-1", r"weight: .*greater than or equal to 0\nobjective tir"),
        ("tir.mask_ratio=1", r"mask_ratio: .*less than 1\nobjective tir"),
        ("tir.depth=two", r"depth: .*integer.*\nobjective tir"),
        ("triplet.margin=-1", r"margin: .*\nobjective triplet"),
        ("id.start=1", r"id would stop at 1.0 before it starts at 1.0"),
    ],
)
def test_what_cannot_be_set_is_explained(setting, message):
    with pytest.raises(UsageError, match=message):
        with_settings(SEN, [setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["division.local_weight=1"], r"head of this training is 'global', not 'division'\n--set\n.*--losses or --aux"),
        (["model.head=division", "division.weight=1"], r"Did you mean local_weight\?"),
        (
            ["model.head=division", "divison.local_weight=1"],
            r"no place named 'divison'\n--set\nDid you mean division\?",
        ),
        (
            ["model.head=division", "division.local_weight=-1"],
            r"local_weight: .*greater than or equal to 0\nhead division",
        ),
        (["global.weight=1"], "no place named 'global'"),
    ],
)
def test_what_cannot_be_set_of_a_head_is_explained(settings, message):
    with pytest.raises(UsageError, match=message):
        with_settings(SEN, settings)


def test_what_other_options_decide_is_fixed():
    with pytest.raises(UsageError, match=r"seed cannot be set this way\n--set\nUse --seeds"):
        with_settings(SEN, ["seed=7"], fixed={"seed": "--seeds"})


def test_a_start_that_is_not_there_is_refused_however_it_is_named():
    for settings, pretrained in ([["model.pretrained=nope.pth"], None], [[], "nope.pth"]):
        with pytest.raises(InputError, match=r"no such run, checkpoint or pretrained CLIP\nnope.pth"):
            resolve(SEN, settings, pretrained=pretrained)


def test_the_option_for_the_start_wins_over_the_setting():
    assert resolve(SEN, ["model.pretrained=nope.pth"], pretrained="none").model.pretrained == "none"

"""Starting a training from what an earlier one left: the encoder, its input, and the objectives' weights."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import console
import pytest
import tiny
import torch

from tiprctl.checkpoint import read_checkpoint, save_checkpoint
from tiprctl.config import ModelConfig, override
from tiprctl.errors import InputError
from tiprctl.models.clip import SIZES
from tiprctl.models.heads import HEADS
from tiprctl.models.weights import resize_positions
from tiprctl.progress import Listener
from tiprctl.runs import BEST, LAST, RUN
from tiprctl.starting import build_start, with_start
from tiprctl.training import Trainer

run = partial(console.run, "train")

CPU = torch.device("cpu")
SMALLEST = replace(tiny.CLIP, vocab_size=49408, quick_gelu=False)
START = ["--recipe", "synth", "--losses", "itc,id", "--batch-size", "4", "--epochs", "1"]


class Warned(Listener):
    def __init__(self):
        self.texts = []

    def on_warning(self, text, *, objective):
        self.texts.append(text)


@pytest.fixture
def home(home, monkeypatch):
    """With a size `tiny` that trains in no time."""
    monkeypatch.setitem(SIZES, "tiny", SMALLEST)
    return home


@pytest.fixture
def first(home):
    """A finished run with a contrast and a classifier."""
    run(*START, "--set", "model.image_size=[32,16]", "--output", "first")
    return Path("first")


@pytest.fixture
def trainer(cuhk_manifest, tmp_path, monkeypatch):
    """Makes a trainer whose configuration is the recipe's, changed."""
    monkeypatch.setitem(SIZES, "tiny", SMALLEST)

    def make(name, manifest=cuhk_manifest, **changes):
        warned = Warned()
        config = override(tiny.recipe(objectives=[{"name": "itc"}, {"name": "id"}]), changes)
        return Trainer(config, manifest, tmp_path / name, device=CPU, listener=warned), warned.texts

    return make


def same(composition, tensors):
    state = composition.state_dict()
    return {name for name in state if name in tensors and torch.equal(state[name], tensors[name])}


@pytest.mark.parametrize("what", ["", BEST, LAST])
def test_encoder_and_objectives_start_from_the_checkpoint(trainer, tmp_path, what):
    trainer("first")[0].run()
    start = tmp_path / "first" / what
    second, warnings = trainer("second", **{"model.pretrained": str(start), "seed": 5})
    tensors, _ = read_checkpoint(tmp_path / "first" / (what or BEST))
    assert same(second.composition, tensors) == second.composition.state_dict().keys()
    assert warnings == []
    assert second.progress.epoch == 0
    second.run()


def test_what_the_checkpoint_lacks_starts_at_random_with_a_warning(trainer, tmp_path):
    trainer("first")[0].run()
    objectives = [{"name": name} for name in ("sdm", "id", "mlm")]
    changes = {"model.pretrained": str(tmp_path / "first"), "objectives": objectives}
    second, warnings = trainer("second", **changes)
    assert warnings == [f"mlm starts from random weights: {tmp_path / 'first' / BEST} has none for it"]
    tensors, _ = read_checkpoint(tmp_path / "first" / BEST)
    assert {name for name in same(second.composition, tensors) if "objectives" in name} == {
        "objectives.id.classifier.weight",
        "objectives.id.classifier.bias",
    }


def test_weights_of_other_shapes_are_not_taken(trainer, tmp_path, monkeypatch):
    trainer("first")[0].run()
    monkeypatch.setattr("tiprctl.data.batches.TrainingBatches.identities", 7)
    _, warnings = trainer("second", **{"model.pretrained": str(tmp_path / "first")})
    assert warnings == [f"id starts from random weights: {tmp_path / 'first' / BEST} has others for it"]


def test_what_depends_on_the_identities_is_taken_from_the_same_data_alone(trainer, cuhk_manifest, tmp_path):
    trainer("first")[0].run()
    captions = cuhk_manifest.captions.assign(pid=cuhk_manifest.captions["pid"] + 1)
    others = replace(cuhk_manifest, captions=captions)
    objectives = [{"name": name} for name in ("itc", "id")]
    changes = {"model.pretrained": str(tmp_path / "first"), "objectives": objectives, "seed": 5}
    second, warnings = trainer("second", others, **changes)
    assert warnings == [f"id starts from random weights: {tmp_path / 'first' / BEST} learnt other identities"]
    tensors, _ = read_checkpoint(tmp_path / "first" / BEST)
    taken = same(second.composition, tensors)
    assert {name for name in taken if "objectives" in name} <= {
        "objectives.itc.log_scale",
        "objectives.id.classifier.bias",
    }
    assert "objectives.itc.log_scale" in taken


def test_a_run_that_started_from_another_goes_on_without_it(trainer, tmp_path):
    trainer("first")[0].run()
    changes = {"model.pretrained": str(tmp_path / "first")}
    second, _ = trainer("second", **changes)
    second.run()
    (tmp_path / "first" / BEST).unlink()
    again, warnings = trainer("second", **changes)
    assert warnings == []
    assert same(again.composition, second.composition.state_dict()) == second.composition.state_dict().keys()


def test_another_input_resizes_the_positions(trainer, tmp_path):
    first, _ = trainer("first", select_on="last")
    first.run()
    model = replace(first.config.model, pretrained=str(tmp_path / "first"), image_size=(32, 16), stride=2)
    clip = build_start(model, torch.Generator()).encoder.clip
    kept = first.composition.encoder.clip
    before, after = kept.visual.positional_embedding, clip.visual.positional_embedding
    assert (kept.config.grid, clip.config.grid) == ((4, 2), (15, 7))
    assert torch.equal(after, resize_positions(before, (4, 2), (15, 7)))
    assert torch.equal(clip.visual.proj, kept.visual.proj)
    assert clip.encode_image(torch.zeros(1, 3, 32, 16)).shape == (1, 106, 16)


def test_another_size_is_refused_with_both_named(trainer, tmp_path):
    first, _ = trainer("first")
    first.run()
    model = replace(first.config.model, pretrained=str(tmp_path / "first"))
    with pytest.raises(InputError, match=r"holds tiny, not ViT-B-32\n.*best.safetensors\n.*--model"):
        build_start(replace(model, name="ViT-B-32"), torch.Generator())


DIVISION = {"model.head": "division", "model.head_options": {"local_weight": 0.7}}


def test_a_head_without_weights_gives_way_to_a_fresh_one(trainer, tmp_path):
    trainer("first")[0].run()
    second, warnings = trainer("second", **DIVISION, **{"model.pretrained": str(tmp_path / "first")})
    assert warnings == []
    tensors, _ = read_checkpoint(tmp_path / "first" / BEST)
    assert same(second.composition, tensors) == tensors.keys()
    fresh = second.composition.state_dict().keys() - tensors.keys()
    assert fresh
    assert all(name.startswith("encoder.head.") for name in fresh)
    assert second.composition.encoder.head.config.local_weight == 0.7
    second.run()


def test_the_same_head_goes_on_with_what_it_learnt(trainer, tmp_path):
    trainer("first", **DIVISION)[0].run()
    second, _ = trainer("second", **DIVISION, **{"model.pretrained": str(tmp_path / "first"), "seed": 5})
    tensors, _ = read_checkpoint(tmp_path / "first" / BEST)
    assert any(name.startswith("encoder.head.") for name in tensors)
    assert same(second.composition, tensors) == second.composition.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"head": "global"},
            r"has the head division, not global\n.*best.safetensors\n"
            r"Start from a checkpoint with the head global, or train with a recipe whose head is division \(scvd\)\.",
        ),
        (
            {"head": "other"},
            r"has the head division, not other\n.*best.safetensors\n"
            r"Start from a checkpoint with the head other or global, or",
        ),
        (
            {"head": "division"},
            r"head division has learnt with local_weight 0.7, not 0.5\n.*best.safetensors\n"
            r".*--set division.local_weight=0.7",
        ),
    ],
)
def test_another_head_than_the_one_that_learnt_is_refused(trainer, tmp_path, monkeypatch, changes, message):
    first, _ = trainer("first", **DIVISION)
    first.run()
    monkeypatch.setitem(HEADS, "other", type("Other", (HEADS["division"],), {"name": "other"}))
    model = ModelConfig(name="tiny", pretrained=str(tmp_path / "first"), image_size=(16, 8), **changes)
    with pytest.raises(InputError, match=message):
        build_start(model, torch.Generator())


def test_a_head_of_no_recipe_is_brought_by_a_setting(trainer, tmp_path, monkeypatch):
    monkeypatch.setitem(HEADS, "other", type("Other", (HEADS["division"],), {"name": "other"}))
    first, _ = trainer("first", **{"model.head": "other"})
    first.run()
    model = ModelConfig(name="tiny", pretrained=str(tmp_path / "first"), image_size=(16, 8))
    with pytest.raises(
        InputError, match=r"has the head other, not global\n.*\n.*or train with --set model\.head=other\."
    ):
        build_start(model, torch.Generator())


def test_all_that_a_head_learnt_with_is_set_in_one_line(trainer, tmp_path):
    trainer("first", **{"model.head": "parts", "model.head_options": {"image_ratio": 0.3, "groups": 1}})[0].run()
    model = ModelConfig(name="tiny", pretrained=str(tmp_path / "first"), image_size=(16, 8), head="parts")
    with pytest.raises(InputError) as raised:
        build_start(model, torch.Generator())
    assert "has learnt with image_ratio 0.3, not 0.1; groups 1, not 2" in raised.value.what
    assert "Train with --set parts.image_ratio=0.3 --set parts.groups=1, or" in raised.value.remedy


def test_a_run_with_a_head_of_its_own_goes_on_after_its_start_is_gone(trainer, tmp_path):
    trainer("first")[0].run()
    changes = {**DIVISION, "model.pretrained": str(tmp_path / "first")}
    second, _ = trainer("second", **changes)
    second.run()
    (tmp_path / "first" / BEST).unlink()
    again, warnings = trainer("second", **changes)
    assert warnings == []
    assert same(again.composition, second.composition.state_dict()) == second.composition.state_dict().keys()


def test_a_starting_checkpoint_gives_the_size_and_the_input(first):
    model = with_start(ModelConfig(), "first")
    assert (model.name, model.image_size, model.stride) == ("tiny", (32, 16), None)
    assert model.pretrained == str(first / BEST)


def test_a_checkpoint_of_before_there_was_bert_has_clips_text_tower(first):
    tensors, header = read_checkpoint(first / BEST)
    del header["config"]["model"]["text_encoder"]
    save_checkpoint(first / BEST, tensors, header)
    model = with_start(ModelConfig(text_encoder="bert"), "first")
    assert model.text_encoder == "clip"
    build_start(model, torch.Generator())
    with pytest.raises(InputError, match="has the text encoder clip, not bert"):
        build_start(replace(model, text_encoder="bert"), torch.Generator())


@pytest.mark.parametrize("pretrained", ["openai", "none", "laion2b_s34b_b88k"])
def test_a_tag_or_random_weights_leave_the_model_as_it_is(pretrained):
    assert with_start(ModelConfig(), pretrained) == ModelConfig(pretrained=pretrained)


def test_train_takes_a_run_its_size_and_its_input(first):
    result = run(*START, "--aux", "mlm", "--pretrained", "first", "--output", "second")
    assert "warning: mlm starts from random weights: first/best.safetensors has none for it" in result.stderr
    config = json.loads((Path("second") / RUN).read_text())["config"]
    assert config["model"]["image_size"] == [32, 16]
    assert config["model"]["pretrained"] == "first/best.safetensors"


def test_train_lets_the_input_be_changed(first):
    settings = ["--set", "model.image_size=[16,8]", "--output", "second"]
    run(*START, "--pretrained", "first/last.safetensors", *settings)
    assert json.loads((Path("second") / RUN).read_text())["config"]["model"]["image_size"] == [16, 8]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--pretrained", "first", "--model", "ViT-B-16"], 3, "holds tiny, not ViT-B-16"),
        (["--pretrained", "frist/best.safetensors"], 3, "no such run, checkpoint"),
        (["--pretrained", "data/CUHK-PEDES"], 3, "no such file"),
        (["--pretrained", "data/CUHK-PEDES/reid_raw.json"], 3, "cannot be read"),
        (["--set", "triplet.margin=0.1"], 2, "'triplet' does not take part"),
        (["--aux", "triplet", "--set", "triplet.margin=-1"], 2, "objective triplet"),
        (["--set", "itc.temprature=1"], 2, "Did you mean temperature?"),
        (["--aux", "tir", "--set", "model.image_size=[30,16]"], 2, "objective tir"),
    ],
)
def test_wrong_starts_and_settings_are_explained(first, arguments, exit_code, message):
    assert message in run(*START, *arguments, exit_code=exit_code).stderr
    assert not list(Path("runs").glob("*"))

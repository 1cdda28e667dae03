"""Checkpoints in the format of IRRA's and SEN's published code: evaluated, queried and trained from as they are."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import published
import pytest
import tiny
import torch
from console import run

from tiprctl.config import ModelConfig, ObjectiveConfig
from tiprctl.errors import InputError
from tiprctl.evaluation import EvaluationData, score
from tiprctl.images import load_pixels
from tiprctl.models.clip import SIZES, Clip
from tiprctl.models.embedder import Embedder
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.weights import read_weights, sizes_of
from tiprctl.objectives.composition import Composition
from tiprctl.sources import load_embedder
from tiprctl.starting import build_start, with_start

CPU = torch.device("cpu")
SMALL = replace(
    tiny.CLIP,
    image_size=(384, 128),
    patch_size=16,
    stride=16,
    vision_width=64,
    vision_heads=1,
    text_width=64,
    text_heads=1,
    vocab_size=49408,
)
"""A CLIP that reads real captions and person crops, with attention heads as wide as those of all published ones."""


def state_of(clip, method):
    """The state dict of the published model around these towers, with the training heads of its method."""
    heads = {key.removeprefix("state."): value for key, value in published.arrays(method).items() if "state." in key}
    if method == "sen":
        heads |= {"decoder_pos_embed": torch.zeros(1, 193, 128), "norm_3.weight": torch.ones(128)}
    return {f"base_model.{name}": value for name, value in clip.state_dict().items()} | heads


def save(file, state, *, wrapped=True):
    """As the published trainer saves its best epoch, or the state dict alone."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], eps=1e-3)
    scheduler = {"milestones": (20, 50), "gamma": 0.1, "mode": "cosine", "base_lrs": [1e-5], "last_epoch": 30}
    whole = {"model": state, "optimizer": optimizer.state_dict(), "scheduler": scheduler, "epoch": 30, "iteration": 9}
    torch.save(whole if wrapped else state, file)
    return file


def small_clip(seed=0, **changes):
    clip = Clip(replace(SMALL, **changes))
    clip.initialise(torch.Generator().manual_seed(seed))
    return clip.eval()


@pytest.mark.parametrize("method", ["irra", "sen"])
@pytest.mark.parametrize(("prefix", "wrapped"), [("", True), ("module.", False)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 5e-3)])
@torch.no_grad()
def test_features_are_those_of_the_authors_model(tmp_path, method, prefix, wrapped, dtype, tolerance):
    state = {prefix + name: value.to(dtype) for name, value in state_of(published.clip(), method).items()}
    embedder = load_embedder(save(tmp_path / "best.pth", state, wrapped=wrapped), device=CPU)
    expected = published.arrays("clip_tiny_384x128")
    images = embedder.encoder.image_features(expected["image"])
    texts = embedder.encoder.text_features(expected["tokens"])
    ends = expected["tokens"].argmax(1)
    torch.testing.assert_close(images, expected["image_tokens"][:, 0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(texts, expected["text_tokens"][torch.arange(2), ends], rtol=tolerance, atol=tolerance)
    assert embedder.encoder.clip.config.quick_gelu
    assert f"published code of {method.upper()}" in embedder.description
    assert embedder.encoder.clip.visual.proj.dtype == torch.float32


def test_without_heads_the_method_stays_open(tmp_path):
    state = {name: value for name, value in state_of(published.clip(), "irra").items() if "base_model" in name}
    assert "of IRRA or SEN" in load_embedder(save(tmp_path / "best.pth", state), device=CPU).description


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"),
    [
        ((384, 128), 16, 16, (24, 8)),
        ((384, 128), 16, 12, (31, 10)),
        ((384, 128), 14, 14, (27, 9)),
        ((384, 128), 32, 32, (12, 4)),
        ((256, 128), 16, 16, (16, 8)),
        ((224, 224), 16, 16, (14, 14)),
    ],
)
def test_the_input_is_read_off_the_position_embedding(tmp_path, size, patch, stride, grid):
    clip = small_clip(image_size=size, patch_size=patch, stride=stride)
    sizes = sizes_of(read_weights(save(tmp_path / "best.pth", state_of(clip, "irra"))))
    assert (sizes.image_size, sizes.patch_size, sizes.stride, sizes.grid) == (size, patch, stride, grid)
    assert load_embedder(tmp_path / "best.pth", device=CPU).encoder.clip.config == clip.config


def test_overlapping_patches_keep_their_positions(tmp_path):
    clip = published.clip(stride=12)
    loaded = load_embedder(save(tmp_path / "best.pth", state_of(clip, "sen")), device=CPU).encoder.clip
    assert loaded.config.stride == 12
    assert torch.equal(loaded.visual.positional_embedding, clip.visual.positional_embedding)


def test_eval_measures_them(cuhk_manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = small_clip()
    save(Path("best.pth"), state_of(clip, "sen"))
    done = run("eval", "best.pth", "--data", cuhk_manifest.root, "--json")
    split = cuhk_manifest.split("test")
    features = EvaluationData(split, (384, 128)).encode(Embedder(DualEncoder(clip), device=CPU), lambda n: None)
    expected = score(features, split).text_to_image
    figures = json.loads(done.stdout)["results"][0]
    assert (figures["model"], figures["selected_on"]) == ("best.pth", "test")
    assert figures["mAP"] == pytest.approx(expected.mean_ap, abs=0.01)
    assert figures["R@1"] == pytest.approx(expected.recall[1], abs=0.01)
    assert "published code of SEN" in done.stderr


def test_query_ranks_by_them(cuhk_manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clip = small_clip()
    save(Path("best.pth"), state_of(clip, "irra"))
    gallery = cuhk_manifest.root / "imgs"
    done = run("query", "a red coat", "--gallery", gallery, "--model", "best.pth", "--json", "--top", "3")
    hits = json.loads(done.stdout)["results"][0]["hits"]
    embedder = Embedder(DualEncoder(clip), device=CPU)
    text = embedder.embed_texts(["a red coat"])[0]
    for hit in hits:
        image = embedder.embed_images(load_pixels(Path(hit["path"]), (384, 128))[None])[0]
        assert hit["score"] == pytest.approx(float(np.dot(image, text)), abs=1e-4)
    assert len(hits) == 3
    assert "published code of IRRA" in done.stderr


def test_a_file_that_would_run_code_is_refused(cuhk_root, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": state_of(published.clip(), "irra"), "optimizer": Payload()}, tmp_path / "best.pth")
    result = run("query", "a man", "--gallery", cuhk_root, "--model", tmp_path / "best.pth", exit_code=3)
    assert "run code" in result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model.visual.ln_post.weight": None}, r"1 missing \(visual.ln_post.weight\)"),
        ({"base_model.visual.conv1.weight": None}, r"1 missing \(visual.conv1.weight\)"),
        ({"base_model.text_projection": torch.ones(64, 20)}, r"proj is \(128, 128\), expected \(128, 20\)"),
        ({"base_model.visual.positional_embedding": torch.ones(191, 128)}, "190 patches of 16 pixels"),
        ({"base_model.odd": torch.ones(1)}, r"1 unexpected \(odd\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    state = {**state_of(published.clip(), "sen"), **change}
    save(tmp_path / "best.pth", {name: value for name, value in state.items() if value is not None})
    with pytest.raises(InputError, match=message) as caught:
        load_embedder(tmp_path / "best.pth", device=CPU)
    assert "best.pth" in str(caught.value)


def test_a_training_starts_with_their_towers_at_their_input(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "small", SMALL)
    clip = small_clip(stride=12)
    save(tmp_path / "best.pth", state_of(clip, "sen"))
    model = with_start(ModelConfig(name="ViT-B-16", image_size=(64, 32)), str(tmp_path / "best.pth"))
    assert (model.name, model.image_size, model.stride) == ("small", (384, 128), 12)
    start = build_start(model, torch.Generator())
    assert start.encoder.clip.config == clip.config
    assert all(map(torch.equal, start.encoder.clip.state_dict().values(), clip.state_dict().values()))


@pytest.mark.parametrize(("method", "objective", "other"), [("irra", "mlm", "tir"), ("sen", "tir", "mlm")])
def test_a_training_goes_on_with_their_heads_but_not_with_their_identities(
    tmp_path, monkeypatch, method, objective, other
):
    monkeypatch.setitem(SIZES, "small", published.clip().config)
    file = save(tmp_path / "best.pth", state_of(published.clip(), method))
    start = build_start(with_start(ModelConfig(), str(file)), torch.Generator())
    known = ObjectiveConfig(name="id"), ObjectiveConfig(name=objective, options={"depth": 2})
    composition = Composition(start.encoder, (*known, ObjectiveConfig(name=other)), identities=9)
    remarks = dict(start.load_objectives(composition.objectives, "abc"))
    assert list(remarks) == ["id", other]
    assert list(remarks.values()) == [
        f"id starts from random weights: {file} does not tell whose identities it learnt",
        f"{other} starts from random weights: {file} has none for it",
    ]
    prefixes = getattr(published, method.upper())
    theirs = published.composition(prefixes, published.arrays(method), *known).objectives
    taken = composition.objectives[objective].state_dict()
    assert all(torch.equal(taken[name], value) for name, value in theirs[objective].state_dict().items())
    assert not torch.equal(composition.objectives["id"].classifier.weight, theirs["id"].classifier.weight)


def test_a_training_at_another_input_resizes_their_positions(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "small", SMALL)
    save(tmp_path / "best.pth", state_of(small_clip(), "irra"))
    model = replace(with_start(ModelConfig(), str(tmp_path / "best.pth")), image_size=(192, 64))
    assert build_start(model, torch.Generator()).encoder.clip.config.grid == (12, 4)


def test_a_size_without_a_name_cannot_be_trained(tmp_path):
    save(tmp_path / "best.pth", state_of(small_clip(), "irra"))
    with pytest.raises(InputError, match=r"none of the known sizes[\s\S]*ViT-B-16"):
        with_start(ModelConfig(), str(tmp_path / "best.pth"))

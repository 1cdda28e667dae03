import errno
import os
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from tiprctl.checkpoint import (
    encoder_header,
    load_encoder,
    read_checkpoint,
    save_checkpoint,
    weights_fingerprint,
)
from tiprctl.checkpoint_file import find_source, is_own, named_again, vectors_fingerprint
from tiprctl.config import ModelConfig, override, to_dict
from tiprctl.errors import InputError, UsageError
from tiprctl.models.clip import SIZES, Clip
from tiprctl.runs import BEST, LAST, RESULT, RUN, latest_run, mark_latest, write_json
from tiprctl.sources import Preview, load_embedder, preview
from tiprctl.starting import build_start
from tiprctl.training import Trainer

CPU = torch.device("cpu")
HEADER = {
    "config": to_dict(tiny.recipe()),
    "dataset": "d",
    "data_root": "data/d",
    "data_fingerprint": "f",
    "epoch": 3,
    "selected_on": "val",
    "fingerprint": "abc",
}


@pytest.fixture
def checkpoint(tmp_path):
    encoder = tiny.encoder()
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_checkpoint(tmp_path / BEST, tensors | {"objectives.x": torch.ones(2)}, HEADER | encoder_header(encoder))
    return tmp_path / BEST


def make_run(folder, time, *, finished=True):
    folder.mkdir(parents=True)
    write_json(folder / RUN, {"config": {}, "dataset": "d", "data_root": "data/d", "data_fingerprint": "f"})
    (folder / BEST).touch()
    if finished:
        write_json(folder / RESULT, {"finished": datetime.fromtimestamp(time, UTC).isoformat()})


def test_an_encoder_survives_the_file(checkpoint):
    encoder, header = load_encoder(checkpoint)
    batch = tiny.batch()
    torch.testing.assert_close(encoder.image_features(batch.pixels), tiny.encoder().image_features(batch.pixels))
    assert header["epoch"] == 3


def test_only_the_tensors_asked_for_are_read(checkpoint):
    tensors, _ = read_checkpoint(checkpoint, "objectives.")
    assert tensors.keys() == {"x"}


def test_what_is_known_before_weights_are_read(tmp_path):
    header = HEADER | encoder_header(tiny.encoder(head="division")) | {"captions": {"tagger": "textblob"}}
    save_checkpoint(tmp_path / "no-weights", {}, header)
    assert preview(tmp_path / "no-weights") == Preview("division", "d", Path("data/d"), "textblob")
    older = {key: value for key, value in header.items() if key not in ("data_root", "captions")}
    save_checkpoint(tmp_path / "older", {}, older)
    assert preview(tmp_path / "older") == Preview("division", "d")
    assert preview("ViT-B-16/openai") == Preview("global")


def test_an_embedder_knows_where_it_comes_from(checkpoint):
    embedder = load_embedder(checkpoint, device=CPU)
    assert str(checkpoint) in embedder.description
    assert "epoch 3, chosen on val" in embedder.description
    assert (embedder.source, embedder.precision) == (str(checkpoint), "float32")
    assert (embedder.origin.data_root, embedder.origin.data_fingerprint) == (Path("data/d"), "f")
    vectors = embedder.embed_images(np.zeros((2, 16, 8, 3), np.uint8))
    assert vectors.shape == (2, embedder.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_damaged_foreign_and_missing_files_are_told_apart(checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content[: len(content) // 2])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(1)}, foreign)
    assert is_own(checkpoint)
    assert not is_own(foreign)
    with pytest.raises(InputError, match=r"damaged[\s\S]*damaged.safetensors"):
        read_checkpoint(damaged)
    with pytest.raises(InputError, match="Not a checkpoint of tiprctl"):
        read_checkpoint(foreign)
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    save_checkpoint(tmp_path / "new.safetensors", {"a": torch.ones(1)}, {"format": 99})
    with pytest.raises(InputError, match="Upgrade tiprctl"):
        read_checkpoint(tmp_path / "new.safetensors")


def test_a_checkpoint_of_another_shape_names_the_tensor_and_both_shapes(tmp_path):
    encoder = tiny.encoder()
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors["encoder.clip.text_projection"] = torch.ones(16, 20)
    save_checkpoint(tmp_path / "x.safetensors", tensors, HEADER | encoder_header(encoder))
    with pytest.raises(
        InputError, match=r"clip.text_projection is \(16, 20\), expected \(16, 16\)[\s\S]*x.safetensors"
    ):
        load_encoder(tmp_path / "x.safetensors")


def test_a_pickle_that_would_run_code_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    for protocol, name in ((2, "a.pth"), (4, "b.pt")):
        (tmp_path / name).write_bytes(pickle.dumps({"model": Payload()}, protocol=protocol))
        with pytest.raises(InputError, match=name):
            load_embedder(tmp_path / name, device=CPU)
    torch.save({"model": Payload()}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"run code[\s\S]*c.pth"):
        load_embedder(tmp_path / "c.pth", device=CPU)
    assert not (tmp_path / "ran").exists()


def test_a_published_clip_file_can_be_used_as_it_is(tmp_path):
    clip = build_start(ModelConfig(name="tiny", pretrained="none", image_size=(64, 64)), torch.Generator()).encoder.clip
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    embedder = load_embedder(tmp_path / "clip.pt", device=CPU)
    assert "not fine-tuned" in embedder.description
    assert embedder.image_size == (384, 128)
    assert embedder.origin.dataset is None


def test_the_newest_finished_run_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no finished run[\s\S]*--model ViT-B-16/openai[\s\S]*tiprctl train"):
        find_source(None)
    make_run(tmp_path / "runs" / "b", 200)
    make_run(tmp_path / "runs" / "a", 100)
    make_run(tmp_path / "runs" / "c", 300, finished=False)
    assert find_source(None).parent.name == "b"
    assert find_source("runs/latest").parent.name == "b"
    assert latest_run().folder.name == "b"


def test_sources_are_runs_files_or_tags(checkpoint, tmp_path):
    make_run(tmp_path / "run", 0)
    assert find_source(tmp_path / "run") == tmp_path / "run" / BEST
    assert find_source(checkpoint) == checkpoint
    assert find_source("ViT-B-16/openai") is None
    with pytest.raises(InputError, match="no such run, checkpoint or pretrained CLIP"):
        find_source("nothing/here")


def test_a_run_without_checkpoint_says_how_to_go_on(tmp_path):
    make_run(tmp_path / "run", 0)
    (tmp_path / "run" / BEST).unlink()
    with pytest.raises(InputError, match="tiprctl train --resume"):
        find_source(tmp_path / "run")
    (tmp_path / "run" / LAST).touch()
    assert find_source(tmp_path / "run").name == LAST


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such file[\s\S]*run.json"):
        find_source(tmp_path)


def test_a_damaged_run_file_is_named(tmp_path):
    make_run(tmp_path / "run", 0)
    (tmp_path / "run" / RUN).write_text("{")
    with pytest.raises(InputError, match=r"Damaged JSON[\s\S]*run.json"):
        find_source(tmp_path / "run")


def test_fingerprints_follow_names_and_contents():
    state = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert weights_fingerprint(state) == weights_fingerprint(dict(reversed(state.items())))
    assert weights_fingerprint(state) != weights_fingerprint({"a": torch.ones(2), "b": torch.ones(1)})
    assert weights_fingerprint(state) != weights_fingerprint({"a": torch.ones(2), "c": torch.zeros(1)})
    assert weights_fingerprint({"n": torch.tensor(3)}) != weights_fingerprint({"n": torch.tensor(4)})


def test_unknown_sizes_and_heads_list_the_choices():
    with pytest.raises(UsageError, match="Did you mean ViT-B-16"):
        build_start(ModelConfig(name="ViT-B16", pretrained="none"), torch.Generator())
    with pytest.raises(UsageError, match="Choices: global"):
        build_start(ModelConfig(name="tiny", pretrained="none", head="globl"), torch.Generator())


def test_size_and_stride_of_the_input_are_the_configurations():
    model = ModelConfig(name="tiny", pretrained="none", image_size=(384, 128), stride=4)
    assert build_start(model, torch.Generator()).encoder.clip.config.grid == (95, 31)


def test_a_model_is_used_in_the_precision_of_its_training(tmp_path):
    encoder = tiny.encoder()
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    header = HEADER | encoder_header(encoder) | {"config": to_dict(tiny.recipe(amp="bf16"))}
    save_checkpoint(tmp_path / BEST, tensors, header)
    embedder = load_embedder(tmp_path / BEST, device=CPU)
    assert embedder.dtype is torch.bfloat16
    assert embedder.precision == "bfloat16"


def test_the_fingerprint_of_vectors_changes_with_all_that_they_depend_on():
    header = HEADER | encoder_header(tiny.encoder(head="parts"))
    changes = [
        {"fingerprint": "abd"},
        {"clip": header["clip"] | {"image_size": [32, 8]}},
        {"clip": header["clip"] | {"quick_gelu": False}},
        {"head": "global"},
        {"head_options": header["head_options"] | {"depth": 2}},
        {"bert": {"vocabulary": ["a"]}},
    ]
    prints = [vectors_fingerprint(header | change) for change in changes]
    assert len({vectors_fingerprint(header), *prints}) == 1 + len(changes)
    assert vectors_fingerprint(header | {"epoch": 4, "format": 1}) == vectors_fingerprint(header)


@pytest.mark.parametrize("header", ["{", "[]", "{}", '{"format": 1}', '{"format": "x"}'])
def test_a_damaged_header_is_explained(tmp_path, header):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"tiprctl": header})
    with pytest.raises(InputError, match=r"header is damaged[\s\S]*x.safetensors"):
        load_embedder(tmp_path / "x.safetensors", device=CPU)


@pytest.mark.parametrize("content", ["{}", "[]", "3"])
def test_a_run_file_that_describes_no_run_is_named(tmp_path, content):
    make_run(tmp_path / "run", 0)
    (tmp_path / "run" / RUN).write_text(content)
    with pytest.raises(InputError, match=r"Not an object with config, data_fingerprint[\s\S]*run.json"):
        find_source(tmp_path / "run")


def test_a_full_disk_leaves_the_old_checkpoint_whole(checkpoint, monkeypatch):
    content = checkpoint.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        save_checkpoint(checkpoint, {"a": torch.ones(1)}, HEADER)
    assert checkpoint.read_bytes() == content
    assert os.listdir(checkpoint.parent) == [BEST]


def test_the_link_to_the_latest_run_is_a_mere_convenience(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "a", 100)
    make_run(tmp_path / "runs" / "b", 200)
    mark_latest(tmp_path / "runs" / "a")
    assert (tmp_path / "runs" / "latest").resolve().name == "a"
    assert find_source("runs/latest").parent.name == "b"
    (tmp_path / "runs" / "latest").unlink()
    (tmp_path / "runs" / "latest").mkdir()
    mark_latest(tmp_path / "runs" / "b")
    assert sorted(os.listdir(tmp_path / "runs")) == ["a", "b", "latest"]


def test_a_published_file_can_be_given_with_the_name_of_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = build_start(ModelConfig(name="tiny", pretrained="none", image_size=(64, 64)), torch.Generator()).encoder.clip
    torch.save(clip.state_dict(), "clip.pt")
    exact, quick = (load_embedder(f"{name}/clip.pt", device=CPU) for name in ("tiny", "tiny-quickgelu"))
    assert not exact.encoder.clip.config.quick_gelu
    assert quick.encoder.clip.config.quick_gelu
    assert exact.fingerprint != quick.fingerprint
    named = build_start(ModelConfig(name="tiny-quickgelu", pretrained="none"), torch.Generator())
    assert named.encoder.clip.config.quick_gelu


def test_a_run_goes_on_without_the_file_it_started_from(cuhk_manifest, tmp_path):
    square = replace(tiny.CLIP, image_size=(16, 16), vocab_size=49408, vision_heads=1, text_heads=1)
    clip = Clip(square)
    clip.initialise(torch.Generator().manual_seed(0))
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    changes = {"model.pretrained": str(tmp_path / "clip.pt")}
    config = override(tiny.recipe(), changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", square)
        Trainer(config, cuhk_manifest, tmp_path / "run", device=CPU).run()
    (tmp_path / "clip.pt").unlink()
    again = Trainer(config, cuhk_manifest, tmp_path / "run", device=CPU)
    assert again.composition.encoder.clip.config.vision_width == square.vision_width


def test_a_model_is_named_again_by_its_run_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"), 100)
    best = Path("runs/a") / BEST
    assert named_again(None, find_source(None)) == "runs/a"
    assert named_again("runs/latest", find_source("runs/latest")) == "runs/a"
    assert named_again("runs/a", find_source("runs/a")) == "runs/a"
    assert named_again(best, find_source(best)) == str(best)
    assert named_again("ViT-B-16/openai", find_source("ViT-B-16/openai")) == "ViT-B-16/openai"

"""An export gives torch's vectors for any batch and any head, and one that does not is refused and not kept."""

import json
import logging
import os
import shutil
from functools import cache

import numpy as np
import onnx
import pytest
import tiny
import torch

from tiprctl import exporting
from tiprctl.errors import CheckError, InputError, UsageError
from tiprctl.exported import CARD, IMAGE, TEXT, ExportedModel
from tiprctl.exporting import TOLERANCE, export_model
from tiprctl.models.bert import Bert, BertSizes
from tiprctl.models.clip import Clip
from tiprctl.models.embedder import Embedder, ModelOrigin
from tiprctl.models.encoder import DualEncoder

CPU = torch.device("cpu")
SENTENCES = ["", "a", "A man in a red coat with a backpack &amp; a hat", "word " * 100]
FILES = [CARD, *(name + suffix for name in (IMAGE, TEXT) for suffix in ("", ".data"))]


def embedder(encoder: DualEncoder) -> Embedder:
    return Embedder(encoder, device=CPU, amp="off", origin=ModelOrigin("a model", source="runs/a", vectors="print"))


def with_bert() -> DualEncoder:
    pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh", "red", "coat", "##s"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = Bert(BertSizes(vocab_size=len(vocabulary), **sizes), vocabulary)
    clip = Clip(tiny.CLIP)
    clip.initialise(torch.Generator().manual_seed(0))
    return DualEncoder(clip, bert=bert)


ENCODERS = {
    "global": tiny.readable,
    "parts": lambda: tiny.readable(head="parts"),
    "division": lambda: tiny.readable(head="division"),
    "bert": with_bert,
}


@pytest.fixture(scope="module")
def export_of(tmp_path_factory):
    """A function from the name of one of `ENCODERS` to the model and its export, which is written once."""

    @cache
    def write(name):
        model = embedder(ENCODERS[name]())
        return model, export_model(model, tmp_path_factory.mktemp(name) / "export")

    return write


@pytest.mark.parametrize("name", ENCODERS)
def test_an_export_gives_the_vectors_of_torch(export_of, name):
    model, written = export_of(name)
    assert sorted(os.listdir(written.folder)) == sorted(FILES)
    exported = ExportedModel(written.folder)
    assert set(written.differences) == {TEXT, IMAGE}
    assert max(written.differences.values()) <= TOLERANCE["float32"]
    pixels = np.random.default_rng(1).integers(0, 256, (5, *model.image_size, 3), np.uint8)
    for some in (pixels, pixels[:1]):
        np.testing.assert_allclose(exported.embed_images(some), model.embed_images(some), atol=1e-4)
    for texts in (SENTENCES, SENTENCES[1:2], SENTENCES[::-1] * 100):
        np.testing.assert_allclose(exported.embed_texts(texts), model.embed_texts(texts), atol=1e-4)
    assert exported.embed_texts([]).shape == (0, model.width)


def test_an_export_knows_what_it_was_made_of(export_of):
    model, written = export_of("global")
    exported = ExportedModel(written.folder)
    for name in ("width", "image_size", "fingerprint", "source", "precision"):
        assert getattr(exported, name) == getattr(model, name)
    assert exported.description == "a model, exported (float32)"
    assert exported.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert json.loads((written.folder / CARD).read_text())["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_float16_halves_the_size_and_keeps_unit_length(tmp_path, export_of):
    model, whole = export_of("global")
    half = export_model(model, tmp_path / "half", float16=True)
    exported = ExportedModel(tmp_path / "half")
    assert exported.precision == "float16"
    assert exported.fingerprint == model.fingerprint
    assert half.size(TEXT) < 0.6 * whole.size(TEXT)
    assert 0 < max(half.differences.values()) <= TOLERANCE["float16"]
    vectors = exported.embed_texts(SENTENCES)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.embed_texts(SENTENCES), atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    pixels = np.random.default_rng(1).integers(0, 256, (3, *model.image_size, 3), np.uint8)
    np.testing.assert_allclose(exported.embed_images(pixels), model.embed_images(pixels), atol=5e-3)
    weights = {one.name: one.data_type for one in onnx.load(tmp_path / "half" / TEXT).graph.initializer}
    assert weights["encoder.clip.token_embedding.weight"] == onnx.TensorProto.FLOAT16


@pytest.fixture
def quick(monkeypatch, export_of):
    """Graphs are those of the global head, copied: for what does not depend on how they are written."""
    _, written = export_of("global")

    def copy(tower, file, example, *, float16):
        for name in (file.name, f"{file.name}.data"):
            shutil.copyfile(written.folder / name, file.with_name(name))

    monkeypatch.setattr(exporting, "_write_graph", copy)


@pytest.mark.usefixtures("quick")
def test_an_export_that_differs_is_refused_and_the_one_before_stays(tmp_path, monkeypatch):
    model = embedder(tiny.readable())
    folder = tmp_path / "export"
    export_model(model, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(CheckError, match=r"differs from torch by .*, more than 0.0001; it is not kept\ntext.onnx\n"):
        # The copied graphs are those of the first model.
        export_model(embedder(tiny.readable(seed=1)), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(CheckError):
        export_model(embedder(tiny.readable(seed=1)), tmp_path / "new")
    broken = tiny.readable()
    with torch.no_grad():
        broken.clip.visual.ln_post.weight.fill_(torch.nan)
    with pytest.raises(CheckError, match=r"by nan, more[\s\S]*image.onnx"):
        export_model(embedder(broken), tmp_path / "new")
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.usefixtures("quick")
def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    model = embedder(tiny.readable())
    export_model(model, tmp_path / "export")
    export_model(model, tmp_path / "export")
    (tmp_path / "export" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"holds something else than an export: notes.txt[\s\S]*--output"):
        export_model(model, tmp_path / "export")
    with pytest.raises(InputError, match="Cannot write: Not a directory"):
        export_model(model, tmp_path / "export" / "notes.txt")
    assert (tmp_path / "export" / "notes.txt").is_file()


@pytest.mark.usefixtures("quick")
def test_an_export_is_as_readable_as_any_new_file(tmp_path):
    export_model(embedder(tiny.readable()), tmp_path / "export")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "export").stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "export").iterdir()} == {(tmp_path / "file").stat().st_mode}


def test_the_libraries_are_as_talkative_after_as_before():
    logger = logging.getLogger("onnxscript")
    level = logger.level
    with pytest.raises(ValueError, match="inside"), exporting._quiet():
        assert not logger.isEnabledFor(logging.WARNING)
        raise ValueError("inside")
    assert logger.level == level

"""A model is found by its name with or without torch: an export that fits is used, any other is told of."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from tiprctl import vector_model
from tiprctl.errors import InputError, UsageError
from tiprctl.exported import CARD, IMAGE, TEXT, ExportedModel
from tiprctl.exporting import export_model
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.images import load_pixels
from tiprctl.models.clip import SIZES, Clip
from tiprctl.models.embedder import Embedder
from tiprctl.runs import BEST, LAST
from tiprctl.sources import load_embedder
from tiprctl.vector_model import export_folder, load_vector_model

CPU = torch.device("cpu")


@pytest.fixture
def here(exported_run, tmp_path, monkeypatch):
    """A copy of it as the working folder."""
    shutil.copytree(exported_run, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def load(source, **how):
    """The model and what is told."""
    told = []
    return load_vector_model(source, tell=told.append, **how), told


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("source", [None, "runs/latest", "runs/a", f"runs/a/{BEST}", "runs/a/export"])
def test_an_export_is_used_by_any_name_of_its_model(source):
    model, told = load(source)
    assert isinstance(model, ExportedModel)
    assert (model.source, told) == ("runs/a" if source in (None, "runs/latest") else source, [])
    assert model.fingerprint == load_embedder("runs/a", device=CPU).fingerprint


@pytest.mark.usefixtures("here")
def test_neither_torch_nor_what_checks_configurations_is_imported_to_embed():
    code = (
        "import sys, numpy as np\n"
        "from tiprctl.vector_model import load_vector_model\n"
        "model = load_vector_model(None)\n"
        "model.embed_texts(['a woman in a red coat'])\n"
        "model.embed_images(np.zeros((1, *model.image_size, 3), np.uint8))\n"
        "print(sorted({'torch', 'pandas', 'pydantic', 'lance', 'onnx', 'typer', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.usefixtures("here")
def test_a_sentence_is_embedded_without_the_image_tower():
    model, _ = load("runs/a")
    Path("runs/a/export", IMAGE).write_bytes(b"?")
    expected = load_embedder("runs/a", device=CPU).embed_texts(["a red coat"])
    np.testing.assert_allclose(model.embed_texts(["a red coat"]), expected, atol=1e-4)
    with pytest.raises(InputError, match=r"The export is damaged: [\s\S]*image.onnx\nExport the model again"):
        model.embed_images(np.zeros((1, *model.image_size, 3), np.uint8))


def cut(folder: Path) -> None:
    with (folder / f"{TEXT}.data").open("r+b") as file:
        file.truncate(100)


def newer(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({"format": card["format"] + 1}))


DAMAGE = {
    "weights cut short": (cut, f"damaged: this file is missing or not whole: {{}}/{TEXT}.data"),
    "graph missing": (lambda folder: (folder / IMAGE).unlink(), f"missing or not whole: {{}}/{IMAGE}"),
    "card is no JSON": (lambda folder: (folder / CARD).write_text("{"), "Damaged JSON"),
    "card lacks keys": (lambda folder: (folder / CARD).write_text('{"format": 1}'), "Not an object with"),
    "format is no number": (lambda folder: (folder / CARD).write_text('{"format": "x"}'), "has format x, newer than"),
    "newer format": (newer, "has format 2, newer than this program's 1: {}/export.json"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_an_export_that_cannot_be_used_is_told_of_and_torch_takes_its_place(damage, said):
    damage(Path("runs/a/export"))
    model, told = load("runs/a")
    assert isinstance(model, Embedder)
    (note,) = told
    assert said.format("runs/a/export") in note
    assert "It is not used." in note
    assert note.endswith("Export the model again: tiprctl export.")
    with pytest.raises(InputError, match="Export the model again"):
        load("runs/a/export")


@pytest.mark.usefixtures("here")
def test_an_export_of_other_weights_is_told_of_and_not_used():
    tiny.run_folder(Path("runs/a"), tiny.readable(seed=1), fingerprint="other")
    model, told = load("runs/a")
    assert isinstance(model, Embedder)
    assert told == [
        "The export is not of this model as it is now: runs/a/export. It is not used. "
        "Export the model again: tiprctl export."
    ]
    # Whoever names the export itself wants that one.
    assert isinstance(load("runs/a/export")[0], ExportedModel)


@pytest.mark.usefixtures("here")
def test_without_an_export_nothing_is_told():
    shutil.rmtree("runs/a/export")
    model, told = load("runs/a")
    assert isinstance(model, Embedder)
    assert told == []
    for source in ("runs/b", "nothing"):
        with pytest.raises(InputError, match="no such run"):
            load(source)
    shutil.rmtree("runs")
    with pytest.raises(UsageError, match="no finished run"):
        load(None)


@pytest.mark.usefixtures("here")
def test_torch_embeds_where_it_is_quicker_or_asked_for(monkeypatch):
    monkeypatch.setattr(vector_model, "_better_on_cuda", lambda: True)
    monkeypatch.setattr("tiprctl.precision.torch.cuda.is_available", lambda: False)
    kinds = {
        (device, bulk): type(load("runs/a", device=device, bulk=bulk)[0])
        for device in (None, "cpu")
        for bulk in (False, True)
    }
    assert kinds.pop((None, True)) is Embedder
    assert set(kinds.values()) == {ExportedModel}
    assert isinstance(load("runs/a", device="cpu:0")[0], Embedder)
    monkeypatch.setattr(vector_model, "_better_on_cuda", lambda: False)
    assert isinstance(load("runs/a", bulk=True)[0], ExportedModel)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("knows", [False, True])
@pytest.mark.parametrize(
    ("how", "gpu"), [({"bulk": True}, True), ({"device": "cuda"}, None), ({"device": "cpu"}, False)]
)
def test_an_export_that_is_named_is_used_without_its_run_on_every_device(monkeypatch, knows, how, gpu):
    Path("runs/a/export").rename("deploy")
    shutil.rmtree("runs")
    monkeypatch.setattr(vector_model, "knows_gpu", lambda: knows)
    monkeypatch.setattr(vector_model, "_better_on_cuda", lambda: True)
    asked = []
    monkeypatch.setattr(
        vector_model,
        "ExportedModel",
        lambda folder, *, gpu, source: asked.append(gpu) or ExportedModel(folder, source=source),
    )
    model, told = load("deploy/", **how)
    assert model.source == "deploy"
    assert asked == [knows if gpu is None else gpu]
    assert ["does not run on cuda" in one for one in told] == ([True] if gpu is None and not knows else [])


@pytest.mark.parametrize(
    ("driver", "known", "better"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_cuda_is_looked_for_only_behind_a_driver(monkeypatch, driver, known, better):
    def library(name):
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(vector_model.ctypes, "CDLL", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vector_model, "knows_gpu", lambda: known)
    assert vector_model._better_on_cuda() is better


def test_an_export_of_a_published_file_is_known_by_its_name_and_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = Clip(replace(SIZES["tiny"], image_size=(64, 64)))
    clip.initialise(torch.Generator().manual_seed(0))
    torch.save(clip.state_dict(), "clip.pt")
    source = "tiny/clip.pt"
    assert export_folder(source) == Path("clip.pt.tiny.export")
    expected = load_embedder(source, device=CPU)
    export_model(expected, export_folder(source))
    model, told = load(source)
    assert isinstance(model, ExportedModel)
    assert (model.source, model.fingerprint, told) == (source, expected.fingerprint, [])
    np.testing.assert_allclose(model.embed_texts(["a coat"]), expected.embed_texts(["a coat"]), atol=1e-4)
    code = f"import sys, tiprctl.vector_model as v; v.load_vector_model({source!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    os.utime("clip.pt", (1, 1))
    model, told = load(source)
    assert isinstance(model, Embedder)
    assert "not of this model as it is now: clip.pt.tiny.export" in told[0]


def test_exports_lie_beside_their_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.run_folder(Path("runs/a"), tiny.readable())
    shutil.copy(f"runs/a/{BEST}", "copied.safetensors")
    shutil.copy(f"runs/a/{BEST}", f"runs/a/{LAST}")
    places = {
        None: "runs/a/export",
        f"runs/a/{BEST}": "runs/a/export",
        f"runs/a/{LAST}": f"runs/a/{LAST}.export",
        "copied.safetensors": "copied.safetensors.export",
        "./copied.safetensors": "copied.safetensors.export",
        str(tmp_path / "copied.safetensors"): str(tmp_path / "copied.safetensors.export"),
        f"ViT-B-16/{tmp_path}/copied.safetensors": f"{tmp_path}/copied.safetensors.ViT-B-16.export",
        "ViT-B-16/openai": "exports/ViT-B-16-openai",
        "ViT-B-16/../clip.pt": "exports/ViT-B-16-..-clip.pt",
    }
    assert {source: str(export_folder(source)) for source in places} == places


@pytest.mark.parametrize("kind", ["run", "own file", "published file"])
def test_an_export_is_found_from_any_folder_and_named_as_its_model_is_there(here, tmp_path, monkeypatch, kind):
    source = {"run": "runs/a", "own file": "best.safetensors", "published file": "clip.pt"}[kind]
    if kind == "published file":
        torch.save({"weights": 1}, source)
        shutil.copytree("runs/a/export", export_folder(source))
        card = json.loads((export_folder(source) / CARD).read_text())
        card |= {"source": source, "weights": vector_model.weights_stamp(source)}
        (export_folder(source) / CARD).write_text(json.dumps(card))
    elif kind == "own file":
        shutil.copy(f"runs/a/{BEST}", source)
        shutil.copytree("runs/a/export", export_folder(source))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for place in (str(tmp_path / "here" / source), f"../here/{source}"):
        model, told = load(place)
        assert isinstance(model, ExportedModel)
        assert (model.source, told) == (place, [])
        assert ModelIdentity.of(model).source == str((tmp_path / "here" / source).resolve())


@pytest.mark.usefixtures("here")
def test_the_page_runs_without_torch():
    page = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    Path("runs/a/export").rename("deploy")
    Path("crops").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 20, 3), np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(f"crops/{number}.png")
    refused = "import sys; sys.modules['torch'] = None\n"
    done = subprocess.run([sys.executable, "-c", refused + code], capture_output=True, text=True, check=True)
    model = load_embedder("runs/a", device=CPU)
    crops = np.stack([load_pixels(f"crops/{number}.png", model.image_size) for number in range(3)])
    scores = model.embed_images(crops) @ model.embed_texts(["a woman in a red coat"])[0]
    printed = {path: float(score) for score, path in map(str.split, done.stdout.splitlines())}
    assert printed == {f"crops/{number}.png": pytest.approx(score, abs=1e-3) for number, score in enumerate(scores)}
    assert list(printed) == [f"crops/{number}.png" for number in np.argsort(-scores)]

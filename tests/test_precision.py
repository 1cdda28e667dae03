from itertools import islice

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from tiprctl.cli.app import app
from tiprctl.config import override
from tiprctl.data.manifest import read_manifest
from tiprctl.data.pruning import prune_captions
from tiprctl.errors import UsageError
from tiprctl.objectives.composition import Composition
from tiprctl.precision import amp_dtype, autocast, find_device
from tiprctl.recipes import RECIPES, find_recipe
from tiprctl.training import Trainer

CPU = torch.device("cpu")
HALVES = (torch.bfloat16, torch.float16)
DELICATE = {
    *("_softmax", "_log_softmax", "log", "exp", "sqrt"),
    *("native_layer_norm", "native_batch_norm", "linalg_vector_norm"),
}
"""The kernels that softmax, logarithms and norms come down to."""


def test_modes_name_their_types():
    assert [amp_dtype(mode, CPU) for mode in ("bf16", "fp16", "off", "auto")] == [
        torch.bfloat16,
        torch.float16,
        None,
        None,
    ]


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_what_the_gpu_computes_natively(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert amp_dtype("auto", torch.device("cuda")) is expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16"])
def test_auto_takes_bfloat16_on_the_cpu_for_training_where_it_is_native(monkeypatch, unit, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", unit: native})
    assert amp_dtype("auto", CPU, training=True) is (torch.bfloat16 if native else None)
    assert amp_dtype("auto", CPU) is None
    assert amp_dtype("off", CPU, training=True) is None


def test_methods_are_compared_in_float32_on_the_built_in_data_and_all_else_takes_what_is_native():
    compared = [find_recipe(name, "synth-pedes") for name in RECIPES if name != "synth"]
    assert {config.amp for config in compared} == {"off"}
    assert {config.amp for config in RECIPES.values()} == {find_recipe(None, "synth-pedes").amp} == {"auto"}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_changes_matrix_products_only_when_asked(dtype):
    with autocast(CPU, dtype):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


def test_a_device_that_is_not_there_is_explained():
    assert find_device("cpu") == CPU
    for name in ("tpu9", "cuda:77"):
        with pytest.raises(UsageError, match=rf"'{name}' cannot be used[\s\S]*--device"):
            find_device(name)


class Watched(TorchDispatchMode):
    """Keeps the names of delicate kernels, and of those given half precision, beneath the casts of autocast itself."""

    def __init__(self):
        super().__init__()
        self.seen, self.half = set(), set()

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        name = operation.overloadpacket.__name__
        if name in DELICATE:
            self.seen.add(name)
            if any(isinstance(each, torch.Tensor) and each.dtype in HALVES for each in given):
                self.half.add(name)
        return operation(*given, **named or {})


@pytest.mark.parametrize("recipe", RECIPES)
def test_autocast_leaves_softmax_logarithms_and_norms_to_float32(recipe):
    config, kernels = RECIPES[recipe], Watched()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        composition = Composition(tiny.encoder(head=config.model.head), config.objectives, identities=3).train()
    for progress in (0.0, 0.99):
        with kernels, autocast(CPU, torch.bfloat16):
            losses = composition(tiny.batch(), progress, torch.Generator().manual_seed(0))
        assert losses.total.dtype == torch.float32
    assert kernels.half == set()
    assert kernels.seen >= {"native_layer_norm", "linalg_vector_norm", "_log_softmax", "exp"}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A small synth-pedes, drawn and pruned."""
    root = tmp_path_factory.mktemp("people") / "synth-pedes"
    numbers = ("--ids", "13", "--val-ids", "0", "--test-ids", "0", "--workers", "1")
    drawn = CliRunner().invoke(app, ["prepare", "synth-pedes", "--root", str(root), *numbers])
    assert drawn.exit_code == 0, drawn.output
    manifest = read_manifest(root)
    prune_captions(manifest, "hanta")
    return manifest


@pytest.mark.parametrize("recipe", ["synth", "irra", "sen"])
def test_in_bfloat16_the_losses_of_50_steps_stay_near_those_in_float32(people, tmp_path, recipe):
    """Means of 10 steps in a row within 1 percent, wherever they begin; single steps differ by more."""
    full, half = (list(losses(people, tmp_path / amp, recipe, amp)) for amp in ("off", "bf16"))
    assert full != half
    assert running_means(half, 10) == pytest.approx(running_means(full, 10), rel=0.01)


def test_in_float16_a_scaled_training_begins_as_that_in_float32(people, tmp_path):
    full, half = (list(islice(losses(people, tmp_path / amp, "synth", amp), 8)) for amp in ("off", "fp16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.01)


def losses(manifest, folder, recipe, amp):
    """The weighted losses of 50 small steps of a recipe, one after the other."""
    config = find_recipe(recipe, "synth-pedes")
    epochs = 50 / (len(manifest.captions) // 8)
    changes = {"batch_size": 8, "epochs": epochs, "model.image_size": (32, 16), "select_on": "last", "amp": amp}
    config = override(config, changes)
    weights = {each.name: each.weight for each in config.objectives}
    training = Trainer(config, manifest, folder, device=CPU)
    training.batches.images.keep_if_small()
    while training.progress.epoch < training.epochs:
        for step in training.take_steps():
            yield sum(weights[name] * float(loss) for name, loss in step.losses.items() if name in weights)
        training.progress.epoch, training.progress.step = training.progress.epoch + 1, 0


def running_means(values, count):
    """The means of so many values in a row, from each one on."""
    return torch.tensor(values).unfold(0, count, 1).mean(dim=1).tolist()

"""The levers of a step change its speed, its memory and its repeatability, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from tiprctl.checkpoint import read_checkpoint
from tiprctl.config import override
from tiprctl.data import batches
from tiprctl.errors import TrainingError
from tiprctl.execution import CUBLAS_WORKSPACE, Execution, faults_told, memory_savers, out_of_memory, repeatable
from tiprctl.models.clip import Block, Transformer, run_block
from tiprctl.models.compilation import checkpoint_blocks, compile_blocks
from tiprctl.objectives.composition import Composition
from tiprctl.progress import Listener
from tiprctl.runs import LAST, METRICS, Run
from tiprctl.training import Trainer

CPU = torch.device("cpu")


class Told(Listener):
    """Keeps the notes and warnings."""

    def __init__(self):
        self.texts = []

    def on_note(self, text):
        self.texts.append(text)

    def on_warning(self, text, *, objective=None):
        self.texts.append(text)


def trainer(manifest, folder, listener=None, execution=None, workers=None, **changes):
    config = override(tiny.recipe(), changes)
    return Trainer(config, manifest, folder, device=CPU, workers=workers, listener=listener, execution=execution)


def composed(*names, head="global"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Composition(tiny.encoder(head=head), tiny.objectives(*names), identities=3).train()


def gradients(composition, batch, amp=False):
    composition.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        total = composition(batch, 0.0, torch.Generator().manual_seed(0)).total
    total.backward()
    return total.detach(), {name: p.grad for name, p in composition.named_parameters() if p.grad is not None}


def calls_of_blocks(monkeypatch):
    """How often a block is run from now on: a list that grows by one each time."""
    calls, forward = [], Block.forward

    def spy(self, *given, **named):
        calls.append(self)
        return forward(self, *given, **named)

    monkeypatch.setattr(Block, "forward", spy)
    return calls


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("names", "head"),
    [(("sdm", "id", "tir", "mlm"), "global"), (("mgf", "cfr", "fcd"), "parts"), (("scvd",), "division")],
    ids=["global", "parts", "division"],
)
def test_checkpointed_blocks_give_the_same_gradients(monkeypatch, names, head, amp):
    plain, checkpointed = composed(*names, head=head), composed(*names, head=head)
    checkpoint_blocks(checkpointed)
    calls = calls_of_blocks(monkeypatch)
    expected_loss, expected = gradients(plain, tiny.batch(), amp)
    once = len(calls)
    loss, found = gradients(checkpointed, tiny.batch(), amp)
    assert len(calls) == 3 * once
    torch.testing.assert_close(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_checkpointed_blocks_keep_less(monkeypatch):
    def kept(stack):
        bytes_kept = []
        x = torch.randn(4, 10, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: bytes_kept.append(t.nbytes) or t, lambda t: t):
            stack(x)
        return sum(bytes_kept)

    stack = Transformer(16, 3, 2, quick_gelu=True, causal=False)
    plain = kept(stack)
    checkpoint_blocks(stack)
    assert kept(stack) < plain / 4


@pytest.mark.parametrize("mode", ["evaluation", "no gradients"])
def test_nothing_is_kept_back_where_nothing_is_learnt(monkeypatch, mode):
    stack = Transformer(16, 2, 2, quick_gelu=True, causal=True)
    checkpoint_blocks(stack)
    monkeypatch.setattr("tiprctl.models.clip.checkpoint", None)
    stack.train(mode != "evaluation")
    with torch.set_grad_enabled(mode != "no gradients"):
        assert stack(torch.randn(2, 5, 16)).shape == (2, 5, 16)


def test_a_training_with_checkpointed_blocks_learns_the_same(cuhk_manifest, tmp_path):
    for name, execution in (("plain", None), ("checkpointed", Execution(checkpoint_blocks=True))):
        trainer(cuhk_manifest, tmp_path / name, execution=execution).run()
    plain, checkpointed = (read_checkpoint(tmp_path / name / LAST)[0] for name in ("plain", "checkpointed"))
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-6)
    assert Run(tmp_path / "checkpointed").executions[0]["checkpoint_blocks"]


def in_a_process(code, **variables):
    """What a Python process prints that runs `code` with these environment variables."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COMPILED = """
import json, tiny, torch
from torch._dynamo.utils import counters
from tiprctl.models.compilation import checkpoint_blocks, compile_blocks
from test_execution import composed, gradients
plain, compiled = composed("sdm", "tir"), composed("sdm", "tir")
reasons = []
compile_blocks(compiled, reasons.append)
names = list(compiled.state_dict()) == list(plain.state_dict())
worst, graphs = 0.0, []
for size, length in ((6, 9), (4, 12), (5, 7)):
    batch = tiny.batch(size, length)
    losses, (expected, found) = zip(*(gradients(each, batch) for each in (plain, compiled)))
    for name in expected:
        worst = max(worst, float((found[name] - expected[name]).norm() / (1e-3 + expected[name].norm())))
    graphs.append(counters["stats"]["unique_graphs"])
checkpoint_blocks(compiled)
_, again = gradients(compiled, batch)
worst = max(worst, *(float((again[name] - found[name]).norm() / (1e-3 + found[name].norm())) for name in found))
print(json.dumps({"reasons": reasons, "names": names, "worst": worst, "graphs": graphs}))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_give_the_same_gradients_at_any_length():
    found = in_a_process(COMPILED)
    assert found["reasons"] == []
    assert found["names"]
    assert found["worst"] < 1e-4
    assert found["graphs"][0] > 0
    assert len(set(found["graphs"])) == 1


def test_without_a_compiler_the_training_goes_on_and_says_so_once():
    found = in_a_process(COMPILED, CXX="/nowhere/g++", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert len(found["reasons"]) == 1
    assert "C++ compiler" in found["reasons"][0]
    assert found["worst"] == 0


def test_a_compiler_that_fails_later_is_left_too(monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def failing(function, **_):
        done = []

        def run(*given, **named):
            done.append(1)
            if len(done) > 2:
                raise TorchDynamoException("out of registers\nand a long story")
            return function(*given, **named)

        return run

    monkeypatch.setattr(torch, "compile", failing)
    composition, reasons = composed("sdm", "tir"), []
    compile_blocks(composition, reasons.append)
    loss, _ = gradients(composition, tiny.batch())
    assert reasons == ["out of registers"]
    torch.testing.assert_close(loss, gradients(composed("sdm", "tir"), tiny.batch())[0], rtol=0, atol=0)


def test_the_user_is_told_once_why_nothing_is_compiled(cuhk_manifest, tmp_path, monkeypatch):
    def failing(composition, on_failure):
        on_failure("no compiler")

    monkeypatch.setattr("tiprctl.descent.compile_blocks", failing)
    told = Told()
    assert trainer(cuhk_manifest, tmp_path, told, Execution(compile=True), epochs=0.25).run().epoch == 1
    assert len(told.texts) == 1
    assert "--compile" in told.texts[0]
    assert "no compiler" in told.texts[0]
    assert "C++ compiler" in told.texts[0]


def test_blocks_that_another_process_cannot_compile_are_compiled_nowhere(cuhk_manifest, tmp_path, monkeypatch):
    def compiled(composition, on_failure):
        for stack in filter(lambda module: isinstance(module, Transformer), composition.modules()):
            stack.runner = None

    monkeypatch.setattr("tiprctl.descent.compile_blocks", compiled)
    monkeypatch.setattr("tiprctl.training.anyone", lambda says: True)
    told = Told()
    training = trainer(cuhk_manifest, tmp_path, told, Execution(compile=True))
    stacks = [module for module in training.composition.modules() if isinstance(module, Transformer)]
    assert stacks
    assert all(stack.runner is run_block for stack in stacks)
    assert len(told.texts) == 1
    assert "in another process" in told.texts[0]


def test_a_deterministic_training_is_so_where_it_compiles_and_at_each_step(cuhk_manifest, tmp_path, monkeypatch):
    seen = []

    def look(*_):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get(CUBLAS_WORKSPACE)))

    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    monkeypatch.setattr("tiprctl.descent.compile_blocks", look)
    execution = Execution(deterministic=True, compile=True)
    training = trainer(cuhk_manifest, tmp_path, execution=execution, epochs=0.5, select_on="last")
    assert len(seen) == 1
    update = training.descent.update
    monkeypatch.setattr(training.descent, "update", lambda: look() or update())
    training.run()
    assert seen == [(True, ":4096:8")] * (1 + training.steps)


def test_an_operation_without_a_deterministic_kernel_ends_the_training_readably(cuhk_manifest, tmp_path, monkeypatch):
    training = trainer(cuhk_manifest, tmp_path, execution=Execution(deterministic=True), select_on="last")
    update = training.descent.update

    def put():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        update()

    monkeypatch.setattr(training.descent, "update", put)
    with pytest.raises(TrainingError, match=r"cannot be repeatable at step 1: put_[\s\S]*Give --no-deterministic"):
        training.run()
    assert not torch.are_deterministic_algorithms_enabled()
    assert training.progress.step == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_two_deterministic_trainings_are_equal_bit_by_bit(cuhk_manifest, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("tiprctl.data.decoding.MEMORY_BYTES", 0)
    told = Told()
    for name in ("one", "two"):
        training = trainer(
            cuhk_manifest,
            tmp_path / name,
            told,
            Execution(deterministic=True),
            workers,
            epochs=0.5,
            select_on="last",
            objectives=[{"name": "sdm"}, {"name": "id"}, {"name": "tir"}, {"name": "mlm"}],
        )
        training.run()
    one, two = (read_checkpoint(tmp_path / name / LAST)[0] for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(one[name].numpy().tobytes() == two[name].numpy().tobytes() for name in one)
    assert "--deterministic" in told.texts[0]


def test_what_is_made_repeatable_is_as_before_afterwards(monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    cudnn = torch.backends.cudnn

    def state():
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    before = state()
    with pytest.raises(ValueError, match="stop"), repeatable(True):
        assert state() == (True, True, False)
        assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
        raise ValueError("stop")
    assert state() == before
    assert CUBLAS_WORKSPACE not in os.environ
    with repeatable(False):
        assert state() == before


def test_a_training_leaves_no_determinism_behind(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path, execution=Execution(deterministic=True), epochs=0.25).run()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_keeps_how_it_was_carried_out_and_a_resumed_one_tells_of_other_threads(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path, execution=Execution(accumulate=2), epochs=1).run()
    (tmp_path / "result.json").unlink()
    (execution,) = Run(tmp_path).executions
    assert execution == {
        "first_step": 1,
        "compile": False,
        "checkpoint_blocks": False,
        "accumulate": 2,
        "deterministic": False,
        "device": "cpu",
        "precision": "float32",
        "threads": torch.get_num_threads(),
        "processes": 1,
    }
    told = Told()
    trainer(cuhk_manifest, tmp_path, told, Execution(accumulate=2))
    assert told.texts == []
    file = tmp_path / "run.json"
    file.write_text(json.dumps(Run(tmp_path).info | {"executions": [execution | {"threads": 99}]}))
    trainer(cuhk_manifest, tmp_path, told, Execution(accumulate=2))
    assert len(told.texts) == 1
    assert "99 threads" in told.texts[0]
    assert (tmp_path / METRICS).is_file()


def exhausted(*_given, **_named):
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."
    )


@pytest.mark.parametrize("place", ["batch", "forward", "backward", "optimiser"])
def test_running_out_of_memory_is_told_wherever_it_happens(cuhk_manifest, tmp_path, monkeypatch, place):
    training = trainer(cuhk_manifest, tmp_path)
    target, name = {
        "forward": (Block, "forward"),
        "batch": (batches, "augment"),
        "backward": (torch.Tensor, "backward"),
        "optimiser": (training.descent.optimizer, "step"),
    }[place]
    with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
        patch.setattr(target, name, exhausted)
        next(training.take_steps())
    message = str(caught.value)
    assert "Out of memory at step 1; the peak so far was" in message
    assert "--checkpoint-blocks or --accumulate 2" in message
    assert "--batch-size or --amp bf16" in message


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("objectives.composition.Composition.to", "Out of memory at the start; "),
        ("descent.gradients_of", "Out of memory at the start; "),
        ("data.decoding.DecodedImages.keep_if_small", "Out of memory at the start; "),
        ("training.EvaluationData", "Out of memory at the start; "),
        ("training.evaluate", "Out of memory measuring epoch 1; "),
    ],
)
def test_running_out_of_memory_beside_the_steps_is_told(cuhk_manifest, tmp_path, monkeypatch, target, told):
    monkeypatch.setattr(f"tiprctl.{target}", exhausted)
    with pytest.raises(TrainingError) as caught:
        trainer(cuhk_manifest, tmp_path).run()
    assert told in str(caught.value)
    assert ("--select-on last" if "measuring" in told else "--checkpoint-blocks") in str(caught.value)


@pytest.mark.parametrize(
    ("execution", "dtype", "expected"),
    [
        (
            Execution(),
            None,
            "Give --checkpoint-blocks or --accumulate 2, also with --resume; "
            "or start anew with a smaller --batch-size or --amp bf16.",
        ),
        (
            Execution(checkpoint_blocks=True, accumulate=4),
            torch.bfloat16,
            "Give --accumulate 6, also with --resume; or start anew with a smaller --batch-size.",
        ),
        (
            Execution(checkpoint_blocks=True, accumulate=6),
            torch.bfloat16,
            "Start anew with a smaller --batch-size.",
        ),
    ],
)
def test_only_flags_that_are_left_to_a_process_of_six_rows_are_named(execution, dtype, expected):
    assert memory_savers(execution, dtype, rows=6) == expected
    with (
        pytest.raises(TrainingError) as caught,
        faults_told(execution, "at step 7", device=CPU, remedy=expected),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "Out of memory at step 7; " in str(caught.value)
    assert expected in str(caught.value)


def test_a_kernel_that_cannot_be_deterministic_is_named():
    fault = RuntimeError("cumsum_cuda does not have a deterministic implementation, but you set ...\nYou can ...")
    wanted = Execution(deterministic=True)
    with pytest.raises(TrainingError) as caught, faults_told(wanted, "at step 3", device=CPU, remedy=""):
        raise fault
    assert "The training cannot be repeatable at step 3: cumsum_cuda" in str(caught.value)
    assert "Give --no-deterministic, also with --resume; or " in str(caught.value)
    with pytest.raises(RuntimeError, match="cumsum_cuda"), faults_told(Execution(), "", device=CPU, remedy=""):
        raise fault


def test_a_compiler_that_fails_going_backward_is_told():
    from torch._dynamo.exc import TorchDynamoException

    fault, given = TorchDynamoException("out of registers\nand a long story"), {"device": CPU, "remedy": ""}
    with pytest.raises(TrainingError) as caught, faults_told(Execution(compile=True), "at step 3", **given):
        raise fault
    assert "The compiler failed at step 3: out of registers" in str(caught.value)
    assert "Go on with --resume RUN --no-compile." in str(caught.value)
    with pytest.raises(TorchDynamoException), faults_told(Execution(), "at step 3", **given):
        raise fault


def test_other_faults_are_no_lack_of_memory():
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("DefaultCPUAllocator: "))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: ") as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "names", [("sdm", "id"), ("sdm", "id", "tir", "triplet"), ("sdm", "id", "mlm")], ids=["baseline", "sen", "irra"]
)
def test_no_step_waits_for_the_gpu(cuhk_manifest, tmp_path, names):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = override(tiny.recipe(), {"objectives": [{"name": name} for name in names], "amp": "bf16"})
    training = Trainer(config, cuhk_manifest, tmp_path, device=torch.device("cuda"))
    steps = training.take_steps()
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_two_deterministic_trainings_on_a_gpu_are_equal_bit_by_bit(cuhk_manifest, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = override(tiny.recipe(), {"objectives": [{"name": name} for name in ("sdm", "id", "tir", "triplet")]})
    for name in ("one", "two"):
        execution = Execution(deterministic=True)
        Trainer(config, cuhk_manifest, tmp_path / name, device=torch.device("cuda"), execution=execution).run()
    one, two = (read_checkpoint(tmp_path / name / LAST)[0] for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)

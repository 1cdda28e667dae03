import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from tiprctl.checkpoint import read_checkpoint
from tiprctl.checkpoint_file import read_header
from tiprctl.config import override
from tiprctl.data.batches import TrainingBatches
from tiprctl.data.manifest import Manifest
from tiprctl.data.pruning import prune_captions
from tiprctl.errors import InputError, TrainingError, UsageError
from tiprctl.evaluation import evaluate
from tiprctl.optimisation import schedule_factor
from tiprctl.progress import Listener
from tiprctl.runs import BEST, LAST, METRICS, RESULT, Run, latest_run
from tiprctl.tokenizer import default_tokenizer
from tiprctl.training import Trainer, selection_split


class Interrupting(Listener):
    """Presses Ctrl-C after a number of steps."""

    def __init__(self, after):
        self.left = after

    def on_step(self, samples):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


class Seeing(Listener):
    """Counts the steps, and keeps how many epochs and steps were announced."""

    steps = 0

    def on_start(self, *, epochs, steps, **_):
        self.announced = (epochs, steps)

    def on_step(self, samples):
        self.steps += 1


def trainer(manifest, folder, listener=None, **changes):
    config = override(tiny.recipe(), changes)
    return Trainer(config, manifest, folder, device=torch.device("cpu"), listener=listener)


def metrics(folder):
    records = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for record in records:
        del record["samples_per_second"]
    return records


def test_a_training_leaves_a_complete_run(cuhk_manifest, tmp_path):
    result = trainer(cuhk_manifest, tmp_path / "run").run()
    run = Run(tmp_path / "run")
    assert not result.interrupted
    assert result.selected_on == "val"
    assert result.evaluation.text_to_image.queries == 8
    assert run.result["evaluation"]["text_to_image"]["recall"]["1"] == result.evaluation.text_to_image.recall[1]
    assert run.info["config"]["recipe"] == "synth"
    assert run.info["data_fingerprint"] == cuhk_manifest.fingerprint
    assert {"torch", "tiprctl", "python"} <= run.info["versions"].keys()
    assert "git_commit" in run.info
    assert [record["epoch"] for record in metrics(run.folder)] == [1, 2]
    assert read_header(run.checkpoint)["epoch"] == result.epoch
    assert latest_run(tmp_path).folder == run.folder


def test_training_learns(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path, epochs=12, **{"objectives": [{"name": "id"}], "optim.lr": 5e-3}).run()
    losses = [record["losses"]["id"] for record in metrics(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


def test_ctrl_c_in_the_last_evaluation_finishes_and_is_told(cuhk_manifest, tmp_path, monkeypatch):
    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*given)

    monkeypatch.setattr("tiprctl.training.evaluate", interrupted)
    result = trainer(cuhk_manifest, tmp_path, epochs=1).run()
    assert (result.interrupted, result.epoch) == (True, 1)
    assert (tmp_path / RESULT).exists()


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_resumed_training_equals_an_uninterrupted_one(cuhk_manifest, tmp_path, steps):
    trainer(cuhk_manifest, tmp_path / "whole").run()
    first = trainer(cuhk_manifest, tmp_path / "parts", Interrupting(after=steps)).run()
    assert first.interrupted
    assert not (tmp_path / "parts" / RESULT).exists()
    second = trainer(cuhk_manifest, tmp_path / "parts").run()
    assert not second.interrupted
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    whole, _ = read_checkpoint(tmp_path / "whole" / LAST)
    parts, _ = read_checkpoint(tmp_path / "parts" / LAST)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_dropout_and_masks_are_drawn_apart(cuhk_manifest, tmp_path, monkeypatch):
    training = trainer(cuhk_manifest, tmp_path)
    batch, drawn = next(training.batches.epoch(0, skip=0, device=torch.device("cpu"))), []
    forward = training.composition.forward

    def spy(batch, progress, generator):
        losses = forward(batch, progress, generator)
        drawn.append((torch.rand(8, generator=generator.clone_state()), torch.rand(8)))
        return losses

    monkeypatch.setattr(training.composition, "forward", spy)
    before = torch.get_rng_state()
    for step in (0, 1, 0):
        training.progress.step = step
        training._step(batch)
    masks, dropout = zip(*drawn)
    for one, other, again in (masks, dropout):
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
    assert not torch.equal(masks[0], dropout[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("epochs", "steps", "measured"), [(0.01, 1, 1), (0.5, 2, 1), (1, 4, 1), (1.12, 4, 1), (1.5, 6, 2), (2.75, 11, 3)]
)
def test_the_last_epoch_may_be_cut_and_is_measured_like_any_other(cuhk_manifest, tmp_path, epochs, steps, measured):
    seen = Seeing()
    training = trainer(cuhk_manifest, tmp_path, seen, epochs=epochs)
    training.run()
    assert (training.steps, seen.steps, seen.announced) == (steps, steps, (measured, steps))
    assert [record["epoch"] for record in metrics(tmp_path)] == list(range(1, measured + 1))
    assert all(record["evaluation"]["text_to_image"]["queries"] == 8 for record in metrics(tmp_path))


def test_schedule_and_phases_run_over_the_steps_of_a_cut_training(cuhk_manifest, tmp_path, monkeypatch):
    phases = [{"name": "itc", "stop": 0.5}, {"name": "sdm", "start": 0.5}, {"name": "id", "start": 0.5}]
    training = trainer(cuhk_manifest, tmp_path, epochs=1.5, objectives=phases)
    rates, forward, parts = [], training.composition.forward, []
    monkeypatch.setattr(training.descent, "set_rate", rates.append)
    monkeypatch.setattr(training.composition, "forward", lambda *given: parts.append(forward(*given)) or parts[-1])
    training.run()
    config = training.config.optim
    assert rates == pytest.approx([config.lr * schedule_factor(i, 6, config) for i in range(6)])
    assert [set(losses.parts) >= {"sdm", "id"} for losses in parts] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("steps", [3, 5])
def test_a_cut_training_is_resumed_exactly(cuhk_manifest, tmp_path, steps):
    trainer(cuhk_manifest, tmp_path / "whole", epochs=1.5).run()
    assert trainer(cuhk_manifest, tmp_path / "parts", Interrupting(after=steps), epochs=1.5).run().interrupted
    assert not trainer(cuhk_manifest, tmp_path / "parts", epochs=1.5).run().interrupted
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    whole, _ = read_checkpoint(tmp_path / "whole" / LAST)
    parts, _ = read_checkpoint(tmp_path / "parts" / LAST)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("epochs", [0, -1, float("nan")])
def test_epochs_are_positive(epochs):
    with pytest.raises(UsageError, match="epochs"):
        tiny.recipe(epochs=epochs)


def test_a_killed_training_continues_to_the_same_losses(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path / "whole").run()
    script = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import tiny, torch\n"
        "from tiprctl.data.manifest import read_manifest; from tiprctl.progress import Listener\n"
        "from tiprctl.training import Trainer\n"
        "class Kill(Listener):\n"
        "    def on_epoch(self, record): os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer(tiny.recipe(), read_manifest(sys.argv[2]), Path(sys.argv[3]), device=torch.device('cpu'),"
        " listener=Kill()).run()"
    )
    arguments = [str(Path(__file__).parent), str(cuhk_manifest.root), str(tmp_path / "killed")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    trainer(cuhk_manifest, tmp_path / "killed").run()
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_captions_without_the_phrases_that_are_read_are_refused_before_there_is_a_run(cuhk_manifest, tmp_path):
    objectives = [{"name": "sdm"}, {"name": "scvd", "start": 0.5}]
    with pytest.raises(UsageError, match=r"scvd reads the phrases.*\ncaptions.phrases\n.*captions\.phrases=6"):
        trainer(cuhk_manifest, tmp_path / "run", objectives=objectives, **{"model.head": "division"})
    assert not (tmp_path / "run").exists()


def test_other_data_are_refused_on_resume(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path, Interrupting(after=1)).run()
    other = Manifest(cuhk_manifest.dataset, cuhk_manifest.root, cuhk_manifest.captions.iloc[:-1])
    with pytest.raises(InputError, match="has changed since the run began"):
        trainer(other, tmp_path)


@pytest.mark.parametrize("captions", [{"prune": 0.2}, {"mask_content": 0.3}])
def test_other_pruned_captions_are_refused_on_resume(cuhk_manifest, tmp_path, captions):
    changes = {f"captions.{name}": value for name, value in captions.items()}
    prune_captions(cuhk_manifest, "hanta")
    trainer(cuhk_manifest, tmp_path / "run", Interrupting(after=1), **changes).run()
    trainer(cuhk_manifest, tmp_path / "plain", Interrupting(after=1)).run()
    prune_captions(cuhk_manifest, "textblob")
    with pytest.raises(InputError, match=r"pruned by hanta .*, now they are by textblob[\s\S]*--tagger hanta"):
        trainer(cuhk_manifest, tmp_path / "run", **changes)
    trainer(cuhk_manifest, tmp_path / "plain")


def test_a_run_that_saved_nothing_begins_anew_with_the_captions_of_now(cuhk_manifest, tmp_path, monkeypatch):
    changes = {"captions.prune": 0.2}
    prune_captions(cuhk_manifest, "hanta")
    killed = trainer(cuhk_manifest, tmp_path / "run", **changes)
    monkeypatch.setattr(killed, "_judge", lambda: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        killed.run()
    prune_captions(cuhk_manifest, "textblob")
    trainer(cuhk_manifest, tmp_path / "run", Interrupting(after=1), **changes).run()
    assert Run(tmp_path / "run").info["captions"]["tagger"] == "textblob"
    trainer(cuhk_manifest, tmp_path / "run", **changes)


@pytest.mark.parametrize("every", [1, 3, 20])
def test_a_loss_that_is_not_finite_stops_with_step_and_objective(cuhk_manifest, tmp_path, monkeypatch, every):
    monkeypatch.setattr("tiprctl.training.CHECK_EVERY", every)
    training = trainer(cuhk_manifest, tmp_path, objectives=[{"name": "itc"}, {"name": "sdm", "weight": 0.0}])
    step = training._step

    def poisoned(batch):
        if (training.progress.epoch, training.progress.step) == (1, 1):
            with torch.no_grad():
                training.composition.objectives["itc"].log_scale.fill_(float("nan"))
        return step(batch)

    monkeypatch.setattr(training, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"loss itc is nan at step 6 .epoch 2"):
        training.run()
    tensors, header = read_checkpoint(tmp_path / LAST)
    assert header["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_ctrl_c_after_a_loss_that_is_not_finite_saves_nothing(cuhk_manifest, tmp_path, monkeypatch):
    training = trainer(cuhk_manifest, tmp_path, Interrupting(after=1), objectives=[{"name": "itc"}])
    with torch.no_grad():
        training.composition.objectives["itc"].log_scale.fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 1"):
        training.run()
    assert not (tmp_path / LAST).exists()


def test_weights_that_the_last_step_of_an_epoch_ruins_are_not_saved(cuhk_manifest, tmp_path, monkeypatch):
    training = trainer(cuhk_manifest, tmp_path, objectives=[{"name": "itc"}])
    step = training._step

    def ruinous(batch):
        losses = step(batch)
        if (training.progress.epoch, training.progress.step) == (1, training.batches.steps - 1):
            with torch.no_grad():
                training.composition.encoder.clip.text_projection.fill_(float("nan"))
        return losses

    monkeypatch.setattr(training, "_step", ruinous)
    with pytest.raises(TrainingError, match=r"not finite after step 8 .*text_projection; objectives itc"):
        training.run()
    tensors, header = read_checkpoint(tmp_path / LAST)
    assert header["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_running_out_of_memory_names_the_step_and_what_helps(cuhk_manifest, tmp_path, monkeypatch):
    training = trainer(cuhk_manifest, tmp_path)

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.composition, "forward", exhausted)
    with pytest.raises(TrainingError, match=r"Out of memory at step 1[\s\S]*--batch-size"):
        training.run()


def test_best_and_last_say_how_their_epoch_was_chosen(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path).run()
    assert read_header(tmp_path / BEST)["selected_on"] == "val"
    assert read_header(tmp_path / LAST)["selected_on"] == "last"


def test_a_resumed_run_without_its_records_is_refused(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path, Interrupting(after=11), epochs=3).run()
    (tmp_path / METRICS).rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"0 epochs are recorded, 2 were trained[\s\S]*metrics.jsonl"):
        trainer(cuhk_manifest, tmp_path, epochs=3)
    (tmp_path / METRICS).write_text("{\n")
    with pytest.raises(InputError, match=r"Damaged JSON[\s\S]*metrics.jsonl"):
        trainer(cuhk_manifest, tmp_path, epochs=3)


def test_each_step_takes_the_scheduled_rate_and_clipped_gradients(cuhk_manifest, tmp_path, monkeypatch):
    training = trainer(cuhk_manifest, tmp_path, **{"optim.clip_norm": 0.01})
    seen = []
    step = training.descent.optimizer.step

    def spy(*args, **kwargs):
        norms = [p.grad.norm() for p in training.composition.parameters() if p.grad is not None]
        rates = {group["lr"] / group["factor"] for group in training.descent.optimizer.param_groups}
        seen.append((torch.stack(norms).norm().item(), *rates))
        return step(*args, **kwargs)

    monkeypatch.setattr(training.descent.optimizer, "step", spy)
    training.run()
    config, steps = training.config, training.batches.steps
    assert [norm for norm, _ in seen] == pytest.approx([0.01] * len(seen), rel=1e-3)
    expected = [config.optim.lr * schedule_factor(i / steps, 2, config.optim) for i in range(2 * steps)]
    assert [rate for _, rate in seen] == pytest.approx(expected)


@pytest.mark.parametrize("moment", ["evaluate", "write_records"])
def test_a_training_killed_while_an_epoch_is_measured_measures_it_again(cuhk_manifest, tmp_path, monkeypatch, moment):
    trainer(cuhk_manifest, tmp_path / "whole").run()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"tiprctl.training.{moment}", killed)
        trainer(cuhk_manifest, tmp_path / "killed").run()
    trainer(cuhk_manifest, tmp_path / "killed").run()
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_a_run_begun_without_a_scaler_goes_on_in_fp16(cuhk_manifest, tmp_path):
    trainer(cuhk_manifest, tmp_path, Interrupting(after=1), amp="off").run()
    assert trainer(cuhk_manifest, tmp_path, amp="fp16").run().epoch is not None


def test_the_scaler_is_taken_up_again(cuhk_manifest, tmp_path):
    first = trainer(cuhk_manifest, tmp_path, Interrupting(after=1), amp="fp16")
    first.run()
    second = trainer(cuhk_manifest, tmp_path, amp="fp16")
    assert second.descent.scaler.state_dict() == first.descent.scaler.state_dict()
    assert (
        second.descent.scaler.state_dict()["_growth_tracker"] + second.descent.scaler.state_dict()["scale"] != 65536.0
    )


def test_the_best_epoch_is_the_one_that_scores_best_on_val(cuhk_manifest, tmp_path):
    result = trainer(cuhk_manifest, tmp_path, epochs=4).run()
    scores = [record["evaluation"]["text_to_image"]["recall"]["1"] for record in metrics(tmp_path)]
    assert result.epoch == scores.index(max(scores)) + 1
    assert [record["best"] for record in metrics(tmp_path)] == [
        score > max([-1.0, *scores[:i]]) for i, score in enumerate(scores)
    ]


def test_without_selection_the_last_epoch_is_kept_and_nothing_is_measured(cuhk_manifest, tmp_path):
    result = trainer(cuhk_manifest, tmp_path, select_on="last").run()
    assert (result.selected_on, result.epoch, result.evaluation) == ("last", 2, None)


def test_selection_is_on_val_unless_asked_or_absent(cuhk_manifest):
    without_val = Manifest("x", cuhk_manifest.root, cuhk_manifest.captions.query("split != 'val'"))
    assert selection_split(tiny.recipe(), cuhk_manifest) == "val"
    assert selection_split(tiny.recipe(select_on="test"), cuhk_manifest) == "test"
    assert selection_split(tiny.recipe(), without_val) == "last"
    with pytest.raises(UsageError, match=r"no val split[\s\S]*test, last"):
        selection_split(tiny.recipe(select_on="val"), without_val)


def test_same_seed_same_weights_other_seed_other_weights(cuhk_manifest, tmp_path):
    first, again, other = (
        trainer(cuhk_manifest, tmp_path / str(i), seed=seed).composition.state_dict()
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.clip.visual.conv1.weight"], other["encoder.clip.visual.conv1.weight"])


def test_making_a_trainer_leaves_the_global_random_state(cuhk_manifest, tmp_path):
    before = torch.get_rng_state()
    trainer(cuhk_manifest, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_cut_to_their_longest_caption(cuhk_manifest):
    batches = TrainingBatches(cuhk_manifest, tiny.recipe(), default_tokenizer())
    for batch in batches.epoch(0, skip=0, device=torch.device("cpu")):
        ends = batch.token_ids.argmax(dim=1)
        assert ends.max() + 1 == batch.token_ids.shape[1]
        assert batch.pids.max() < batches.identities == 4


def test_images_from_disk_and_from_memory_are_the_same(cuhk_manifest):
    batches = TrainingBatches(cuhk_manifest, tiny.recipe(), default_tokenizer())
    from_disk = [batch.pixels for batch in batches.epoch(0, skip=0, device=torch.device("cpu"))]
    batches.images.keep_if_small()
    from_memory = [batch.pixels for batch in batches.epoch(0, skip=0, device=torch.device("cpu"))]
    assert all(torch.equal(a, b) for a, b in zip(from_disk, from_memory, strict=True))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near_float32(cuhk_manifest, tmp_path, amp):
    trainer(cuhk_manifest, tmp_path / "full", amp="off").run()
    trainer(cuhk_manifest, tmp_path / "half", amp=amp).run()
    full, half = (metrics(tmp_path / name)[0]["losses"] for name in ("full", "half"))
    assert half["itc"] == pytest.approx(full["itc"], rel=0.01)
    assert half["itc"] != full["itc"]
    assert all(value.dtype == torch.float32 for value in read_checkpoint(tmp_path / "half" / BEST)[0].values())


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_training_on_a_gpu(cuhk_manifest, tmp_path, amp):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = tiny.recipe(amp=amp)
    result = Trainer(config, cuhk_manifest, tmp_path, device=torch.device("cuda")).run()
    assert result.evaluation is not None

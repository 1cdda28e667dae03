"""Two processes that share a batch do what one does with the whole of it: they are started for real, once for all."""

from collections import Counter

import many
import pytest
import tiny
import torch
from many import Case
from torch import nn
from torch.multiprocessing import spawn

from tiprctl.config import ObjectiveConfig, frozen
from tiprctl.gradients import PROBED, AtOnce, Passes
from tiprctl.models.encodings import Needs
from tiprctl.objectives import OBJECTIVES
from tiprctl.objectives.base import Objective, ObjectiveOutput
from tiprctl.objectives.composition import Composition
from tiprctl.recipes import RECIPES, find_recipe
from tiprctl.shares import Share


@frozen
class NoConfig:
    """Nothing can be set."""


class Spread(Objective):
    """How alike the captions of all people are; it looks across the batch, as any objective may."""

    name, Config = "spread", NoConfig

    def forward(self, enc, batch):
        others = batch.pids[:, None] != batch.pids
        alike = nn.functional.normalize(enc.text, dim=1) @ nn.functional.normalize(enc.captions.whole, dim=1).T
        return ObjectiveOutput(alike[others].mean(), {"pairs": others.float().sum()})


class WordCount(Objective):
    """Tells from each prompt and each word how long the caption is: a mean over words, of each row by itself."""

    name, Config = "words", NoConfig
    by_row = True

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.tell = nn.Linear(spec.clip.embed_dim, 1)

    def needs(self):
        return Needs(prompts=True, text_tokens=True)

    def count(self, masks, batch):
        return int((batch.token_ids > 0).sum())

    def forward(self, enc, batch):
        words = batch.token_ids > 0
        told = self.tell(enc.text_tokens + enc.prompts.values.mean(dim=1, keepdim=True)).squeeze(2)
        loss = (told - words.sum(dim=1, keepdim=True)).square()[words].mean()
        return ObjectiveOutput(loss, {"mean": told[words].mean()})


class Darkness(Objective):
    """Tells from each patch how dark its image is: a mean over the rows, each by itself."""

    name, Config = "dark", NoConfig
    by_row = True

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.tell = nn.Linear(spec.clip.embed_dim, 1)

    def needs(self):
        return Needs(image_tokens=True)

    def forward(self, enc, batch):
        return ObjectiveOutput(
            (self.tell(enc.image_tokens).mean(dim=(1, 2)) - batch.pixels.mean(dim=(1, 2, 3))).abs().mean()
        )


OWN = (Spread, WordCount, Darkness)

EACH = {name: tiny.objectives(name) for name in OBJECTIVES}
SEVERAL = {
    **{f"recipe {name}": recipe.objectives for name, recipe in RECIPES.items()},
    "phases": find_recipe("sen", "synth-pedes").objectives,
    "own": tiny.objectives("spread", "words", "dark"),
}
CASES = {
    **{name: Case(given) for name, given in EACH.items()},
    **{f"{name}, uneven": Case(given, size=5) for name, given in (EACH | SEVERAL).items()},
    **{f"{name}, in parts": Case(given, size=5, parts=2) for name, given in (EACH | SEVERAL).items()},
    # As the sampler `pairs` makes them: one process has a row, the other two.
    "a row for one, two for the other": Case(EACH["sdm"] + EACH["tir"], size=3),
    # Neither has as many as parts.
    "fewer rows than parts": Case(EACH["sdm"] + EACH["tir"], size=3, parts=3),
    "masked captions": Case(tiny.objectives("sdm", "mlm"), size=5, masked=True),
    "masked captions, in parts": Case(tiny.objectives("sdm", "mlm"), size=5, masked=True, parts=2),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each case leaves, by its name, in each of two processes."""
    return many.run_together(tmp_path_factory.mktemp("processes"), CASES, OWN)


@pytest.mark.parametrize("name", CASES)
def test_the_processes_together_take_the_step_of_one(name, outcomes, monkeypatch):
    for kind in OWN:
        monkeypatch.setitem(OBJECTIVES, kind.name, kind)
    case = CASES[name]
    expected = many.take_step(Case(case.objectives, case.size, masked=case.masked))
    first, second = (process[name] for process in outcomes)
    many.assert_same(expected, averaged(first, second))
    assert any(gradient.abs().sum() > 0 for gradient in first.gradients.values() if gradient is not None)
    for one, other in zip(first.gradients.values(), second.gradients.values()):
        assert (one is None) is (other is None) and (one is None or torch.equal(one, other))
    assert all(torch.equal(first.buffers[each], second.buffers[each]) for each in first.buffers)


def averaged(*outcomes):
    """An outcome with the mean of the losses that the processes report."""
    mean = {name: sum(outcome.losses[name] for outcome in outcomes) / len(outcomes) for name in outcomes[0].losses}
    total = sum(outcome.total for outcome in outcomes) / len(outcomes)
    return many.Outcome(total, mean, outcomes[0].gradients, outcomes[0].buffers)


@pytest.mark.parametrize("parts", ["uneven", "in parts"])
def test_what_no_objective_reads_any_more_has_no_gradient(outcomes, parts):
    left = outcomes[0][f"phases, {parts}"].gradients
    assert [name for name, gradient in left.items() if gradient is None] == ["objectives.itc.log_scale"]


@pytest.mark.parametrize("parts", ["uneven", "in parts"])
def test_the_batch_norm_knows_the_rows_of_all_processes(outcomes, parts):
    buffers = outcomes[1][f"mgf, {parts}"].buffers
    assert buffers["encoder.head.image_neck.num_batches_tracked"] == 3
    assert buffers["encoder.head.image_neck.running_mean"].abs().sum() > 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sdm", "id", "triplet", "tir", "mlm"], {"vectors": 2, "pids": 1}),
        # Features and global tokens; of the prompts the tokens, which are the same, and which are there: on the device
        # and on the host.
        (["scvd"], {"vectors": 4, "pids": 1, "patches": 1, "prompts": 1, "of prompts": 3}),
    ],
)
def test_nothing_is_gathered_that_no_objective_reads(names, expected, monkeypatch):
    kinds = {(6, 16): "vectors", (6,): "pids", (6, 9, 16): "patches", (6, 3, 16): "prompts", (6, 3): "of prompts"}
    gathered = []
    monkeypatch.setattr("tiprctl.objectives.composition.processes", lambda: 2)
    monkeypatch.setattr("tiprctl.models.rows.gather", lambda rows, sizes: gathered.append(rows) or rows)
    encoder = tiny.encoder(head="division" if "scvd" in names else "global")
    batch = many.batch(Case(()))
    batch.share = Share.whole(6)
    Composition(encoder, tiny.objectives(*names), identities=3)(batch, 0.0, torch.Generator().manual_seed(0))
    assert Counter(kinds[tuple(rows.shape)] for rows in gathered) == expected


def take_two_stages(rank, folder):
    """Steps with `itc`, without it, and with it again: which parameters have no gradient after each, and what was seen.

    Of each pass of the images' tower the number of rows is kept.
    """
    with many.joined(rank, folder), pytest.MonkeyPatch.context() as patch:
        passes = tiny.tower_passes(patch)
        configs = (ObjectiveConfig(name="itc", stop=0.5), *tiny.objectives("sdm", "id"))
        composition = Composition(tiny.encoder(), configs, identities=5)
        share = Share.whole(10).split(many.PROCESSES)[rank]
        gradients, left = AtOnce(composition, Passes(device=torch.device("cpu"))), []
        for progress in (0.0, 0.2, 0.5, 0.7, 0.0):
            composition.zero_grad()
            gradients(
                share.of(many.batch(Case((), size=10))), progress, *(torch.Generator().manual_seed(0) for _ in range(2))
            )
            left.append([name for name, each in composition.named_parameters() if each.grad is None])
        torch.save((left, [len(pixels) for pixels in passes["encode_image"]]), folder / f"left{rank}.pt")


def test_what_takes_part_is_known_whenever_other_objectives_begin_and_nobody_is_warned(tmp_path, capfd):
    spawn(take_two_stages, (tmp_path,), nprocs=many.PROCESSES)
    for rank in range(many.PROCESSES):
        left, rows = torch.load(tmp_path / f"left{rank}.pt")
        assert left == [[], [], *[["objectives.itc.log_scale"]] * 2, []]
        assert rows == [PROBED, 5, 5, PROBED, 5, 5, PROBED, 5]
    assert "find_unused_parameters" not in capfd.readouterr().err

"""The benchmarks judge their figures, their short forms run, and the plain step is the same step as ours."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from tiprctl.objectives.composition import Composition
from tiprctl.recipes import RECIPES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_goals_of_ranking(benchmarks):
    from ranking import shortfalls

    assert shortfalls(5, 1_000_000_000) == []
    assert shortfalls(4.94, 0) == ["tiprctl is 4.9 times as fast as argsort, less than 5"]
    assert shortfalls(9, 1_200_000_000) == ["tiprctl takes 1,200 MB beside the features, more than 1,000 MB"]
    assert len(shortfalls(1, 2_000_000_000)) == 2


def test_goal_of_drawing(benchmarks):
    from drawing import shortfalls

    assert shortfalls(300) == []
    assert shortfalls(212.3) == ["212 images a second are fewer than 300"]


def test_goals_of_a_cold_query(benchmarks):
    from cold_query import MODELS, shortfalls

    assert shortfalls({"built-in": 0.5, "ViT-B/16": 0.8}, MODELS) == []
    assert shortfalls({"built-in": 0.51, "ViT-B/16": 0.8}, MODELS) == [
        "built-in: 0.51 s to an answer are more than 0.5 s"
    ]


def test_goals_of_searching_a_gallery(benchmarks):
    from gallery import shortfalls

    def searched(texts: float, images: float, taken: bool = True) -> dict:
        return {"filter": "half", "taken": taken, "recall": {"texts": texts, "images": images}}

    met = {"rows": 1000, "searched": [searched(0.98, 1.0), searched(0.5, 0.5, taken=False)]}
    assert shortfalls([met]) == []
    assert shortfalls([met, {"rows": 2000, "searched": [searched(0.979, 1.0)]}]) == [
        "recall@10 of texts is 0.979 in 2,000 rows, filter half, less than 0.98"
    ]


def test_goals_of_indexing(benchmarks):
    from indexing import Rates, shortfalls

    fast, slow = Rates("built-in", [100.0], [10.0]), Rates("ViT-B/16", [100.0, 10.0], [90.0, 9.0])
    flat = {10: {"adding": 100.0, "adding again": 90.0}, 1000: {"adding": 100.0, "adding again": 125.0}}
    assert shortfalls([fast, slow], flat) == []
    late = replace(slow, add=[89.0, 8.9])
    assert shortfalls([fast, late], flat) == [
        "Indexing with ViT-B/16 runs at 89% of the encoder's rate; the goal is 90%."
    ]
    grown = flat | {1000: {"adding": 160.0, "adding again": 90.0}}
    assert shortfalls([slow], grown) == ["1,000 rows take 1.60 times the memory of 10, above 1.25."]


def test_a_gallery_is_searched_in_both_ways(benchmarks, monkeypatch, capsys):
    options = ["--rows", "10000", "--dim", "16", "--queries", "2"]
    monkeypatch.setattr(importlib.import_module("gallery"), "FIRST", 1)
    code, document = run("gallery", options, monkeypatch, capsys)
    (gallery,) = document["galleries"]
    unfiltered = [(one["exact"], one["taken"]) for one in gallery["searched"] if not one["filter"]]
    assert unfiltered == [(True, True), (False, False)]
    assert all(one["recall"] == {"texts": 1, "images": 1} for one in gallery["searched"] if one["exact"])
    assert min(gallery["first_search"].values()) > 0
    assert code == 0


def test_a_cold_query_is_measured_beside_the_bare_imports(benchmarks, monkeypatch, capsys):
    monkeypatch.setenv("TIPRCTL_QUERY_TOP", "many")
    code, document = run("cold_query", ["--quick"], monkeypatch, capsys)
    assert list(document["seconds"]) == ["bare imports", "built-in", "built-in, without its export"]
    assert min(document["seconds"].values()) > 0
    assert document["crops"] == 5_000
    assert code == 0


def test_a_missed_goal_fails_where_goals_are_enforced(benchmarks, capsys):
    from _report import verdict

    assert verdict(["too slow"], enforced=True) == 1
    assert verdict(["too slow"], enforced=False) == 0
    assert verdict([], enforced=True) == 0
    captured = capsys.readouterr()
    assert captured.out == ""


def test_drawing_reports_its_rate():
    command = [sys.executable, BENCHMARKS / "drawing.py", "--ids", "1", "--repeat", "1", "--workers", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    document = json.loads(done.stdout)
    assert document["images"] == 4
    assert document["images_per_second"] == pytest.approx(4 / document["seconds"])
    assert document["ratio"] == pytest.approx(document["images_per_second"] / 300)
    assert done.returncode == (document["images_per_second"] < 300)
    assert document["machine"]["ceiling"].keys() == {"fp32", "bf16"}


def run(script, arguments, monkeypatch, capsys):
    """The exit code of a benchmark and its JSON document; its ceiling is that of a small product."""
    monkeypatch.setattr(importlib.import_module("_report"), "CEILING_SIZE", 64)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--json"])
    code = importlib.import_module(script).main()
    return code, json.loads(capsys.readouterr().out)


def generator():
    return torch.Generator().manual_seed(0)


def plain_and_ours(recipe, *, attend_padding):
    """Both models with the same random weights, and the batch that both are to take."""
    plain_step = importlib.import_module("plain_step")
    options = {"attend_padding": True} if attend_padding else {}
    objectives = [
        replace(each, options=each.options | options | {"depth": 2}) if each.name in ("mlm", "tir") else each
        for each in RECIPES[recipe].objectives
    ]
    torch.manual_seed(0)
    ours, batch = Composition(tiny.encoder(), objectives, identities=3).train(), tiny.batch()
    # Captions of two lengths: there is padding within the batch too.
    batch.token_ids[::2, 5:] = torch.tensor([99, 0, 0, 0])
    return plain_step.PlainModel(ours), plain_step.plain_batch(batch, ours, generator()), ours, batch


@pytest.mark.parametrize("recipe", ["baseline", "clip", "irra", "sen"])
@pytest.mark.parametrize("attend_padding", [False, True])
def test_the_plain_step_is_ours_in_another_order(benchmarks, recipe, attend_padding):
    plain, plain_batch, ours, batch = plain_and_ours(recipe, attend_padding=attend_padding)
    expected = ours(batch, 0.0, generator())
    losses = plain(plain_batch)
    for config in ours.configs:
        torch.testing.assert_close(losses[config.name].detach(), config.weight * expected.parts[config.name])
    expected.total.backward()
    sum(losses.values()).backward()
    theirs = {name: parameter.grad for name, parameter in plain.named_parameters()}
    # What a softmax does not feel, such as a bias of its keys, has a gradient of rounding errors alone.
    least = 1e-4 * max(gradient.norm() for gradient in theirs.values())
    for name, parameter in ours.named_parameters():
        assert (theirs[name] - parameter.grad).norm() <= 1e-4 * max(parameter.grad.norm(), least), name


def test_plain_adam_descends_as_ours_does(benchmarks):
    from plain_step import plain_adam

    from tiprctl.optimisation import build_optimizer

    config = RECIPES["sen"].optim
    plain, _, ours, batch = plain_and_ours("sen", attend_padding=False)
    ours(batch, 0.0, generator()).total.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        theirs[name].grad = parameter.grad.clone()
    for optimizer in (plain_adam(plain, ours, config), build_optimizer(ours.roles(), config)):
        before = ours.objectives["id"].classifier.bias.detach().clone()
        for _ in range(2):
            optimizer.step()
    assert not torch.equal(ours.objectives["id"].classifier.bias, before)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(theirs[name].detach(), parameter.detach(), rtol=1e-6, atol=1e-9)


def test_the_plain_step_refuses_what_it_cannot_train(benchmarks):
    from plain_step import PlainModel

    parts = Composition(tiny.encoder(head="parts"), tiny.objectives("mgf"), identities=3)
    with pytest.raises(ValueError, match="itc, mlm, sdm, tir, triplet on the global head alone"):
        PlainModel(parts)


def test_a_step_is_measured_by_part_against_the_plain_one(benchmarks, monkeypatch, capsys):
    arguments = ["--model", "tiny", "--batch", "2", "--rounds", "1", "--recipes", "sen", "--device", "cpu"]
    code, document = run("train_step", [*arguments, "--quick"], monkeypatch, capsys)
    plain, ours, bf16 = document["runs"]
    assert (plain["name"], plain["ratio"]) == ("plain", None)
    assert ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert [each["precision"] for each in document["runs"]] == ["fp32", "fp32", "bf16"]
    assert sum(ours["parts"].values()) <= 1.05 * ours["seconds"]
    assert min(ours["parts"].values()) > 0
    # The plain step reads the captions twice, and their padding.
    assert bf16["flops"] == ours["flops"] < plain["flops"]
    assert code == 0


def test_encoding_is_measured_against_the_plain_encoder(benchmarks, monkeypatch, capsys):
    code, document = run("encode", ["--quick", "--device", "cpu"], monkeypatch, capsys)
    names = [(each["kind"], each["name"], each["precision"]) for each in document["runs"]]
    pairs = [(name, precision) for precision in ("fp32", "bf16") for name in ("plain", "tiprctl")]
    assert names == [(kind, *pair) for kind in ("images", "captions") for pair in pairs]
    plain, ours = document["runs"][:2]
    assert ours["ratio"] == pytest.approx(ours["per_second"] / plain["per_second"])
    # The last block works for one of an image's 33 tokens: the others have keys and values alone, and no projection.
    query_out_projection, perceptron, attention = 3 * 128 * 128, 2 * 128 * 512, 2 * 33 * 128
    assert plain["flops"] - ours["flops"] == 2 * 8 * 32 * (query_out_projection + perceptron + attention)
    assert code == 0


def test_the_memory_of_a_step_is_measured_in_each_way(benchmarks):
    from memory import ways

    found = [(way.name, way.execution.checkpoint_blocks, way.execution.accumulate) for way in ways(("bf16",), 3)]
    assert found == [
        ("as it is", False, 1),
        ("--accumulate 3", False, 3),
        ("--checkpoint-blocks", True, 1),
        ("--checkpoint-blocks --accumulate 3", True, 3),
    ]
    assert [way.precision for way in ways(("fp32", "bf16"), 2)] == 4 * ["fp32"] + 4 * ["bf16"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a stretch")
def test_the_memory_of_a_training_holds_its_weights_and_its_optimiser(benchmarks):
    from _step import compose, configure
    from memory import Way, weigh

    from tiprctl.execution import Execution

    weights = sum(4 * each.numel() for each in compose(configure("baseline", "tiny"), "cpu").parameters())
    chosen = argparse.Namespace(recipe="baseline", model="tiny", batch=2, device="cpu", rounds=1, threads=1)
    cost = weigh(Way("as it is", "fp32", Execution()), chosen)
    # Weights, gradients and two moments of each; of the rest, kernels and their buffers are the larger part.
    assert 4 * weights < cost.peak < 12 * weights
    assert cost.seconds > 0


@pytest.mark.parametrize("saving", [{"checkpoint_blocks": True}, {"accumulate": 2}])
def test_what_saves_memory_is_carried_out(benchmarks, monkeypatch, saving):
    from _step import OurStep, compose, configure, draw_batch

    from tiprctl.execution import Execution
    from tiprctl.models.clip import Block

    config = configure("baseline", "tiny")
    composition, passes, last = compose(config, "cpu"), [], []
    forward, at = Block.forward, Block.at
    monkeypatch.setattr(Block, "forward", lambda self, x, **kwargs: passes.append(len(x)) or forward(self, x, **kwargs))
    monkeypatch.setattr(Block, "at", lambda self, x, *given: last.append(len(x)) or at(self, x, *given))
    step = OurStep(composition, config, draw_batch(config, 4, "cpu"), "cpu", Execution(**saving), ("fp32",))
    step.take("fp32")
    # Two blocks a tower. All run a second time in parts; what is kept of the last one, for one token, is not renewed.
    assert passes == ([2] * 8 if "accumulate" in saving else [4] * 4)
    assert last == ([2] * 8 if "accumulate" in saving else [4] * 2)


def test_goals_of_a_step(benchmarks):
    from train_step import Contestant, Outcome, shortfalls

    def outcomes(precision, ratio):
        return [Outcome(Contestant("tiprctl", None, precision, 1.0), 1.0, {}, ratio)]

    assert shortfalls("sen", outcomes("fp32", 1.25), "cpu") == []
    sentence = "sen: a step in bf16 is 1.99 times as fast as the plain one, not 2.0"
    assert shortfalls("sen", outcomes("bf16", 1.99), "cpu") == [sentence]
    assert shortfalls("sen", outcomes("fp32", 1.0), "cuda") == []
    assert shortfalls("cfine", outcomes("fp32", None), "cpu") == []


def test_what_the_forward_pass_takes_beside_the_towers_is_the_objectives(benchmarks):
    from train_step import PARTS, split

    parts = split({"image": 3.0, "text": 1.0, "forward": 6.0, "gradients": 15.0, "optimiser": 0.5, "step": 16.0})
    assert tuple(parts) == (*PARTS[:3], "objectives", *PARTS[4:])
    assert (parts["masked image"], parts["objectives"], parts["backward"]) == (0.0, 2.0, 9.0)


def test_names_are_chosen_among_those_that_are_known(benchmarks):
    from _step import chosen_names

    assert chosen_names("sen, irra", ("irra", "sen")) == ("sen", "irra")
    with pytest.raises(ValueError, match="tir: not among irra, sen"):
        chosen_names("irra,tir", ("irra", "sen"))


def test_a_report_tells_the_machine_and_its_ceiling(benchmarks, capsys):
    from _report import Machine, Report, publish, share_of_ceiling

    machine = Machine("Abacus", 4, 2, None, "3.11", {"torch": "2.15"}, {"fp32": 50.0, "bf16": 1234.5})
    report = Report("Work", ("", "seconds"), [("ours", "1.25")], {"seconds": 1.25}, ["A note."])
    publish(report, machine, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["title"], document["seconds"]) == ("Work", 1.25)
    assert document["machine"]["ceiling"] == {"fp32": 50.0, "bf16": 1234.5}
    assert "Abacus, 2 threads on 4 cores; Python 3.11, torch 2.15" in machine.lines()
    assert machine.lines()[1].endswith("fp32 50, bf16 1,234")
    assert share_of_ceiling(2.0, 50e9, machine.ceiling["fp32"]) == 0.5

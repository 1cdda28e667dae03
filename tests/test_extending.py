"""The example of docs/extending.md, run as the page shows it, and how its parts become known by name."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
from console import run
from PIL import Image
from torch.nn.functional import cosine_similarity

from tiprctl.checkpoint import ENCODER, read_checkpoint
from tiprctl.config import ObjectiveConfig
from tiprctl.data.catalog import DATA_SETS, data_set
from tiprctl.data.records import DataSet
from tiprctl.errors import InputError, UsageError
from tiprctl.extension import Head, Objective, add
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.heads import HEADS
from tiprctl.objectives import OBJECTIVES, find_objective
from tiprctl.objectives.composition import Composition
from tiprctl.runs import BEST, METRICS, Run, read_records

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "extending.md").read_text(encoding="utf-8")
EXAMPLE = DOCS / "examples" / "own_method.py"
MINIATURE = "--model tiny --pretrained none --epochs 2 --batch-size 8 --lr 1e-3 --set model.image_size=[16,8]"
SPLITS = {"train": (1, 2, 5, 9), "val": (11, 12), "test": (21, 22)}


@pytest.fixture(autouse=True)
def known():
    """The tables of names as they were, whatever a test adds."""
    with patch.dict(OBJECTIVES), patch.dict(HEADS), patch.dict(DATA_SETS):
        yield


@pytest.fixture(scope="module")
def example():
    """The names of the example's file, which adds nothing when it is imported."""
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture
def station(tmp_path, monkeypatch):
    """A working folder with the page's data set under ./data: two images a person, two captions an image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    folder = tmp_path / "data" / "Station"
    pixels = np.random.default_rng(0)
    records = []
    for split, people in SPLITS.items():
        for person in people:
            for camera in (1, 2):
                image = f"{person}_c{camera}.png"
                file = folder / "imgs" / image
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(file)
                captions = [f"a person {person} in red", f"someone {person} seen by camera {camera}"]
                records.append({"image": image, "person": person, "split": split, "captions": captions})
    (folder / "captions.json").write_text(json.dumps(records))
    return tmp_path


def commands():
    """The commands of the page, without `python docs/examples/own_method.py`."""
    block = re.search(r"```\n(python .*?)```", PAGE, re.DOTALL)[1]
    return [shlex.split(line)[2:] for line in block.splitlines()]


def python(*arguments, capsys):
    """What the example prints when it is run as a program; it must end well."""
    with (
        patch.object(sys, "argv", [str(EXAMPLE), *arguments]),
        patch.dict(OBJECTIVES),
        patch.dict(HEADS),
        patch.dict(DATA_SETS),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr()
    assert ended.value.code in (None, 0), printed.err
    return printed.out


def test_the_page_shows_the_whole_file():
    shown = "".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert lines(shown) == lines(EXAMPLE.read_text(encoding="utf-8"))


def lines(code):
    return [line for line in code.splitlines() if line]


def test_the_links_of_the_page_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_the_commands_of_the_page_prepare_train_and_measure(station, capsys):
    prepare, train, evaluate = commands()
    assert "16" in python(*prepare, capsys=capsys)
    python(*train, *shlex.split(MINIATURE), capsys=capsys)
    folder = station / "runs" / "latest"
    losses = [record["losses"] for record in read_records(folder / METRICS)]
    assert len(losses) == 2
    assert all(epoch.keys() >= {"sdm", "id", "together", "together/pairs"} for epoch in losses)
    # Two persons a batch with four captions each: six pairs a person.
    assert [epoch["together/pairs"] for epoch in losses] == [12, 12]
    tensors, header = read_checkpoint(folder / BEST, ENCODER)
    assert (header["head"], header["head_options"]) == ("pooled", {"share": 0.0})
    assert tensors["head.share"].abs().min() > 0
    rows = json.loads(python(*evaluate, "--json", capsys=capsys))["results"]
    assert {row["direction"] for row in rows} == {"text_to_image", "image_to_text"}
    assert all(0 <= row["mAP"] <= 100 for row in rows)


def test_options_are_set_by_the_names_of_the_example(station, capsys):
    prepare, train, _ = commands()
    python(*prepare, capsys=capsys)
    options = ["--epochs", "1", "--set", "together.margin=0.2", "--set", "pooled.share=0.1", "--output", "run"]
    python(*train, *shlex.split(MINIATURE), *options, capsys=capsys)
    config = Run(Path("run")).config
    assert config.model.head_options == {"share": 0.1}
    assert config.objectives[-1].options == {"margin": 0.2}


def test_plain_tiprctl_does_not_know_the_head_of_such_a_run(station, capsys):
    prepare, train, _ = commands()
    python(*prepare, capsys=capsys)
    python(*train, *shlex.split(MINIATURE), "--epochs", "1", capsys=capsys)
    message = run("eval", "runs/latest", exit_code=3).stderr
    assert "the head pooled" in message
    assert BEST in message
    assert "docs/extending.md" in message


def test_the_table_of_the_page_is_a_recipe(station, capsys):
    Path("tiprctl.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    prepare, _, _ = commands()
    python(*prepare, capsys=capsys)
    epochs = MINIATURE.replace("--set model.image_size=[16,8]", "--epochs 1")
    folder = Path(python("train", "station", *shlex.split(epochs), capsys=capsys).strip())
    _, header = read_checkpoint(folder / BEST, ENCODER)
    assert header["head"] == "pooled"
    assert "together" in read_records(folder / METRICS)[0]["losses"]


def test_the_help_lists_the_data_set():
    """In a process of its own: here the command line is imported already."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "prepare", "--help"], capture_output=True, text=True, check=True
    )
    assert "station" in done.stdout


def test_the_objective_is_the_mean_excess_over_the_pairs_of_a_person(example):
    add(example["Together"])
    composition = Composition(
        tiny.encoder(), [ObjectiveConfig(name="together", options={"margin": 0.01})], identities=3
    )
    batch = tiny.batch()
    batch.pids = torch.tensor([0, 1, 0, 0, 2, 1])
    text = composition.encoder.text_features(batch.token_ids)
    excess = [
        max(0.0, 1 - cosine_similarity(text[one], text[other], dim=0).item() - 0.01)
        for one in range(6)
        for other in range(one + 1, 6)
        if batch.pids[one] == batch.pids[other]
    ]
    losses = composition(batch, 0.0, torch.Generator())
    assert losses.parts["together/pairs"] == len(excess) == 4
    torch.testing.assert_close(losses.total.item(), sum(excess) / 4, atol=1e-6, rtol=0)
    losses.total.backward()
    assert composition.encoder.clip.text_projection.grad.abs().sum() > 0


def test_the_objective_asks_nothing_of_a_batch_of_strangers(example):
    add(example["Together"])
    composition = Composition(tiny.encoder(), tiny.objectives("together"), identities=6)
    batch = tiny.batch()
    batch.pids = torch.arange(6)
    assert composition(batch, 0.0, torch.Generator()).total == 0


@torch.no_grad()
def test_the_head_adds_the_mean_of_patches_and_of_words(example):
    add(example["Pooled"])
    encoder, batch = DualEncoder(tiny.encoder().clip, "pooled", {"share": 0.5}), tiny.batch(size=2)
    batch.token_ids[1, 4], batch.token_ids[1, 5:] = 99, 0
    images, captions = (tokens.values for tokens in (encoder.see(batch.pixels), encoder.read(batch.token_ids)))
    torch.testing.assert_close(encoder.image_features(batch.pixels), images[:, 0] + images[:, 1:].mean(1) / 2)
    expected = [captions[0, 8] + captions[0, 1:8].mean(0) / 2, captions[1, 4] + captions[1, 1:4].mean(0) / 2]
    torch.testing.assert_close(encoder.text_features(batch.token_ids), torch.stack(expected))


@torch.no_grad()
def test_the_head_takes_a_caption_without_words(example):
    add(example["Pooled"])
    encoder = DualEncoder(tiny.encoder().clip, "pooled", {"share": 0.5})
    nothing = torch.tensor([[98, 99]])
    assert torch.equal(encoder.text_features(nothing), encoder.read(nothing).whole)


def test_the_head_starts_as_the_plain_one(example):
    add(example["Pooled"])
    clip, batch = tiny.encoder().clip, tiny.batch()
    plain, pooled = DualEncoder(clip), DualEncoder(clip, "pooled")
    torch.testing.assert_close(plain.image_features(batch.pixels), pooled.image_features(batch.pixels))
    torch.testing.assert_close(plain.text_features(batch.token_ids), pooled.text_features(batch.token_ids))


def test_the_reader_takes_person_split_image_and_captions(example, station):
    records = example["read"](station / "data" / "Station" / "captions.json")
    assert [(record.split, record.pid) for record in records] == [
        (split, person) for split, people in SPLITS.items() for person in people for _ in (1, 2)
    ]
    assert records[2].path == "imgs/2_c1.png"
    assert records[2].captions == ("a person 2 in red", "someone 2 seen by camera 1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"person": "2"}, 'text as "person" where a whole number belongs'),
        ({"split": "query"}, 'has "query" as "split"'),
        ({"image": "../2_c1.png"}, "leaves the data set's folder"),
        ({"captions": "a man"}, 'text as "captions" where a list belongs'),
    ],
)
def test_the_reader_names_what_is_wrong(example, tmp_path, wrong, message):
    file = tmp_path / "captions.json"
    record = {"image": "2_c1.png", "person": 2, "split": "test", "captions": []}
    file.write_text(json.dumps([record | wrong]))
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        example["read"](file)
    assert (raised.value.where, "Record 0" in raised.value.what) == (str(file), True)


def test_what_is_added_is_found_by_its_name(example):
    add(example["Together"], example["Pooled"], example["STATION"])
    add(example["Together"])
    assert find_objective("together") is example["Together"]
    assert HEADS["pooled"] is example["Pooled"]
    assert data_set("Station") is example["STATION"]
    assert "Did you mean together?" in run("train", "--aux", "togther", exit_code=2).stderr


@pytest.mark.parametrize(
    ("base", "name", "message"),
    [
        (Objective, "tir", "'tir' is an objective already"),
        (Head, "global", "'global' is a head already"),
        (Head, "sdm", "'sdm' is an objective already"),
        (Objective, "parts", "'parts' is a head already"),
        (Objective, "optim", "'optim' is a part of the configuration already"),
        (Head, "captions", "'captions' is a part of the configuration already"),
        (Objective, "my.loss", "'my.loss' cannot be the name of an objective"),
        (Head, "Pooled", "'Pooled' cannot be the name of a head"),
        (Objective, None, "None cannot be the name of an objective"),
    ],
)
def test_a_name_that_is_taken_or_cannot_be_typed_is_refused(base, name, message):
    thing = type("Mine", (base,), {} if name is None else {"name": name})
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        add(thing)
    assert raised.value.where == f"{__name__}.Mine"


def test_a_data_set_of_a_taken_name_is_refused():
    with pytest.raises(UsageError, match="'rstpreid' is a data set already"):
        add(DataSet("rstpreid", "RSTPReid", ("a.json",), read_records, "nowhere"))


@pytest.mark.parametrize("thing", [int, "together", torch.nn.Identity])
def test_other_things_are_refused(thing):
    with pytest.raises(UsageError, match="neither an objective, nor a head, nor a data set"):
        add(thing)

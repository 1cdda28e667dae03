"""`tiprctl query`: its good output, its JSON, its bad input."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import chdir, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from PIL import Image
from rich.console import Console
from textual_image.renderable import HalfcellImage
from typer.testing import CliRunner

from tiprctl.checkpoint import encoder_header, save_checkpoint
from tiprctl.cli import app as program
from tiprctl.cli import hits, opening, render
from tiprctl.cli import query as command
from tiprctl.config import to_dict
from tiprctl.errors import ImageError, InputError
from tiprctl.exported import ExportedModel
from tiprctl.gallery.cluster import sources as cluster_sources
from tiprctl.gallery.filling.adding import sync
from tiprctl.gallery.filling.embedding import content_hash
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.images import load_pixels
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.models.clip import Clip
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.heads.division import VisualDivision
from tiprctl.pixels import normalise
from tiprctl.sources import load_embedder
from tiprctl.tokenizer import default_tokenizer
from tiprctl.vector_model import load_vector_model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """An embedder that knows colour words and mean colours."""

    description = "runs/colours (best epoch 12, chosen on val)"
    source = "runs/colours"
    fingerprint = "colours"
    precision = "float32"
    width = 3
    image_size = (8, 4)
    tokenizer = default_tokenizer()

    def __init__(self):
        self.images = 0
        self.interrupt = False

    def embed_images(self, pixels):
        if self.interrupt:
            raise KeyboardInterrupt
        self.images += len(pixels)
        return _unit(pixels.mean((1, 2)) + 1)

    def embed_texts(self, texts):
        return _unit(
            np.array([sum(np.array(COLOURS[word]) for word in text.split() if word in COLOURS) for text in texts])
        )


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def embedder(monkeypatch, tmp_path):
    """The model that the command finds, instead of a trained one."""
    colours = Colours()
    monkeypatch.setattr(command, "_load_model", lambda source, device, *, bulk, pairs: colours)
    monkeypatch.setenv("TIPRCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return colours


@pytest.fixture
def crops(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (4, 8), colour).save(folder / f"{name}.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(program.app, ["query", *map(str, arguments)])


def test_table_ranks_the_crops(embedder, crops):
    done = run("woman in red coat", "--gallery", "crops")
    assert done.exit_code == 0
    assert "woman in red coat" in done.stdout
    rows = re.findall(r"│\s+(\d)\s+│\s+([\d.-]+)\s+│\s+(\S+)\s+│", done.stdout)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[0] == ("1", "1.000", "crops/red.png")
    assert "Model: runs/colours (best epoch 12, chosen on val)" in done.stderr
    assert "3 images, 3 of them embedded now" in done.stderr


def test_a_sentence_in_brackets_is_shown_as_it_is(embedder, crops):
    assert "[red] coat" in run("[red] coat red", "--gallery", "crops").stdout


def test_a_second_query_embeds_nothing(embedder, crops):
    run("red", "--gallery", crops)
    done = run("blue", "--gallery", crops, "--plain", "--top", 1)
    assert done.stdout == f"{crops / 'blue.png'}\n"
    assert embedder.images == 3
    assert "0 of them embedded now" in done.stderr


@pytest.mark.parametrize(
    ("gallery", "prefix"), [("crops", "crops/"), ("./crops/", "crops/"), ("crops/../crops", "crops/../crops/")]
)
def test_plain_prints_paths_that_the_working_folder_reaches(embedder, crops, gallery, prefix):
    done = run("green", "--gallery", gallery, "--plain", "--top", 50)
    assert done.stdout.splitlines() == [f"{prefix}green.png", f"{prefix}blue.png", f"{prefix}red.png"]


def test_json_holds_model_gallery_skipped_and_ranked_hits(embedder, crops):
    (crops / "bad.jpg").touch()
    done = run("red coat", "--gallery", "crops", "--top", 2, "--json")
    document = json.loads(done.stdout)
    assert list(document) == ["model", "gallery", "images", "skipped", "results"]
    assert (document["model"], document["gallery"], document["images"]) == (embedder.description, "crops", 3)
    assert [skipped["path"] for skipped in document["skipped"]] == ["bad.jpg"]
    assert "0 bytes" in document["skipped"][0]["reason"]
    (result,) = document["results"]
    assert result["query"] == "red coat"
    assert [(hit["rank"], hit["path"]) for hit in result["hits"]] == [(1, "crops/red.png"), (2, "crops/blue.png")]
    assert result["hits"][0]["score"] == pytest.approx(256 / np.hypot(256, np.sqrt(2)), abs=1e-5)


def test_unreadable_files_are_counted_and_the_first_named(embedder, crops):
    for number in range(5):
        (crops / f"bad{number}.jpg").touch()
    done = run("red", "--gallery", "crops", "--plain")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 3
    assert "5 skipped: bad0.jpg (The image file is empty (0 bytes)), bad1.jpg" in done.stderr
    assert "and 2 more" in done.stderr
    assert "bad3.jpg" not in done.stderr


def test_several_sentences_from_a_file(embedder, crops, tmp_path):
    (tmp_path / "queries.txt").write_text("\ufeffwoman in red\n\n  a blue coat  \n", encoding="utf-8")
    done = run("--queries", "queries.txt", "--gallery", "crops", "--json", "--top", 1)
    results = json.loads(done.stdout)["results"]
    assert [(result["query"], result["hits"][0]["path"]) for result in results] == [
        ("woman in red", "crops/red.png"),
        ("a blue coat", "crops/blue.png"),
    ]
    table = run("--queries", "queries.txt", "--gallery", "crops").stdout
    assert table.index("woman in red") < table.index("a blue coat")


def test_sheet_is_written_and_named(embedder, crops, tmp_path):
    done = run("red", "--gallery", "crops", "--sheet", "out.png", "--plain")
    assert done.exit_code == 0
    assert "Contact sheet: out.png" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.format == "PNG"
        assert 400 < sheet.width < 2000
        assert 250 < sheet.height < 800


@pytest.mark.parametrize("code", [0, 1])
def test_open_implies_a_sheet_in_the_cache(embedder, crops, tmp_path, monkeypatch, code):
    opened = []
    monkeypatch.setattr(hits.typer, "launch", lambda file: opened.append(file) or code)
    done = run("red", "--gallery", "crops", "--open")
    assert done.exit_code == 0
    assert opened == [str(tmp_path / "cache" / "sheet.png")]
    Image.open(opened[0]).verify()
    assert ("No viewer could be opened" in done.stderr) == bool(code)


def test_a_long_sentence_is_said_to_be_cut(embedder, crops):
    long = run("red " * 80, "--gallery", "crops")
    assert long.exit_code == 0
    assert "cut after 75 of its 80 tokens: red red" in long.stderr
    assert "cut" not in run("red " * 75, "--gallery", "crops").stderr


def test_interrupt_says_what_is_kept(embedder, crops):
    run("red", "--gallery", crops)
    Image.new("RGB", (4, 8), "white").save(crops / "white.png")
    embedder.interrupt = True
    done = run("red", "--gallery", crops)
    assert done.exit_code == 130
    assert done.stdout == ""
    assert "0 of 1 new images are embedded and kept; the same command goes on from there" in done.stderr


BAD = {
    "no sentence": ([], 2, "There is nothing to look for"),
    "empty sentence": (["  "], 2, "The sentence is empty"),
    "sentence and file": (["red", "--queries", "some.txt"], 2, "Both a sentence and --queries are given"),
    "json and plain": (["red", "--json", "--plain"], 2, "Two forms of output at once"),
    "no file": (["--queries", "none.txt"], 3, "cannot be read: No such file"),
    "empty file": (["--queries", "empty.txt"], 3, "The file of queries is empty"),
    "not UTF-8": (["--queries", "latin.txt"], 3, "The file of queries is not UTF-8"),
    "sheet of another kind": (["red", "--sheet", "out.jpg"], 2, "The contact sheet is a PNG file"),
    "sheet in the gallery": (["red", "--sheet", "crops/out.png"], 2, "would lie in the gallery"),
    "sheet in no folder": (["red", "--sheet", "empty.txt/out.png"], 3, "Cannot write"),
    "sheet too large": (["--queries", "many.txt", "--sheet", "out.png"], 2, "A contact sheet of 1,002 crops is too"),
    "top of none": (["red", "--top", "0"], 2, "--top"),
    "a weight of none": (["red", "--minus", "hat^0"], 2, "The weight 0 is no positive number"),
    "nothing but minus": (["--minus", "hat"], 2, "There is nothing to look for"),
    "csv and plain": (["red", "--csv", "-", "--plain"], 2, "Two forms of output at once"),
    "csv in no folder": (["red", "--csv", "empty.txt/out.csv"], 3, "Cannot write"),
    "score beyond a cosine": (["red", "--min-score", "2"], 2, "--min-score"),
    "expression of none": (["red", "--where", "colour = 3"], 2, "The columns are path, hash, size"),
    "empty pattern": (["red", "--exclude", " "], 2, "The pattern is empty"),
    "image of none": (["--like", "none.png"], 3, "There is no such image file"),
    "none to re-rank": (["red", "--rerank", "0"], 2, "--rerank"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_explained(embedder, crops, tmp_path, arguments, code, message):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "many.txt").write_text("red\n" * 334)
    (tmp_path / "latin.txt").write_bytes("röd kappa".encode("latin-1"))
    done = run(*arguments, "--gallery", "crops")
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stdout == ""
    assert embedder.images == 0


@pytest.mark.parametrize(("name", "message"), [("none", "There is no such folder"), ("empty", "There is no image")])
def test_a_bad_gallery_is_explained_before_a_model_is_loaded(tmp_path, monkeypatch, name, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(command, "_load_model", lambda *_, **__: pytest.fail("loaded"))
    done = run("red", "--gallery", tmp_path / name)
    assert done.exit_code == 3
    assert message in done.stderr
    assert str(tmp_path / name) in done.stderr


@pytest.fixture
def galleries(embedder, crops):
    """The same crops twice: as a folder, and as an indexed gallery with cameras, times and a column of the user's."""
    for number, colour in enumerate([(250, 10, 5), (0, 90, 250), (251, 10, 5), (90, 200, 20)]):
        (crops / "more").mkdir(exist_ok=True)
        Image.new("RGB", (4, 8), colour).save(crops / "more" / f"{number}.png")
    files = sorted(crops.rglob("*.png"))
    vectors = embedder.embed_images(np.stack([np.asarray(Image.open(file)) for file in files]))
    store = GalleryStore.create("g.lance", ModelIdentity.of(embedder), {"shift": pa.int64()})
    rows = {
        "path": [str(file) for file in files],
        "hash": [content_hash(file.read_bytes()) for file in files],
        "camera": ["cam_a" if number % 2 else None for number in range(len(files))],
        "time": [datetime(2026, 11, 1 + number, 8, 30) for number in range(len(files))],
        "shift": list(range(len(files))),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3),
    }
    store.put(pa.table({name: pa.array(column) for name, column in rows.items()}))
    embedder.images = 0
    return {"crops": files, "g.lance": files}


def hits_of(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return [result["hits"] for result in json.loads(done.stdout)["results"]]


def naive(files, query):
    """Names and cosines by a plain loop, best first, equal ones by path."""
    ranked = []
    for file in files:
        pixel = np.asarray(Image.open(file), float)[0, 0] + 1
        ranked.append((-float(pixel @ query) / math.sqrt(pixel @ pixel) / math.sqrt(query @ query), str(file)))
    return [(Path(path).name, -score) for score, path in sorted(ranked)]


def names(found):
    return [Path(hit["path"]).name for hit in found]


@pytest.mark.parametrize("words", ["red", "red blue", "green blue"])
def test_a_folder_and_an_index_of_the_same_crops_give_the_same_ranks_and_scores(embedder, galleries, crops, words):
    expected = naive(galleries["crops"], sum(np.array(COLOURS[word], float) for word in words.split()))
    for gallery in (crops, "g.lance"):
        (found,) = hits_of(words, "--gallery", gallery)
        assert [hit["rank"] for hit in found] == list(range(1, 8))
        assert names(found) == [name for name, _ in expected]
        assert [hit["score"] for hit in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_an_index_has_its_columns_in_every_form(embedder, galleries):
    (found,) = hits_of("red", "--gallery", "g.lance", "--top", 1)
    number = galleries["g.lance"].index(Path(found[0]["path"]))
    assert found[0]["time"] == f"2026-11-0{1 + number} 08:30:00"
    assert found[0]["columns"] == {"shift": number}
    table = run("red", "--gallery", "g.lance").stdout
    assert "cam_a" in table and "camera" in table and "2026-11-03 08:30:00" in table
    folder = run("red", "--gallery", "crops").stdout
    assert "camera" not in folder and "time" not in folder


def test_where_filters_by_the_columns(embedder, galleries):
    files = galleries["g.lance"]
    expression = "camera = 'cam_a' and time > '2026-11-03' and shift < 5"
    (found,) = hits_of("blue", "--gallery", "g.lance", "--where", expression)
    assert names(found) == [files[3].name]
    assert len(hits_of("blue", "--gallery", "crops", "--where", "size > 0")[0]) == 7


def test_a_bad_expression_is_explained_with_the_columns_there_are(embedder, galleries):
    for expression in ("colour = 'red'", "camera = ", "camera = 'x'; drop table", "shift > 'a'"):
        done = run("red", "--gallery", "g.lance", "--where", expression)
        assert done.exit_code == 2, done.output
        assert done.stdout == ""
        assert 2 <= len(done.stderr.splitlines()) <= 6
        assert "shift" in done.stderr and "camera = 'cam_a'" in done.stderr


@pytest.mark.parametrize("gallery", ["crops", "g.lance"])
def test_min_score_keeps_what_reaches_it(embedder, galleries, gallery):
    everything = hits_of("red", "--gallery", gallery)[0]
    least = everything[2]["score"] - 1e-6
    assert hits_of("red", "--gallery", gallery, "--min-score", least)[0] == everything[:3]


@pytest.mark.parametrize("gallery", ["crops", "g.lance"])
@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("crops/red.png", {"red.png"}),
        ("./crops/red.png", {"red.png"}),
        ("*/more/*", {"0.png", "1.png", "2.png", "3.png"}),
        ("crops/more", {"0.png", "1.png", "2.png", "3.png"}),
        ("more/[12].png", {"1.png", "2.png"}),
        ("*.PNG", set()),
        ("it's.png", set()),
    ],
)
def test_exclude_leaves_out_paths_folders_and_patterns(embedder, galleries, gallery, pattern, gone):
    (found,) = hits_of("red", "--gallery", gallery, "--exclude", pattern)
    assert {file.name for file in galleries[gallery]} - set(names(found)) == gone


def test_a_path_can_be_excluded_as_it_is_printed_whatever_is_in_it(embedder, crops):
    Image.new("RGB", (4, 8), "red").save(crops / "a[1]'s.png")
    paths = run("red", "--gallery", "crops", "--plain").stdout.splitlines()
    done = run("red", "--gallery", "crops", "--plain", *(f"--exclude={path}" for path in paths[:2]))
    assert done.stdout.splitlines() == paths[2:]


@pytest.mark.parametrize("form", ["crops/[old]", "crops/[old]/", "./crops/[old]", "[old]", "{root}/crops/[old]"])
def test_a_folder_can_be_excluded_whatever_is_in_its_name(embedder, crops, tmp_path, form):
    (crops / "[old]").mkdir()
    (crops / "o").mkdir()
    for folder in ("[old]", "o"):
        Image.new("RGB", (4, 8), "red").save(crops / folder / "1.png")
    model = embedder
    sync(GalleryStore.create("g.lance", ModelIdentity.of(model)), list_images(crops), model)
    for gallery in ("crops", "g.lance"):
        paths = run("red", "--gallery", gallery, "--plain", "--exclude", form.format(root=tmp_path)).stdout
        assert "[old]" not in paths
        assert "blue.png" in paths
    # A pattern stays one.
    assert "crops/o/1.png" not in run("red", "--gallery", "crops", "--plain", "--exclude", "crops/[op]/*").stdout


@pytest.mark.parametrize("gallery", ["crops", "g.lance"])
def test_an_image_alone_and_with_texts(embedder, galleries, gallery):
    files = galleries[gallery]
    like = np.array([1, 1, 256.0])
    (found,) = hits_of("--like", "crops/blue.png", "--gallery", gallery)
    assert names(found) == [name for name, _ in naive(files, like)]
    assert found[0]["score"] == pytest.approx(1, abs=1e-6)
    unit = {word: np.array(value) / 255 for word, value in COLOURS.items()}
    both = like / np.linalg.norm(like) + 0.5 * unit["red"] - 2 * unit["green"]
    (found,) = hits_of("--like", "crops/blue.png", "--plus", "red^0.5", "--minus", "green^2", "--gallery", gallery)
    expected = naive(files, both)
    assert names(found) == [name for name, _ in expected]
    assert [hit["score"] for hit in found] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("gallery", ["crops", "g.lance"])
def test_near_duplicates_are_folded_and_the_top_is_filled(embedder, galleries, gallery):
    (found,) = hits_of("red", "--gallery", gallery, "--group-similar", "--top", 3)
    reds = sorted(file.name for file in galleries[gallery] if file.name in ("red.png", "0.png", "2.png"))
    assert len(found) == 3
    assert sorted(Path(path).name for path in (found[0]["path"], *found[0]["similar"])) == reds
    assert "+2" in run("red", "--gallery", gallery, "--group-similar").stdout
    assert len(hits_of("red", "--gallery", gallery, "--similar-from", "-1")[0]) == 1
    assert len(hits_of("red", "--gallery", gallery, "--similar-from", "1")[0]) == 7


def test_no_hit_is_said_and_is_no_error(embedder, galleries):
    for form, output in (("--plain", ""), ("--json", None), ("--csv=-", "query,rank,score,path,camera,time\n")):
        done = run("red", "--gallery", "g.lance", "--where", "camera = 'none'", "--min-score", 0.5, form)
        assert done.exit_code == 0
        assert "no crop for 'red': none of its 7 images passes --where, --min-score" in done.stderr
        assert done.stdout == output or json.loads(done.stdout)["results"] == [{"query": "red", "hits": []}]
    done = run("red", "--gallery", "crops", "--exclude", "*", "--sheet", "none.png")
    assert done.exit_code == 0
    assert "passes --exclude" in done.stderr


def test_csv_is_read_back_and_spreadsheets_compute_nothing(embedder, galleries, crops, tmp_path, monkeypatch):
    Image.new("RGB", (4, 8), "red").save(crops / 'a,"b\n.png')
    done = run("red", "--gallery", "crops", "--csv", "-")
    assert done.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["path"] for row in rows} == {
        str(Path("crops") / file.relative_to(crops)) for file in crops.rglob("*.png")
    }
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 9)]
    (crops.parent / "q.txt").write_text("=cmd red\n@x blue\n")
    crops.rename(crops.parent / "=crops")
    done = run("--queries", "q.txt", "--gallery", "=crops", "--csv", "out.csv", "--plain", "--top", 1)
    assert done.stdout.splitlines()[0].startswith("=crops/")
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert [row["query"] for row in rows] == ["'=cmd red", "'@x blue"]
    assert all(row["path"].startswith("./=crops/") and Path(row["path"]).is_file() for row in rows)


def test_each_heading_of_a_csv_stands_there_once(tmp_path):
    users = {"rank": "major", "score": 0.5, "query": "q", "similar": "twin", "shift": 3}
    hit = {
        "rank": 1,
        "score": 0.9,
        "path": "a.png",
        "camera": None,
        "time": None,
        "columns": users,
        "similar": ["b.png"],
    }
    hits.write_csv([{"query": "red", "hits": [hit]}], str(tmp_path / "out.csv"))
    (row,) = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    own = {"query": "red", "rank": "1", "score": "0.9", "path": "a.png", "camera": "", "time": "", "similar": "1"}
    own_columns = {"rank": "major", "score": "0.5", "query": "q", "similar": "twin"}
    assert row == own | {f"columns.{name}": value for name, value in own_columns.items()} | {"shift": "3"}


def test_a_name_does_not_command_the_terminal(embedder, crops):
    name = "a\x1b[31m\u202e[bold]\n.png"
    Image.new("RGB", (4, 8), "red").save(crops / name)
    table = run("red", "--gallery", "crops").stdout
    assert "\x1b" not in table and "\u202e" not in table
    assert r"a\x1b[31m\u202e[bold]\n.png" in table
    assert f"crops/{name}\n" in run("red", "--gallery", "crops", "--plain").stdout


def test_plain_paths_are_neutralised_on_a_terminal_alone(monkeypatch, capsys):
    render.result_line("a\x1b[31m")
    monkeypatch.setattr(render.sys.stdout, "isatty", lambda: True, raising=False)
    render.result_line("a\x1b[31m")
    assert capsys.readouterr().out == "a\x1b[31m\na\\x1b[31m\n"


def test_show_says_why_it_cannot_and_the_table_is_there(embedder, crops, monkeypatch):
    done = run("red", "--gallery", "crops", "--show")
    assert done.exit_code == 0
    assert "No crops are shown, since the output goes to no terminal" in done.stderr
    assert "crops/red.png" in done.stdout
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = run("red", "--gallery", "crops", "--show")
    assert done.exit_code == 2
    assert "pip install 'tiprctl[terminal]'" in done.stderr


@pytest.mark.filterwarnings("ignore:Image.Image.getdata")  # of textual_image
def test_crops_in_an_object_store_are_read_from_it(embedder, crops, tmp_path, monkeypatch):
    store = GalleryStore.create("g.lance", ModelIdentity.of(embedder))
    sync(store, list_images(crops), embedder)
    rows = store.dataset.to_table()
    paths = [f"s3://bucket/{Path(path).name}" for path in rows["path"].to_pylist()]
    store.put(rows.set_column(rows.column_names.index("path"), rows.schema.field("path"), pa.array(paths)))

    def read(location):
        if location.endswith("red.png"):
            raise ImageError("The image cannot be read: denied", where=location)
        return (crops / location.removeprefix("s3://bucket/")).read_bytes()

    monkeypatch.setattr(cluster_sources, "read_image", read)
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system="truecolor", width=60, highlight=False)
    monkeypatch.setattr(render, "_out", terminal)
    monkeypatch.setattr("textual_image.renderable.Image", HalfcellImage)
    done = run("blue", "--gallery", "g.lance", "--exclude", crops, "--sheet", "out.png", "--show", "--plain")
    assert done.exit_code == 0, done.output
    assert "\x1b[38;2;0;0;255;48;2;0;0;255m▀" in screen.getvalue()
    assert done.stderr.count("The image cannot be read: denied: s3://bucket/red.png") == 2
    with Image.open("out.png") as sheet:
        assert {(0, 0, 255), (0, 255, 0)} <= {colour for _, colour in sheet.getcolors(1 << 20)}


@pytest.mark.filterwarnings("ignore:Image.Image.getdata")  # of textual_image
def test_crops_are_shown_in_a_terminal_of_colours(embedder, crops, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system="truecolor", width=60, highlight=False)
    monkeypatch.setattr(render, "_out", terminal)
    monkeypatch.setattr("textual_image.renderable.Image", HalfcellImage)
    (crops / "gone.png").write_bytes((crops / "red.png").read_bytes())
    done = run("red", "--gallery", "crops", "--show", "--plain", "--top", 3)
    assert done.exit_code == 0
    shown = screen.getvalue()
    assert shown.count("\x1b[38;2;255;0;0;48;2;255;0;0m▀") > 50
    assert "1  1.000" in shown and "3  " in shown


@pytest.fixture
def models(embedder, monkeypatch):
    """The models that there are, by their names; None is the newest finished run, and `loaded` what was asked for."""
    found, loaded = {}, []

    def load(source, device, *, bulk, pairs):
        loaded.append(source)
        if source not in found:
            raise InputError("There is no such run", where=source)
        return found[source]

    monkeypatch.setattr(command, "_load_model", load)
    monkeypatch.setattr("tiprctl.runs.latest_run", lambda: "a run" if None in found else None)
    found["loaded"] = loaded
    return found


def other_model():
    other = Colours()
    other.fingerprint, other.description = "another", "runs/other (best epoch 3, chosen on val)"
    return other


def test_a_gallery_is_searched_by_its_own_model(galleries, models, embedder):
    models |= {"runs/colours": embedder, None: other_model()}
    done = run("red", "--gallery", "g.lance", "--plain", "--top", 1)
    assert done.exit_code == 0
    assert "Model: runs/colours" in done.stderr
    assert models["loaded"] == ["runs/colours"]


@pytest.mark.parametrize("changed", [False, True])
def test_a_gallery_whose_model_was_moved_is_searched_by_the_newest_run_if_it_is_that(
    galleries, models, embedder, changed
):
    models |= {None: embedder} | ({"runs/colours": other_model()} if changed else {})
    done = run("red", "--gallery", "g.lance", "--plain", "--top", 1)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("crops/red.png\n")


@pytest.mark.parametrize("newest", [False, True])
def test_a_gallery_whose_model_is_gone_says_so(galleries, models, newest):
    models |= {None: other_model()} if newest else {}
    done = run("red", "--gallery", "g.lance")
    assert done.exit_code == 2
    what, where, remedy = done.stderr.splitlines()
    assert "is no longer there, or has changed: runs/colours (best epoch 12" in what
    assert where == "  runs/colours"
    assert "--model" in remedy


def test_a_gallery_of_another_model_is_refused_with_the_remedy(galleries, models):
    models |= {"runs/other": other_model()}
    done = run("red", "--gallery", "g.lance", "--model", "runs/other")
    assert done.exit_code == 2
    assert "indexed with another model: runs/colours (best epoch 12, chosen on val), not runs/other" in done.stderr
    assert "--model runs/colours" in done.stderr


class Exported(ExportedModel):
    """One that onnxruntime runs, as far as the command can tell."""

    description, fingerprint, precision, width, image_size = "exported", "colours", "float32", 3, (8, 4)
    tokenizer = Colours.tokenizer
    embed_images, embed_texts = Colours.embed_images, Colours.embed_texts
    images, interrupt = 0, False
    source = "runs/colours"

    def __init__(self):
        """There is no folder to read."""


@pytest.mark.parametrize(("kind", "bulk"), [(Colours, [False]), (Exported, [False, True])])
def test_a_model_that_embeds_many_quickly_is_loaded_in_place_of_an_export_alone(
    embedder, crops, monkeypatch, kind, bulk
):
    loaded = []
    monkeypatch.setattr(command, "_load_model", lambda *_, bulk, pairs: loaded.append(bulk) or kind())
    monkeypatch.setattr(opening, "MANY", 2)
    assert run("red", "--gallery", "crops").exit_code == 0
    assert loaded == bulk
    # Nothing is new.
    assert run("red", "--gallery", "crops").exit_code == 0
    assert loaded == [*bulk, False]


def test_what_is_no_gallery_is_explained(embedder, tmp_path):
    done = run("red", "--gallery", "none.lance")
    assert done.exit_code == 3
    assert "There is no gallery\n  none.lance\n  Make it: tiprctl index add" in done.stderr


def test_a_missing_run_is_explained(crops, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("red", "--gallery", crops)
    assert done.exit_code == 2
    said = f"There is no finished run to use\n  {tmp_path / 'runs'}\n  Name a run, an export or a pretrained CLIP"
    assert said in done.stderr
    assert "--model ViT-B-16/openai), or train one: tiprctl train." in done.stderr


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A function from a head's name to a checkpoint's file and its encoder."""
    monkeypatch.setenv("TIPRCTL_CACHE", str(tmp_path / "cache"))

    def write(head):
        clip = Clip(replace(tiny.CLIP, vocab_size=49408))
        clip.initialise(torch.Generator().manual_seed(0))
        encoder = DualEncoder(clip, head).eval()
        tensors = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
        header = {"config": to_dict(tiny.recipe()), "dataset": "d", "epoch": 1, "selected_on": "val"}
        header |= {"fingerprint": "abc", "captions": {"tagger": "textblob"}} | encoder_header(encoder)
        save_checkpoint(tmp_path / "best.safetensors", tensors, header)
        return tmp_path / "best.safetensors", encoder

    return write


def pixels_of(path):
    return normalise(torch.from_numpy(load_pixels(path, (16, 8))).permute(2, 0, 1)[None])


def test_a_checkpoint_ranks_by_its_own_cosines(crops, checkpoint):
    file, encoder = checkpoint("global")
    done = run("red coat", "--gallery", crops, "--model", file, "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    hits = json.loads(done.stdout)["results"][0]["hits"]
    assert len(hits) == 3
    with torch.no_grad():
        text = encoder.text_features(torch.from_numpy(default_tokenizer()(["red coat"])))
        for hit in hits:
            image = encoder.image_features(pixels_of(hit["path"]))
            assert hit["score"] == pytest.approx(torch.cosine_similarity(image, text).item(), abs=1e-4)


def least_like(self, images, patches, captions, prompts, found):
    """Scores that turn the ranking round."""
    return 5 - cosine_similarity(images, captions)


def test_the_first_crops_are_ranked_again_by_their_pairs(crops, checkpoint, tmp_path, monkeypatch):
    Image.new("RGB", (4, 8), (120, 130, 10)).save(crops / "a.png")
    file, _ = checkpoint("division")
    (tmp_path / "queries.txt").write_text("a red coat\na man in blue jeans")
    arguments = [
        "--queries",
        tmp_path / "queries.txt",
        "--gallery",
        crops,
        "--model",
        file,
        "--json",
        "--device",
        "cpu",
    ]
    before = json.loads(run(*arguments).stdout)
    monkeypatch.setattr(VisualDivision, "pair_scores", least_like)
    done = run(*arguments, "--rerank", 3)
    document = json.loads(done.stdout)
    assert list(document) == ["model", "gallery", "images", "skipped", "rerank", "rerank_cost", "results"]
    assert (document["rerank"], document["rerank_cost"]["pairs"]) == (3, 6)
    for old, new in zip(before["results"], document["results"]):
        order = [hit["path"] for hit in old["hits"]]
        assert [hit["path"] for hit in new["hits"]] == [order[2], order[1], order[0], order[3]]
        assert [hit["rank"] for hit in new["hits"]] == [1, 2, 3, 4]
        assert [hit.get("reranked") for hit in new["hits"]] == [True, True, True, None]
        scores = [hit["score"] for hit in old["hits"]]
        expected = [*(5 - score for score in scores[2::-1]), scores[3]]
        assert [hit["score"] for hit in new["hits"]] == pytest.approx(expected, abs=1e-4)
    assert "Re-ranked 3 of 4 images for each of 2 captions: 6 pairs, " in done.stderr
    assert "The scores of the first 3 are those of pairs" in done.stderr


def test_an_index_is_ranked_again_from_its_files(crops, checkpoint, tmp_path, monkeypatch):
    file, _ = checkpoint("division")
    monkeypatch.chdir(tmp_path)
    model = load_embedder(file, device=torch.device("cpu"))
    sync(GalleryStore.create("g.lance", ModelIdentity.of(model)), list_images(crops), model)
    arguments = ["a red coat", "--gallery", "g.lance", "--plain", "--device", "cpu"]
    order = run(*arguments).stdout.split()
    monkeypatch.setattr(VisualDivision, "pair_scores", least_like)
    assert run(*arguments, "--rerank", 2).stdout.split() == [order[1], order[0], order[2]]
    (crops / Path(order[1]).name).unlink()
    done = run(*arguments, "--rerank", 2)
    assert done.exit_code == 3
    assert f"There is no such image file\n  {order[1]}\n  Bring the gallery up to date" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--like", "crops/red.png"], ["red", "--plus", "hat"], ["red", "--minus", "hat"]]
)
def test_only_descriptions_are_ranked_again(embedder, crops, arguments):
    done = run(*arguments, "--gallery", "crops", "--rerank", 2)
    assert done.exit_code == 2
    assert "Only descriptions can be ranked again" in done.stderr


def test_crops_from_beyond_the_top_are_ranked_again(crops, checkpoint, monkeypatch):
    file, _ = checkpoint("division")
    arguments = ["a red coat", "--gallery", crops, "--model", file, "--plain", "--device", "cpu"]
    order = run(*arguments).stdout.split()
    monkeypatch.setattr(VisualDivision, "pair_scores", least_like)
    done = run(*arguments, "--rerank", 50, "--top", 1)
    assert done.stdout.split() == order[-1:]
    assert "Re-ranked 3 of 3 images" in done.stderr


def test_a_line_in_the_table_parts_the_crops_that_were_ranked_again_from_the_others(crops, checkpoint):
    file, _ = checkpoint("division")
    arguments = ["a red coat", "--gallery", crops, "--model", file, "--device", "cpu"]
    plain = run(*arguments).stdout.splitlines()
    parted = run(*arguments, "--rerank", 2).stdout.splitlines()
    marks = [line[0] for line in parted[1:]]
    assert marks == ["┏", "┃", "┡", "│", "│", "├", "│", "└"]
    assert [line[0] for line in plain[1:]] == [mark for mark in marks if mark != "├"]
    assert marks == [line[0] for line in run(*arguments, "--rerank", 2, "--top", 3).stdout.splitlines()[1:]]
    assert "├" not in run(*arguments, "--rerank", 2, "--top", 2).stdout


def test_scores_of_pairs_are_the_heads(crops, checkpoint):
    file, encoder = checkpoint("division")
    done = run("red coat", "--gallery", crops, "--model", file, "--json", "--device", "cpu", "--rerank", 2)
    (result,) = json.loads(done.stdout)["results"]
    with torch.no_grad():
        text, phrase = (
            encoder.read(torch.from_numpy(default_tokenizer()([words]))).whole
            for words in ("red coat", "a photo of a person with red coat")
        )
        for hit in result["hits"][:2]:
            seen = encoder.see(pixels_of(hit["path"]))
            found = torch.ones(1, 1, dtype=torch.bool)
            score = encoder.head.pair_scores(seen.whole, seen.values[:, 1:], text, phrase[:, None], found)
            assert hit["score"] == pytest.approx(score.item(), abs=1e-4)


def test_a_model_that_cannot_re_rank_is_told_before_it_is_loaded(crops, checkpoint, monkeypatch):
    file, _ = checkpoint("global")
    monkeypatch.setattr("tiprctl.sources.load_embedder", lambda *_, **__: pytest.fail("loaded"))
    done = run("red coat", "--gallery", crops, "--model", file, "--rerank", 2)
    assert done.exit_code == 2
    what, where, remedy = done.stderr.splitlines()
    assert what.startswith("error: Only models of the recipe scvd") and what.endswith("the head global")
    assert (where, remedy) == (f"  {file}", "  Name such a model, or leave --rerank out.")


def test_naming_the_cache_loads_no_index():
    code = "import sys, tiprctl.gallery.cache; print({'lance', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def indexed_run(exported_run, tmp_path_factory):
    """A working folder with a finished run, its export, some crops and their index."""
    folder = shutil.copytree(exported_run, tmp_path_factory.mktemp("indexed") / "home")
    with chdir(folder):
        model = load_vector_model("runs/a")
        (folder / "crops").mkdir()
        for name, colour in COLOURS.items():
            Image.new("RGB", (8, 16), colour).save(f"crops/{name}.png")
        sync(GalleryStore.create("g.lance", ModelIdentity.of(model)), list_images("crops"), model)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["a red coat", "--gallery", "g.lance", "--json"],
        ["--like", "crops/red.png", "--plus", "hat", "--gallery", "g.lance", "--where", "size > 0", "--sheet", "s.png"],
        ["a red coat", "--gallery", "crops", "--group-similar", "--csv", "-"],
    ],
)
def test_no_query_imports_torch_or_pandas_where_there_is_an_export(indexed_run, tmp_path, arguments):
    code = (
        "import sys; from tiprctl.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "query", *arguments],
        cwd=indexed_run,
        env={**os.environ, "TIPRCTL_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "red.png" in done.stdout


def test_an_index_is_searched_by_its_own_model_from_any_folder(indexed_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("a red coat", "--gallery", indexed_run / "g.lance", "--plain")
    assert done.exit_code == 0, done.stderr
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == ["blue.png", "green.png", "red.png"]


def test_a_text_query_of_an_index_imports_only_what_it_needs(indexed_run, tmp_path):
    code = (
        "import sys; from tiprctl.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: print(sorted({'PIL', 'textual_image', 'pandas', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "query", "a red coat", "--gallery", "g.lance", "--plain"],
        cwd=indexed_run,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("size", [(24, 80), (0, 0)])
def test_crops_are_shown_in_a_real_terminal_of_some_size(indexed_run, tmp_path, size):
    import termios

    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, size)
    shown = bytearray()

    def listen():
        with suppress(OSError):  # the other end was closed
            while some := os.read(ours, 4096):
                shown.extend(some)

    listener = threading.Thread(target=listen)
    listener.start()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "TIPRCTL_CACHE": str(tmp_path)}
    environment.pop("NO_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-m", "tiprctl", "query", "red", "--gallery", "crops", "--show"],
        cwd=indexed_run,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    listener.join()
    os.close(ours)
    assert done.returncode == 0, done.stderr
    text = shown.decode()
    assert ("38;2;0;255;0;48;2;0;255;0m▀" in text) == any(size)
    assert ("does not tell its size" in done.stderr) != any(size)
    assert "crops/red.png" in text


def test_gallery_is_required():
    done = run("red")
    assert done.exit_code == 2
    assert "--gallery" in done.stderr


def test_help_opens_with_examples():
    done = run("--help")
    assert done.exit_code == 0
    assert done.stdout.index('tiprctl query "woman in red coat" --gallery crops/') < done.stdout.index("Options")


def test_a_usage_error_imports_no_torch():
    code = (
        "import sys; from tiprctl.cli.app import app; sys.argv = ['tiprctl', 'query', '', '--gallery', 'x']\n"
        "try: app()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'lance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]

"""The pages of the project say what is so: their commands can be given, their links lead somewhere."""

import re
import shlex

import pyarrow as pa
import pytest
from pages import ROOT, broken_links, read_arguments, shown_commands

from tiprctl.gallery.filling import walking
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.keeping import schema
from tiprctl.gallery.keeping.expression import compiled
from tiprctl.gallery.keeping.schema import ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore
from tiprctl.gallery.searching import finding, optimising, similar

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
WITH_COMMANDS = [page for page in PAGES if shown_commands(page)]
GALLERY = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")


def named(page):
    return page.relative_to(ROOT).as_posix()


def cells(heading):
    """The rows of the table of `docs/gallery.md` that begins with this cell, without backticks."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\| ---.*\n((?:\|.*\n)+)", GALLERY, re.MULTILINE)
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in table.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_the_commands_can_be_given(page):
    for words in shown_commands(page):
        read_arguments(words)


def test_a_command_that_cannot_be_given_would_be_found():
    assert {"README.md", "docs/gallery.md", "docs/deploy.md", "docs/scaling.md"} <= set(map(named, WITH_COMMANDS))
    with pytest.raises(Exception, match="No such option: --galery"):
        read_arguments(["index", "status", "--galery", "gallery.lance"])


def test_the_columns_of_a_gallery_are_those_of_the_page():
    told = {name: kind for name, kind, _ in cells("column") if name != "your own"}
    types = {name: str(kind).partition("[")[0] for name, kind in schema.OWN_COLUMNS.items()}
    assert told == {**types, schema.VECTOR: "float32"}


@pytest.mark.parametrize(("path", "options", "read"), cells("path"))
def test_patterns_read_what_the_page_says(path, options, read):
    given = shlex.split(options)
    facts = [option.removeprefix("--").removesuffix("-from") for option in given[::2]]
    told = [PathPattern.parse(pattern, fact).read(path) for fact, pattern in zip(facts, given[1::2])]
    assert ", ".join(map(str, told)) == read


def test_the_expressions_of_the_page_can_be_asked():
    store = GalleryStore.in_memory(
        ModelIdentity("f", 4, "float32", "", ""), {"pid": pa.int64(), "note": pa.string(), "day": pa.date32()}
    )
    (text,) = re.findall(r"^- \*\*`--where`\*\* .*?(?=^- )", GALLERY, re.MULTILINE | re.DOTALL)
    expressions = [text for text in re.findall(r"`([^`]+)`", text) if " " in text]
    assert len(expressions) >= 5
    for expression in expressions:
        assert store.count(compiled(store, expression)) == 0


def test_the_figures_of_the_page_are_those_of_the_code():
    assert f"Up to {finding.EXACT_ROWS:,} rows every query compares all" in GALLERY
    assert f"or {finding.EXACT_ROWS:,} of them, are not in it" in GALLERY
    assert optimising.UNINDEXED_SHARE == 0.1
    assert f"a cosine of {similar.SIMILAR} or more" in GALLERY
    assert all(f"`{ending}`" in GALLERY for ending in walking.IMAGE_SUFFIXES)
    assert f"is to be {optimising.LEAST_RECALL} at least" in GALLERY

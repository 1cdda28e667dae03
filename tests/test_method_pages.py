"""The pages of docs/methods say what is so: their names, figures, links and commands are those of the program."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from tiprctl.cli.app import app
from tiprctl.data.catalog import DATA_SETS
from tiprctl.recipes import FIGURES, check_names, find_recipe, published_rows, with_objectives
from tiprctl.settings import with_settings

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
HEADINGS = [
    "Idea",
    "Data flow",
    "Equations",
    "Constants",
    "What differs from the published code",
    "Published rows",
    "Use",
]
SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tiprctl").rglob("*.py")))
WORDS = set(re.findall(r"\w+", SOURCE))

INSTEAD = {"What is given, and what is our reading": "What differs from the published code"}
"""What a page says where there is no published code to differ from."""

NAME = re.compile(r"[a-z]+(?:_[a-z0-9]+)+")
SUBSCRIPT = re.compile(r"_[ijmn]+$")

EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def section(page, heading):
    return page.read_text(encoding="utf-8").split(f"\n## {heading}")[1].split("\n## ")[0]


@EACH
def test_a_page_has_the_headings_of_all(page):
    found = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = [INSTEAD.get(heading, heading) for heading in found]
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


@EACH
def test_names_of_the_figure_and_the_equations_are_those_of_the_code(page):
    figure, equations = section(page, "Data flow"), section(page, "Equations")
    names = set(NAME.findall(figure)) - set(re.findall(r"(\w+)\[", figure)) | set(NAME.findall(equations))
    assert names
    assert {name for name in names if SUBSCRIPT.sub("", name) not in WORDS} == set()


@EACH
def test_the_published_rows_are_those_that_eval_prints(page):
    shown = re.findall(r"^\| ([a-z-]+) \| ([\d.–| ]+) \|$", section(page, "Published rows"), re.MULTILINE)
    rows = [(dataset, row) for dataset in DATA_SETS for row in published_rows(dataset)]
    own = [(dataset, row) for dataset, row in rows if row["model"].lower().startswith(page.stem)]
    expected = [(dataset, " | ".join(cell(row[figure]) for figure in FIGURES)) for dataset, row in own]
    assert sorted(shown) == sorted(expected)


def cell(figure):
    return "–" if figure is None else f"{figure:.2f}"


@EACH
def test_the_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, place = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert not place or place in map(anchor, headings), link


def anchor(heading):
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@EACH
def test_the_tests_that_a_page_names_are_there(page):
    named = re.findall(r"`(tests/\w+\.py)`", page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@EACH
def test_the_commands_can_be_given(page):
    lines = [line for line in section(page, "Use").splitlines() if line.startswith("tiprctl ")]
    assert lines
    for line in lines:
        _, name, *arguments = shlex.split(line, comments=True)
        given = get_command(app).commands[name].make_context(name, arguments).params
        if name == "train":
            check_names(given["recipe"], given["losses"], given["aux"])
            config = with_objectives(find_recipe(given["recipe"], given["data"]), given["losses"], given["aux"])
            with_settings(config, given["set"] or [])

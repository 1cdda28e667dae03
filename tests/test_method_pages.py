"""The pages of docs/methods say what is so: their names, figures, links and commands are those of the program."""

import ast
import re
from dataclasses import fields, replace
from functools import cache

import pytest
from pages import COMMANDS, ROOT, broken_links, read_arguments, shown_commands

from tiprctl.config import TrainConfig, from_dict, to_dict
from tiprctl.data.catalog import DATA_SETS
from tiprctl.models.heads import HEADS
from tiprctl.objectives import OBJECTIVES, find_objective
from tiprctl.recipes import FIGURES, RECIPES, check_names, find_recipe, published_rows, with_objectives
from tiprctl.settings import with_settings

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

INSTEAD = {"What is given, and what is our reading": "What differs from the published code"}
"""What a page says where there is no published code to differ from."""

NAME = re.compile(r"[a-z]+(?:_[a-z0-9]+)+")
SUBSCRIPT = re.compile(r"_[ijmn]+$")
LETTER = re.compile(r"[a-z]_[ijmn]+")
"""A letter with subscripts, which stands for a number and not for a name of the code."""
QUOTED = re.compile(r"`([A-Za-z_][\w-]*(?:\.\w+)*)(?:\[[^`]*\])?`")
"""A name in backticks, perhaps with places: `tir`, `cross.attn`, `matches[i, j]`."""
FILES = (".py", ".pth")

EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def section(page, heading):
    return page.read_text(encoding="utf-8").split(f"\n## {heading}")[1].split("\n## ")[0]


@cache
def identifiers():
    """What the code names: variables, attributes, arguments, keywords, functions, classes, configuration options."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tiprctl").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    names = (getattr(node, field, None) for node in nodes for field in ("id", "attr", "arg", "name"))
    return {name for name in names if isinstance(name, str)}


def known():
    """All names that a page may use: those of the code, and those that are typed."""
    return identifiers().union(OBJECTIVES, HEADS, RECIPES, DATA_SETS, COMMANDS)


@EACH
def test_a_page_has_the_headings_of_all(page):
    found = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = [INSTEAD.get(heading, heading) for heading in found]
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


@EACH
def test_names_of_the_figure_and_the_equations_are_those_of_the_code(page):
    figure, equations = section(page, "Data flow"), section(page, "Equations")
    names = set(NAME.findall(figure)) - set(re.findall(r"(\w+)\[", figure)) | set(NAME.findall(equations))
    names = {name for name in names if not LETTER.fullmatch(name)}
    assert names
    assert {name for name in names if SUBSCRIPT.sub("", name) not in identifiers()} == set()


@EACH
def test_names_in_backticks_are_those_of_the_code(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {name for name in QUOTED.findall(prose) if not name.endswith(FILES)}
    assert names
    assert {name for name in names if not known().issuperset(name.split("."))} == set()


@EACH
def test_the_constants_are_those_of_the_recipe(page):
    """To set a constant to what the page says changes nothing of the recipe that it is told of."""
    told = list(constants(page))
    assert told
    for recipe, name, value in told:
        config = RECIPES[recipe]
        assert complete(with_settings(config, [f"{name}={value}"])) == complete(config), (recipe, name, value)


@pytest.mark.parametrize("borrower", ["scvd", "sen"])
def test_the_constants_that_the_page_of_irra_lends_are_those_of_the_recipe(borrower):
    irra, page = (ROOT / "docs" / "methods" / f"{name}.md" for name in ("irra", borrower))
    assert "[those of IRRA](irra.md#constants)" in section(page, "Constants")
    config, lent = RECIPES[borrower], ("model", "optim", "augment", "epochs", "batch_size")
    settings = [f"{name}={value}" for _, name, value in constants(irra) if name.split(".")[0] in lent]
    assert complete(with_settings(config, settings)) == complete(config)


@pytest.mark.parametrize("wrong", ["tir.mask_ratio=0.6", "triplet.weight=1", "optim.lr=1e-4", "model.head=parts"])
def test_a_constant_that_is_not_the_recipes_would_be_found(wrong):
    config = RECIPES["sen"]
    assert complete(with_settings(config, [wrong])) != complete(config)


def constants(page):
    """Recipe, name and value of each constant that can be set, from the rows of the page's table."""
    for names, values in re.findall(r"^\| (.+?) \| (.+?) \|", section(page, "Constants"), re.MULTILINE):
        names, _, recipe = names.partition(" in ")
        names, values = re.findall(r"`([\w.]+)`", names), values.replace("`", "").split(", ")
        assert not names or len(names) == len(values), names
        for name, value in zip(names, values):
            if "." in name or name in {field.name for field in fields(TrainConfig)}:
                yield recipe.strip("`") or page.stem, name, re.sub(r"^(\S+) (?:x|and) (\S+)$", r"[\1,\2]", value)


def complete(config):
    """`config` with all options of its objectives and its head, also those that it leaves at their defaults."""
    objectives = tuple(
        replace(each, options=to_dict(from_dict(find_objective(each.name).Config, each.options)))
        for each in config.objectives
    )
    options = to_dict(from_dict(HEADS[config.model.head].Config, config.model.head_options))
    return replace(config, objectives=objectives, model=replace(config.model, head_options=options))


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
    assert broken_links(page) == []


@EACH
def test_the_tests_that_a_page_names_are_there(page):
    named = re.findall(r"`(tests/\w+\.py)`", page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@EACH
def test_the_commands_can_be_given(page):
    commands = shown_commands(page)
    assert commands
    for words in commands:
        given = read_arguments(words)
        if words[0] == "train":
            check_names(given["recipe"], given["losses"], given["aux"])
            config = with_objectives(find_recipe(given["recipe"], given["data"]), given["losses"], given["aux"])
            with_settings(config, given["set"] or [])

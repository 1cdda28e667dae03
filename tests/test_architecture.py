"""Knowledge flows one way: no module imports from a floor above its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tiprctl"

# From the ground up; a module belongs to the longest prefix that fits it.
FLOORS = (
    (
        "tiprctl.losses",
        "tiprctl.metrics",
        "tiprctl.tokenizer",
        "tiprctl.wordpiece",
        "tiprctl.token_masking",
        "tiprctl.prompts",
        "tiprctl.errors",
        "tiprctl.names",
        "tiprctl.meter",
        "tiprctl.files",
        "tiprctl.images",
        "tiprctl.canvas",
        "tiprctl.pixels",
        "tiprctl.shares",
        "tiprctl.transfer",
        "tiprctl.execution",
        "tiprctl.job",
        "tiprctl.distributed",
        "tiprctl.process_group",
        "tiprctl.precision",
        "tiprctl.interrupt",
        "tiprctl.cores",
        "tiprctl.worker_pool",
    ),
    (
        "tiprctl.models",
        "tiprctl.config",
        "tiprctl.runs",
        "tiprctl.checkpoint",
        "tiprctl.checkpoint_file",
        "tiprctl.vector_model",
        "tiprctl.sources",
        "tiprctl.exporting",
        "tiprctl.exported",
    ),
    ("tiprctl.objectives", "tiprctl.data", "tiprctl.gallery"),
    (
        "tiprctl.recipes",
        "tiprctl.settings",
        "tiprctl.starting",
        "tiprctl.reranking",
        "tiprctl.evaluation",
        "tiprctl.explanation",
        "tiprctl.extension",
    ),
    (
        "tiprctl.optimisation",
        "tiprctl.gradients",
        "tiprctl.descent",
        "tiprctl.progress",
        "tiprctl.training",
        "tiprctl.ablation",
    ),
    ("tiprctl.cli", "tiprctl.__main__"),
)
PURE = ("tiprctl.losses", "tiprctl.metrics", "tiprctl.models.masking")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = ("tiprctl", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def floor(module: str) -> int:
    fitting = [
        (len(prefix), level)
        for level, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return 0 if module == "tiprctl" else max(fitting)[1]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_down(file):
    own = floor(module_name(file))
    above = {
        name for name in imports(file) if name.split(".")[0] == "tiprctl" and name != "tiprctl" and floor(name) > own
    }
    assert not above


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_terminal_libraries_stay_in_the_command_line(file):
    names = {name.split(".")[0] for name in imports(file)}
    module = module_name(file)
    assert "typer" not in names or module.startswith("tiprctl.cli")
    assert "rich" not in names or module == "tiprctl.cli.render"


@pytest.mark.parametrize("file", [file for file in FILES if module_name(file).startswith(PURE)], ids=module_name)
def test_pure_modules_import_torch_alone(file):
    allowed = sys.stdlib_module_names | {"torch"}
    foreign = {name for name in imports(file) if name.split(".")[0] not in allowed}
    drawn = ("tiprctl.shares", "tiprctl.pixels") if module_name(file) == "tiprctl.models.masking" else ()
    assert all(name.startswith(("tiprctl.losses", "tiprctl.errors", *drawn)) for name in foreign)


@pytest.mark.parametrize(
    "file", [file for file in FILES if module_name(file).startswith("tiprctl.data")], ids=module_name
)
def test_data_knows_no_model(file):
    assert not {name for name in imports(file) if name.startswith(("tiprctl.models", "tiprctl.objectives"))}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["trian"], ["train", "--no-such"], ["train", "--recipe", "sen2"]]
)
def test_start_up_imports_neither_torch_nor_pandas(arguments):
    code = (
        "import sys\n"
        "from tiprctl.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'lance', 'open_clip', 'PIL'} & set(sys.modules)))"
    )
    assert run_python(code).splitlines()[-1] == "[]"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


GALLERY = {"keeping": (), "searching": ("keeping",), "filling": ("keeping",), "cluster": ("keeping", "filling")}
"""The parts of the gallery, and which others each may know."""


@pytest.mark.parametrize("part", GALLERY)
def test_the_parts_of_the_gallery_know_each_other_one_way(part):
    known = {part, *GALLERY[part]}
    for file in sorted((PACKAGE / "gallery" / part).glob("*.py")):
        of_the_gallery = {name.split(".")[2] for name in imports(file) if name.startswith("tiprctl.gallery.")}
        assert of_the_gallery <= known, file

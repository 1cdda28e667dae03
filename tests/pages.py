"""What tests read in the project's pages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.main import get_command

from tiprctl.cli.app import app

ROOT = Path(__file__).parent.parent
COMMANDS = get_command(app).commands


def broken_links(page: Path) -> list[str]:
    """The links of a page to files or headings that are not there; addresses in the web are not looked up."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    return [link for link in links if "://" not in link and not _leads_somewhere(page, link)]


def shown_commands(page: Path) -> list[list[str]]:
    """The words of each command of ours in the blocks of a page, without `tiprctl`, comments, and what a pipe feeds."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines if re.search(r"(^|-m )tiprctl ", line)]
    return [call[call.index("tiprctl") + 1 :] for call in calls]


def read_arguments(words: list[str]) -> dict[str, object]:
    """What a command, or one of a group, reads in its words; raises as the parser where it cannot."""
    name, *arguments = words
    command = COMMANDS[name]
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    return command.make_context(name, arguments).params


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, place = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not place:
        return target.exists()
    return target.is_file() and place in map(_anchor, re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE))


def _anchor(heading: str) -> str:
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

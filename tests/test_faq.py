"""The page of questions: its commands exist as they are written, and run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from netdsl import cli
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "faq.md").read_text()
COMMANDS = re.findall(r"^    (netdsl .+)$", PAGE, re.MULTILINE)
STAND_INS = {"DIR", "photo.jpg", "torchvision.safetensors"}
"""What the page says stands for the reader's own files."""
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)


def words(command: str) -> list[str]:
    return shlex.split(command)[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_parsed(command: str) -> None:
    app = typer.main.get_command(cli.app)
    name, *arguments = words(command)
    if name == "--version":
        return
    with app.make_context("netdsl", [name]) as outer:
        found = app.get_command(outer, name)  # type: ignore[attr-defined]
        assert found is not None
        found.make_context(name, arguments, parent=outer)
    nets = [w.partition(":")[0] for w in arguments if w.startswith("models/")]
    assert all((ROOT / net).is_file() for net in nets)


def test_the_contents_are_whole() -> None:
    contents, *sections = SECTIONS
    titles = [s.partition("\n")[0] for s in sections]
    assert re.findall(r"\[(.+?)\]\(#", contents) == titles
    questions = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert 15 <= len(questions) <= 30
    assert len(set(questions)) == len(questions)
    assert all(stand_in in contents for stand_in in STAND_INS)


@pytest.mark.slow
def test_the_commands_run(netdsl: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("jinja2")
    (tmp_path / "models").symlink_to(ROOT / "models")
    for command in COMMANDS:
        if STAND_INS & set(words(command)):
            continue
        code, out, err = netdsl(*words(command))
        allowed = (0, 1) if words(command)[0] in ("train", "sweep") else (0,)
        assert code in allowed, f"{command}\n{out}\n{err}"

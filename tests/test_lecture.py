"""The files of models/lecture: each opens with what to see and the commands that show it, which
are run here as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from netdsl import cli
from tests.conftest import ROOT

LECTURE = sorted((ROOT / "models" / "lecture").glob("*.net"))
LONG = (
    "degradation",
    "features",
    "pretrained",
    "scales",
    "transfer",
    "transfer_grid",
    "transfer_photos",
)
REFUSED, SLOW = "# refused", "# slow"
"""What a command says at its end if it is to fail, or takes longer than a test may."""


def commands(path: Path) -> list[str]:
    """The lines of a file's comments that hold a command."""
    lines = (x.removeprefix("#   ") for x in path.read_text().splitlines() if x.startswith("#   "))
    return [x for x in lines if x.startswith("netdsl ")]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


def by_length() -> list[Any]:
    return [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else [])
        for p in LECTURE
    ]


@pytest.mark.parametrize("path", LECTURE, ids=lambda p: p.stem)
def test_a_file_says_what_to_see_and_how(path: Path) -> None:
    assert path.read_text().startswith("# ")
    app = typer.main.get_command(cli.app)
    for command in commands(path):
        name, *arguments = words(command)
        with app.make_context("netdsl", [name]) as outer:
            found = app.get_command(outer, name)  # type: ignore[attr-defined]
            assert found is not None, command
            found.make_context(name, arguments, parent=outer)
    assert any(f"models/lecture/{path.name}" in c for c in commands(path))


@pytest.mark.parametrize("path", by_length())
def test_the_commands_of_a_file_show_it(
    path: Path,
    netdsl: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    if path.stem in LONG:
        folder = request.getfixturevalue("data_dir")
        cache = tmp_path / "cache"
        cache.mkdir()
        for name in ("cifar10", "hymenoptera", "mnist"):
            (cache / name).symlink_to(folder / name)
        monkeypatch.setenv("NETDSL_CACHE", str(cache))
        weights = folder / "squeezenet1_0.onnx"
        if weights.is_file():
            (tmp_path / weights.name).symlink_to(weights)
        elif any(weights.name in c for c in commands(path)):
            pytest.skip(f"there is no {weights}")
    for command in (c for c in commands(path) if not c.endswith(SLOW)):
        code, out, err = netdsl(*words(command))
        wanted = 2 if command.endswith(REFUSED) else 0
        assert code == wanted, f"{command}\n{out}\n{err}"

"""The lecture: each row of docs/lecture is sound and measured, its commands run as they stand and
find their figures within the bounds, and docs/lecture.md is what the rows say."""

from __future__ import annotations

import faulthandler
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.tools.lecture_page import slugify, write_page
from docs.tools.lecture_records import check_measurement, read_measurement
from docs.tools.lecture_rows import DOCS, ROWS, LectureRow, header_commands, read_row, read_rows
from docs.tools.lecture_runs import find_missing_data, measure
from netdsl import cli
from netdsl.errors import NetError
from tests.conftest import ROOT

FILES = sorted((ROOT / "models" / "lecture").glob("*.net"))
PATHS = sorted(ROWS.glob("*.toml"))
MAX_SECONDS = 2.0
"""Of the commands of a row that runs with the fast tests."""


def is_quick(row: LectureRow) -> bool:
    if row.needs or any(c.is_slow for c in row.commands):
        return False
    return read_measurement(row).total_seconds < MAX_SECONDS


def by_length() -> list[Any]:
    params = []
    for path in PATHS:
        try:
            row = read_row(path)
            if not row.commands:
                continue
            marks = [] if is_quick(row) else [pytest.mark.slow]
        except NetError:  # the tests below show why
            marks = []
        params.append(pytest.param(path, id=path.stem, marks=marks))
    return params


def check_words(words: list[str]) -> None:
    """Parses the words of a command, which must name a command and options that exist."""
    app = typer.main.get_command(cli.app)
    name, *arguments = words
    with app.make_context("netdsl", [name]) as outer:
        found = app.get_command(outer, name)  # type: ignore[attr-defined]
        assert found is not None, words
        found.make_context(name, arguments, parent=outer)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_says_what_to_see_and_how(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    commands = header_commands(text)
    assert any(f"models/lecture/{path.name}" in c.text for c in commands)


def test_every_file_belongs_to_a_row() -> None:
    named = {file for row in read_rows() for file in row.files}
    assert not {f"models/lecture/{path.name}" for path in FILES} - named


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_row_has_commands_that_exist_and_figures_within_their_bounds(path: Path) -> None:
    row = read_row(path)
    for command in row.commands:
        check_words(command.words)
    if row.commands:
        assert check_measurement(row, read_measurement(row)) == []


def test_a_measurement_belongs_to_a_row() -> None:
    assert {p.stem for p in ROWS.glob("*.json")} == {r.name for r in read_rows() if r.commands}


def test_the_page_is_current() -> None:
    assert (DOCS / "lecture.md").read_text() == write_page(read_rows()), "run `make docs`"


def test_the_page_links_to_its_sections() -> None:
    text = (DOCS / "lecture.md").read_text()
    sections = {slugify(x) for x in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(set(links)) == len(links) == len(PATHS)
    assert set(links) <= sections


@pytest.mark.parametrize("path", by_length())
def test_the_commands_of_a_row_find_its_figures(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = read_row(path)
    if row.needs:
        monkeypatch.setenv("NETDSL_DATA", str(request.getfixturevalue("data_dir")))
        missing = find_missing_data(row)
        if missing:
            pytest.skip(f"{row.name} needs {', '.join(missing)}")
    faulthandler.cancel_dump_traceback_later()  # sweeps take longer than a test may
    assert check_measurement(row, measure(row, tmp_path)) == []

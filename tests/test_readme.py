"""What the README shows is what the commands print, and its figures have been measured."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from netdsl.cli.command_groups import GROUPS
from tests.conftest import ROOT
from tests.test_docs import fenced, find_error

README = (ROOT / "README.md").read_text()
ERROR, TESTS, KERNELS = fenced("README.md", "text")
RESULTS = ROOT / "benchmarks" / "results"
HERO = ROOT / "docs" / "gallery" / "hero.svg"


@pytest.fixture
def models(netdsl: Any) -> Any:
    """Runs a command in a folder with `models`."""
    Path("models").symlink_to(ROOT / "models")
    return netdsl


def find_section(title: str, page: str = "README.md") -> str:
    text = (ROOT / page).read_text()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_commands_are_the_first_two_blocks() -> None:
    train, check = fenced("README.md", "sh")
    assert train in find_section("Train your first net")
    assert check in find_section("Run the tests")


def test_the_error_is_that_of_the_net_above_it() -> None:
    [wrong] = fenced("README.md", "net")
    assert find_error(wrong) == ERROR


def test_the_tests_of_a_file_print_what_is_shown(models: Any) -> None:
    code, out, _ = models("test", "models/lenet.net", "-v")
    assert code == 0
    error = re.compile(r"error is \S+, of \w+")
    assert error.sub("", TESTS) in error.sub("", out)


def test_the_kernels_are_those_of_the_file(models: Any) -> None:
    _, out, _ = models("explain", "models/digits.net", "--device", "cpu")
    printed = [line.rstrip() for line in out.splitlines()]
    assert [line for line in KERNELS.splitlines() if line not in printed] == []


def test_the_picture_shows_the_file_and_its_result() -> None:
    lines = [html.unescape(re.sub(r"<[^>]*>", "", line)) for line in HERO.read_text().splitlines()]
    file = (ROOT / "models" / "digits.net").read_text().splitlines()
    code = [line for line in file if line]
    assert [line for line in lines if line in code] == code
    assert f"A .net file of {len(file)} lines" in README
    assert any(line.startswith("test accuracy 9") for line in lines)
    assert HERO.stat().st_size < 150_000


def list_commands(section: str) -> dict[str, list[str]]:
    """Of a table, the commands below each bold row."""
    groups: dict[str, list[str]] = {}
    for row in re.findall(r"^\| (\S.*?) \|", section, re.MULTILINE):
        if row.startswith("**"):
            groups[row.strip("*")] = []
        elif groups:
            groups[[*groups][-1]] += re.findall(r"`(\w+)`", row)
    return groups


def test_the_table_of_commands_has_each_of_them() -> None:
    listed = list_commands(find_section("Commands"))
    assert [*listed] == [*GROUPS]
    assert {g: sorted(names) for g, names in listed.items()} == {
        g: sorted(names) for g, names in GROUPS.items()
    }


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_of_commands_has_each_of_them(group: str) -> None:
    rows = re.findall(r"^\| `netdsl (\w+)", find_section(group, "docs/cli.md"), re.MULTILINE)
    assert list(dict.fromkeys(rows)) == [*GROUPS[group]]


def read_numbers(text: str) -> list[float]:
    return [float(word.replace(",", "")) for word in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


ROW = r"^\| (.*?) \| ([\d,]+) \| ([\d,.]+) \| .*: ([\d,.]+) \| (\d\.\d\d) \|"
ROWS = re.findall(ROW, README, re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_speed_is_that_of_a_result(row: tuple[str, ...]) -> None:
    name, batch, *times, ratio = row
    measured = {n for path in RESULTS.glob("*.txt") for n in read_numbers(path.read_text())}
    own, other = (read_numbers(time)[0] for time in times)
    for time in (own, other):
        assert any(abs(time - n) <= 0.005 * n for n in measured), (name, batch, time)
    assert other / own == pytest.approx(float(ratio), abs=0.01)


def test_rows_that_netdsl_loses_are_shown() -> None:
    assert len(ROWS) > 8
    assert min(float(ratio) for *_, ratio in ROWS) < 0.8


def test_the_other_tools_are_described_as_on_their_page() -> None:
    page = re.sub(r"\[\^[\w-]+\]", "", (ROOT / "docs" / "comparison.md").read_text())
    rows = [row for row in find_section("Compared with other tools").splitlines() if row[:1] == "|"]
    assert 8 <= len(rows) - 2 <= 9
    assert [row for row in rows if row not in page.splitlines()] == []

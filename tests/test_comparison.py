"""The comparison with other tools: every cell has a source, and netdsl's own figures are counted
again."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from docs.tools.count_lines import count, plain_lines, python_lines
from netdsl.errors import NetError
from netdsl.insight.program_check import check_program
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "comparison.md").read_text()
TEXT, _, SOURCES = PAGE.partition("\n## Sources\n")
DEFINED = dict(re.findall(r"^\[\^([\w-]+)\]: (.+)$", SOURCES, re.MULTILINE))
TOOLS = ["netdsl", "Caffe", "Darknet", "Ludwig", "Ultralytics", "Keras"]
COUNTS = {
    "n-resnet": ("models/resnet.net", "resnet50"),
    "n-lenet": ("models/lenet.net", "train,data"),
}
SPEEDS = {
    "s-cpu": "2026-11-23-cpu.txt",
    "s-small": "2026-11-30-cpu.txt",
}


def rows() -> list[list[str]]:
    """The rows of the tables that compare, without their heads."""
    lines = [x for x in TEXT.splitlines() if x.startswith("|") and not x.startswith("|---")]
    cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines]
    return [row for row in cells if len(row) == len(TOOLS) + 1 and row[1:] != TOOLS]


def cell(row: str, tool: str) -> str:
    found = next(cells for cells in rows() if cells[0] == row)
    return re.sub(r"\[\^.*?\]", "", found[1 + TOOLS.index(tool)])


def test_every_cell_has_a_source() -> None:
    assert len(rows()) >= 15
    for name, *cells in rows():
        for tool, text in zip(TOOLS, cells, strict=True):
            sources = re.findall(r"\[\^([\w-]+)\]", text)
            assert sources, f"{name}, {tool}"
            assert all(s.split("-")[0] == tool[0].lower() for s in sources), (name, tool, sources)


def test_every_source_is_there_and_used() -> None:
    used = set(re.findall(r"\[\^([\w-]+)\]", TEXT))
    assert used == set(DEFINED)
    assert all(len(text) > 8 for text in DEFINED.values())
    assert not [n for n, x in DEFINED.items() if "github.com" in x and "/master/" in x]


def test_the_lines_of_our_own_files() -> None:
    lines, characters = count(ROOT / "models/resnet.net", "resnet50")
    assert cell("lines that define ResNet-50", "netdsl") == f"{lines:,}"
    assert cell("characters of ResNet-50", "netdsl") == f"{characters:,}"
    lines, _ = count(ROOT / "models/lenet.net", "train,data")
    assert cell("lines of a net for MNIST, its data and recipe", "netdsl") == f"{lines:,}"
    lines, characters = count(ROOT / "models/resnet.net", "imagenet")
    assert f"{lines} lines, {characters:,} characters" in DEFINED["n-resnet"]
    assert f"has {count(ROOT / 'models/lenet.net')[0]} lines" in DEFINED["n-lenet"]
    for note, (file, names) in COUNTS.items():
        assert f"count_lines {file} --only {names}" in DEFINED[note]


def test_the_error_that_is_shown_is_the_one_printed() -> None:
    shown = re.findall(r"^```\n(error:.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0]
    wrong = (
        "net wrong {\n  input(32x32x16)\n  add { conv(64, 1x1) | identity } -> relu\n  fc(10)\n}\n"
    )
    with pytest.raises(NetError) as e:
        check_program(build_program(parse(wrong, "wrong.net")))
    assert e.value.diagnostics[0].render() + "\n" == shown


def test_the_programs_that_are_shown_can_be_parsed() -> None:
    programs = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        ast.parse(program)


def ratios(file: str, kind: str) -> list[float]:
    """The ratios of a file of measurements, of the works with a word in their names."""
    lines = (ROOT / "benchmarks" / "results" / file).read_text().splitlines()
    columns = next(x for x in lines if x.startswith("work")).index("ratio")
    return [float(x[columns - 1 : columns + 6].split()[0]) for x in lines if f"-{kind}-" in x[:22]]


def test_the_speeds_are_those_of_the_results() -> None:
    for kind in ("train", "infer"):
        found = ratios(SPEEDS["s-cpu"], kind)
        assert f"{min(found):.2f} to {max(found):.2f} times as fast[^s-cpu]" in TEXT
    slower = [r for r in ratios(SPEEDS["s-small"], "infer") if r < 1]
    assert f"{min(slower):.2f} to {max(slower):.2f}[^s-small]" in TEXT
    text = (ROOT / "benchmarks/results/2026-11-23-h100.txt").read_text()
    summary = re.findall(r"netdsl against the best of .*?\n\n?.*?\.", text)[0]
    found = [float(x) for x in re.findall(r"([\d.]+)x", text[text.index(summary) :][:200])]
    assert f"{min(found):.2f} to {max(found):.2f} times as fast[^s-gpu]" in TEXT


def test_comments_and_docstrings_are_not_counted(tmp_path: Path) -> None:
    assert plain_lines("# a\n\na: 1 # b\n  c # d\n#e\n") == ["a: 1", "c"]
    text = (
        '"""T."""\n\n\ndef f(x):\n    """D."""\n    return g(x)  # see g\n\n\ndef g(x): return x\n'
    )
    assert python_lines(text) == ["def f(x):", "return g(x)", "def g(x): return x"]
    path = tmp_path / "a.py"
    path.write_text(text)
    assert count(path, "g") == (1, 18)
    assert count(path, "f") == count(path) == (3, 38)

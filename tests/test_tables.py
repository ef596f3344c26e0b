"""Tables on terminals of any width: figures are never cut, and nothing is lost."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from netdsl.cli import tables
from netdsl.cli.tables import CONSOLE_OPTIONS, Column, TextTable, figures
from netdsl.types import format_bytes
from tests.conftest import ROOT

NUMBERS = st.integers(0, 10**12).map("{:,}".format)
NAMES = st.text("abcxyz.([ 01é日", max_size=30).map(str.strip)


def draw_table(data: st.DataObject) -> TextTable:
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    headings = [data.draw(NAMES.filter(bool)) for _ in kinds]
    columns = [
        figures(heading) if is_figure else Column(heading, fold_width=data.draw(st.integers(2, 20)))
        for heading, is_figure in zip(headings, [False, *kinds[1:]], strict=True)
    ]
    cells = st.tuples(*(NUMBERS if c.is_whole else NAMES for c in columns))
    return TextTable(columns, data.draw(st.lists(cells, max_size=5)))


@settings(max_examples=50)
@given(st.data())
def test_a_table_of_any_width_loses_nothing(data: st.DataObject) -> None:
    table, width = draw_table(data), data.draw(st.integers(10, 130))
    written = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        console = Console(
            **CONSOLE_OPTIONS, file=written, width=width, force_terminal=True, no_color=True
        )
        patch.setattr(tables, "make_console", lambda width=None: console)
        is_grid = table.fits()
        table.show()
    text = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue())
    for row in table.rows:
        for column, cell in zip(table.columns, row, strict=True):
            assert not column.is_whole or cell in text
    if is_grid:
        assert all(tables._width(line) <= width for line in text.splitlines())
        words = [*(c.heading for c in table.columns), *(x for row in table.rows for x in row)]
        assert Counter("".join(text.split())) == Counter("".join("".join(words).split()))
    else:
        lines = [line.split() for line in text.splitlines()]
        for name, *cells in table.rows:
            assert [*table.columns[0].heading.split(), *name.split()] in lines
            for column, cell in zip(table.columns[1:], cells, strict=True):
                assert not cell or [*column.heading.split(), *cell.split()] in lines


@pytest.fixture
def terminal(netdsl: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with standard output as on a terminal of that width."""

    def run(width: int, *args: str) -> str:
        for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": str(width)}.items():
            monkeypatch.setenv(name, value)
        code, out, err = netdsl(*args)
        assert code == 0, err
        return re.sub(r"\x1b\[[0-9;]*m", "", out)

    return run


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_figures_of_the_commands_are_whole(width: int, terminal: Any) -> None:
    """A net with a name, counts and outputs as long as they get."""
    Path("a.net").write_text(
        "net a { input(224x224x3); a_stage_with_a_long_name: conv(1024, 11x11, pad=same); "
        "maxpool(2x2); fc(4096) }\nnet b { input(224x224x3); fc(7) }"
    )
    found = json.loads(terminal(width, "summary", "a.net:a", "--json"))
    out = terminal(width, "summary", "a.net:a")
    for layer in found["layers"]:
        for key in ("params", "macs"):
            assert f"{layer[key]:,}" in out or not layer[key]
        assert format_bytes(layer["bytes"]) in out
        assert layer["output"] in out
    found = json.loads(terminal(width, "diff", "a.net:a", "a.net:b", "--json"))
    out = terminal(width, "diff", "a.net:a", "a.net:b")
    assert all(f"{n:,}" in out for n in (*found["params"], *found["macs"]))
    if width >= 80:
        return
    lenet = str(ROOT / "models" / "lenet.net:lenet5")
    kernels = json.loads(terminal(width, "explain", lenet, "--kernels", "--json"))["kernels"]
    out = terminal(width, "explain", lenet, "--kernels")
    assert all(format_bytes(k["bytes"]) in out for k in kernels)
    out = terminal(width, "time", lenet, "--rounds", "1", "--device", "reference")
    assert "…" not in out
    assert out.count("100.0%") == 2

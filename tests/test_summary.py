"""The figures of a net: totals and rows, `summary`, `check` and `test` count the same layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netdsl.insight.net_tests import run_test
from netdsl.insight.summary import Summary, summarise
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from tests.conftest import ROOT

ENDS = {
    "a layer": "c: conv(8, 3x3); head: fc(10)",
    "a label": "c: conv(8, 3x3); head: fc(10); x",
    "a label on the way": "c: conv(8, 3x3); d: conv(2, 1x1); c",
    "a layer beside": "c: conv(4, 3x3); beside: conv(5, 3x3); c -> fc(10)",
    "a shared layer": "shared e = fc(3); shared unused = fc(7); x -> e; x -> e",
    "side outputs": "output a: fc(10); output b(weight=0.5): c: conv(4, 3x3) -> fc(10)",
    "an output and a side output": "c: conv(4, 3x3); output a: fc(10); fc(10)",
    "norms": "c: conv(4, 3x3) -> batchnorm; beside: conv(5, 3x3) -> batchnorm -> relu; c",
}
"""What follows `x: input(8x8x1)`."""
UNREAD = {
    "a label": {"c", "head"},
    "a label on the way": {"d"},
    "a layer beside": {"beside"},
    "norms": {"beside.conv1", "beside.batchnorm1", "beside.relu1"},
}


def net(body: str, test: str = "params > 0") -> str:
    return f"net a {{ x: input(8x8x1); {body} }}\ntest a {{ {test} }}"


def check_sums(found: Summary) -> None:
    assert sum(r.params for r in found.layers) == found.params
    assert sum(r.macs for r in found.layers) == found.macs + found.side_macs


@pytest.mark.parametrize("end", ENDS)
def test_totals_are_the_sums_of_the_rows(end: str) -> None:
    found = summarise(elaborate(build_program(parse(net(ENDS[end])))))
    check_sums(found)
    assert found.macs > 0 or end == "side outputs"
    assert (found.side_macs > 0) == (found.side_params > 0) == ("side output" in end)
    assert set(found.unread_layers) == UNREAD.get(end, set())
    figures = f"params == {found.params}, macs == {found.macs}, activations == {found.activations}"
    p = build_program(parse(net(ENDS[end], figures)))
    assert run_test(p, p.tests[0]).ok


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.net")), ids=lambda p: p.stem)
def test_of_the_zoo_too(path: Path) -> None:
    p = load_program(str(path))
    for name in p.nets:
        if p.has_all_defaults(name):
            found = summarise(elaborate(p, name))
            check_sums(found)
            assert found.unread_layers == ()


def test_what_no_output_needs_is_named(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(net(ENDS["a label"]))
    code, out, _ = netdsl("summary", "a.net")
    assert code == 0
    assert "2,970 params, 5,472 MACs and 298 activations" in out
    assert "used by no output: c, head" in out
    (tmp_path / "a.net").write_text(net(ENDS["an output and a side output"]))
    assert "1,450 of the params and 1,440 more MACs" in netdsl("summary", "a.net")[1]
    found = json.loads(netdsl("summary", "a.net", "--json")[1])
    assert (found["side_params"], found["side_macs"], found["unread"]) == (1450, 1440, [])

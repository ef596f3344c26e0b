"""What tests say of a net that is tried: values that are equal, their size, the gradient back."""

from __future__ import annotations

import pytest

from netdsl.insight import trial
from netdsl.insight.net_tests import ExpectationOutcome, run_test
from netdsl.insight.program_check import check_program
from netdsl.language.parse import parse
from netdsl.language.program import build_program

NET = """
net n {
  image: input(8x8x3)
  twice: add { image | image }
  scaled: image -> conv(3, 1x1, groups=3, weight=2, bias=no)
  near: image -> conv(3, 1x1, groups=3, weight=2.001, bias=no)
  nothing: image -> conv(3, 1x1, weight=0)
  naught: image -> conv(3, 1x1, weight=0, bias=no)
  normal: image -> batchnorm
  normal_twice: twice -> batchnorm
  image -> conv(1, 1x1, weight=3, bias=no)
}
"""


def outcome(expectation: str, net: str = NET) -> ExpectationOutcome:
    p = build_program(parse(f"{net}\ntest n {{ {expectation} }}"))
    (found,) = run_test(p, p.tests[0]).outcomes
    return found


@pytest.mark.parametrize(
    ("expectation", "ok"),
    [
        ('equal("twice", "scaled")', True),
        ('not equal("twice", "scaled")', False),
        ('equal("scaled", "near")', False),
        ('not equal("scaled", "near")', True),
        ('equal("scaled", "near", within=0.001)', True),
        ('equal("scaled", "near", within=0.0001)', False),
        ('equal("normal", "normal_twice")', False),
        ('equal("normal", "normal_twice", training=yes, within=1e-4)', True),
        ('deviation("scaled") > 1.8', True),
        ('deviation("scaled") > 2.2', False),
        ('deviation("nothing") == 0', True),
        ('deviation("normal", training=yes) ~ 1', True),
        ('gradient("image") > 2.5', True),
        ('gradient("image") > 3.5', False),
        ('gradient("scaled") == 0', True),
    ],
)
def test_an_expectation_of_what_flows(expectation: str, ok: bool) -> None:
    assert outcome(expectation).ok == ok


def test_how_far_apart_is_told() -> None:
    assert outcome('equal("scaled", "near")').found == "they differ by 5.0e-04 of the largest value"


@pytest.mark.parametrize("claim", ["equal", "not equal"])
def test_zeros_compare_nothing(claim: str) -> None:
    found = outcome(f'{claim}("nothing", "naught")')
    assert not found.ok
    assert "zero" in found.found


def test_checking_a_file_runs_no_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("a net was run")

    monkeypatch.setattr(trial, "evaluate_graph", run)
    text = 'test n { equal("scaled", "near"), deviation("scaled") > 9, gradient("image") > 9 }'
    check_program(build_program(parse(f"{NET}\n{text}")))
    with pytest.raises(AssertionError, match="a net was run"):
        outcome('equal("scaled", "near")')

"""What a file expects: each operator at its boundary, each question answered wrongly fails."""

from __future__ import annotations

import pytest

from netdsl.errors import NetError
from netdsl.insight.expectations import Outcome, check_test, run_test
from netdsl.language.parse import parse, parse_expression
from netdsl.language.program import program
from netdsl.train.expect import METRICS, check_expectation, check_tested, judge
from netdsl.train.recipe import resolve

NET = """
net n {
  image: input(12x10x2)
  a: conv(4, 3x3, dilation=2, pad=[0, 2, 0, 2]) -> maxpool(2x2)
  b: add { a -> conv(5, 3x3, pad=same) | a -> conv(5, 1x1) } -> relu
  c: globalavgpool -> fc(10)
}
"""
FOUND = {"params": 352, "macs": 10_890, "activations": 970}
"""2*9*4+4 + 4*9*5+5 + 4*5+5 + 5*10+10; 100 or 20 or 20 places of each; 4*80 + 2*5*20 + 10."""


def outcome(expectation: str, net: str = NET) -> Outcome:
    p = program(parse(f"{net}\ntest n {{ {expectation} }}"))
    (found,) = run_test(p, p.tests[0]).outcomes
    return found


@pytest.mark.parametrize("fact", FOUND)
@pytest.mark.parametrize(
    ("claim", "at", "ok"),
    [
        *[("==", -1, False), ("==", 0, True), ("==", 1, False)],
        *[("!=", -1, True), ("!=", 0, False), ("!=", 1, True)],
        *[("<", -1, False), ("<", 0, False), ("<", 1, True)],
        *[("<=", -1, False), ("<=", 0, True), ("<=", 1, True)],
        *[(">", -1, True), (">", 0, False), (">", 1, False)],
        *[(">=", -1, True), (">=", 0, True), (">=", 1, False)],
    ],
)
def test_each_operator_at_its_boundary(fact: str, claim: str, at: int, ok: bool) -> None:
    found = outcome(f"{fact} {claim} {FOUND[fact] + at}")
    assert found.ok is ok
    assert found.found == ("" if ok else f"it is {FOUND[fact]:_}")


@pytest.mark.parametrize(
    ("params", "claimed", "ok"),
    [
        *[(99, "100", True), (101, "100", True), (98, "100", False), (102, "100", False)],
        # a hundredth of what is claimed, not of what is found
        *[(9900, "10_000", True), (10_100, "10_000", True), (9899, "10_000", False)],
        *[(10_101, "10_000", False), (10_100, "10_000.0", True), (100, "0", False)],
    ],
)
def test_near_is_a_hundredth_of_what_is_claimed(params: int, claimed: str, ok: bool) -> None:
    net = f"net n {{ input(1); fc({params}, bias=no) }}"
    assert outcome(f"params ~ {claimed}", net).ok is ok


@pytest.mark.parametrize(
    ("expectation", "ok"),
    [
        ('shape("a") == 5x4x4', False),
        ('shape("a") == 5x5x4', False),
        ('shape("a") == 4x5x4', False),
        ('shape("a") == [5, 4]', False),
        ('shape("a") != 5x4x4', True),
        ('shape("c") == 10', True),
        ('shape("c") == 11', False),
        ('shape("c") == 1x1x10', False),
        ('shape("a")[2] == 4', None),
        ('shape("image") == 12x10x2', True),
        ('receptive_field("a") == 6', True),
        ('receptive_field("a") == 5', False),
        ('receptive_field("a") == 6x7', False),
        ('receptive_field("a") != 6x6', False),
        ('receptive_field("b") == 10x10', True),
        ('receptive_field("b") == 6', False),
        ('receptive_field("b") == 8', False),
        ('receptive_field("c") == 12x10', True),
        ('receptive_field("image") == 1', True),
    ],
)
def test_places_and_their_shapes(expectation: str, ok: bool | None) -> None:
    if ok is None:
        with pytest.raises(NetError):
            outcome(expectation)
    else:
        assert outcome(expectation).ok is ok

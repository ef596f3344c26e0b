"""What a file expects: each operator at its boundary, each question answered wrongly fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netdsl.errors import NetError
from netdsl.insight.gradcheck import gradcheck
from netdsl.insight.net_tests import ExpectationOutcome, check_test, run_test
from netdsl.language.budget import Budget
from netdsl.language.parse import parse, parse_expression
from netdsl.language.program import build_program
from netdsl.training.metrics.table import METRIC_NAMES
from netdsl.training.recipe.expectations import (
    check_expectation,
    check_test_metrics,
    judge_expectations,
)
from netdsl.training.recipe.recipe import resolve_recipe

NET = """
net n {
  image: input(12x10x2)
  a: conv(4, 3x3, dilation=2, pad=[0, 2, 0, 2]) -> maxpool(2x2)
  b: add { a -> conv(5, 1x1) | a -> conv(5, 3x3, pad=same) } -> relu
  c: globalavgpool -> fc(10)
}
"""
FOUND = {
    "params": (2 * 9 * 4 + 4) + (4 * 9 * 5 + 5) + (4 * 5 + 5) + (5 * 10 + 10),
    "macs": 80 * 2 * 9 * 4 + 20 * 4 * 9 * 5 + 20 * 4 * 5 + 5 * 10,
    "activations": 80 * 4 + 20 * 5 + 20 * 5 + 10,
}
"""`a` has 10x8 places before its pooling, `b` has 5x4."""


def outcome(expectation: str, net: str = NET) -> ExpectationOutcome:
    p = build_program(parse(f"{net}\ntest n {{ {expectation} }}"))
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
    assert found.found.partition(",")[0] == f"it is {FOUND[fact]:_}"
    assert found.value == FOUND[fact]


@pytest.mark.parametrize(
    ("expectation", "found", "value"),
    [
        ('shape("a") == 5x4x4', "it is 5x4x4", (5, 4, 4)),
        ('shape("a") == shape("b")', "it is 5x4x4, the other side 5x4x5", (5, 4, 4)),
        ('receptive_field("a") == 6x6', "it is 6x6", (6, 6)),
        (
            "2 * params < macs",
            f"it is {2 * FOUND['params']:_}, the other side {FOUND['macs']:_}",
            692,
        ),
        ('equal("a", "a")', "they are the same", 0),
        ('not equal("a", "a")', "they are the same", 0),
    ],
)
def test_what_was_found_is_there_whether_it_holds_or_not(
    expectation: str, found: str, value: object
) -> None:
    result = outcome(expectation)
    assert (result.found, result.value) == (found, value)


def test_the_largest_error_of_gradients_is_found() -> None:
    result = outcome("gradients")
    assert isinstance(result.value, float)
    assert 0 < result.value < 1e-5
    program = build_program(parse(NET))
    assert result.value == max(row.error for row in gradcheck(program, "n"))
    assert result.found.startswith(f"the largest error is {result.value:.1e}, of ")
    empty = outcome("gradients", "net n { input(4x4x1) ; maxpool(2x2) }")
    assert (empty.ok, empty.value is None or empty.value < 1e-5) == (True, True)


def test_verbose_prints_every_expectation_with_what_was_found(netdsl: Any, tmp_path: Path) -> None:
    text = NET + 'test n { params == 346, shape("a") == 5x4x5, equal("a", "a") }'
    (tmp_path / "n.net").write_text(text)
    code, out, _ = netdsl("test", "n.net")
    assert (code, out.count("\n")) == (1, 2)
    code, out, _ = netdsl("test", "-v", "n.net")
    assert code == 1
    assert out.splitlines()[1:] == [
        "     ok   params == 346: it is 346",
        '     FAIL shape("a") == 5x4x5: it is 5x4x4',
        '     ok   equal("a", "a"): they are the same',
    ]
    rows = json.loads(netdsl("test", "n.net", "--json")[1])["tests"][0]["expectations"]
    assert [(r["found"], r["value"]) for r in rows] == [
        ("it is 346", 346),
        ("it is 5x4x4", [5, 4, 4]),
        ("they are the same", 0),
    ]


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
        ('shape("a") == 5x4x4', True),
        ('shape("a") == 5x5x4', False),
        ('shape("a") == 4x5x4', False),
        ('shape("a") == [5, 4]', False),
        ('shape("a") != 5x4x4', False),
        ('shape("a") != 5x4x5', True),
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


SCALED = """
net n {
  image: input(4x4x1)
  once: image -> conv(1, 1x1, weight=1, bias=no)
  twice: image -> conv(1, 1x1, weight=2, bias=no)
}
"""


@pytest.mark.parametrize(
    ("claim", "ok"),
    [
        ('equal("once", "twice", within=0.5)', True),
        ('equal("twice", "once", within=0.5)', True),
        ('equal("once", "twice", within=0.4999)', False),
        ('equal("twice", "once", within=0.4999)', False),
        ('not equal("once", "twice", within=0.5)', False),
        ('not equal("once", "twice", within=0.4999)', True),
        ('equal("image", "once")', True),
        ('equal("image", "once", within=0)', True),
        ('gradient("once") > 0', False),
        ('gradient("twice") > 0.5', True),
    ],
)
def test_values_that_are_compared_are_compared_with_the_larger(claim: str, ok: bool) -> None:
    """Half of the larger one apart, which is no more than half."""
    assert outcome(claim, SCALED).ok is ok


@pytest.mark.parametrize(
    ("expectation", "complaint"),
    [
        ("params", "is not an expectation"),
        ("params + 1", "is not an expectation"),
        ("parms == 1", "unknown name `parms` in a test"),
        ('shape("z") == 1', "no place `z`"),
        ('equal("a", "b")', "never be equal"),
        ('equal("a")', "needs `b`"),
        ('equal("a", "z")', "no place `z`"),
        ('equal("a", "a", within=-1)', "within"),
        ('shape("a") < "a"', "different kinds"),
        ('receptive_field("a") > 3', "compare a size with a size"),
        ("test_accuracy > 0.9", "known only after training"),
        ("accuracy > 0.9", "known only after training"),
    ],
)
def test_what_cannot_be_asked_is_refused_dry_or_not(expectation: str, complaint: str) -> None:
    p = build_program(parse(f"{NET}\ntest n {{ {expectation} }}"))
    with pytest.raises(NetError, match=complaint):
        run_test(p, p.tests[0])
    with pytest.raises(NetError, match=complaint):
        check_test(p, p.tests[0], Budget())


# ---- of a run


@pytest.mark.parametrize(
    ("claim", "accuracy", "ok"),
    [
        *[(">= 0.5", 0.5, True), (">= 0.5", 0.4999, False), ("> 0.5", 0.5, False)],
        *[("> 0.5", 0.5001, True), ("<= 0.5", 0.5, True), ("<= 0.5", 0.5001, False)],
        *[("< 0.5", 0.5, False), ("< 0.5", 0.4999, True), ("== 0.5", 0.5, True)],
        *[("== 0.5", 0.5001, False), ("!= 0.5", 0.5, False), ("!= 0.5", 0.5001, True)],
        *[(">= 0.5 and test_loss < 1", 0.5, False), (">= 0.5 or test_loss < 1", 0.5, True)],
        *[(">= 0.5 or test_loss > 1", 0.4, True), (">= 0.5 or test_loss < 1", 0.4, False)],
    ],
)
def test_a_run_meets_what_it_meets(claim: str, accuracy: float, ok: bool) -> None:
    condition = parse_expression(f"test_accuracy {claim}", "")
    check_expectation(condition, 0.1, Budget())
    (met,) = judge_expectations([condition], {"test_accuracy": accuracy, "test_loss": 2.0})
    assert met.ok is ok
    assert f"test_accuracy is {accuracy:.4f}" in met.figures


def test_the_figures_are_in_the_order_of_the_text() -> None:
    condition = parse_expression('val_f1 < test_recall("8") + train_loss', "")
    given = {"val_f1": 0.9, 'test_recall("8")': 0.1, "train_loss": 0.2}
    (met,) = judge_expectations([condition], given)
    assert met.figures == 'val_f1 is 0.9000, test_recall("8") is 0.1000, train_loss is 0.2000'


@pytest.mark.parametrize(
    ("value", "sentence"), [(None, "was not measured"), (float("nan"), "is not a number (NaN)")]
)
@pytest.mark.parametrize("metric", ["test_loss", 'test_recall("8")'])
def test_what_is_no_number_meets_nothing(metric: str, value: float | None, sentence: str) -> None:
    claims = [f"{metric} {op} 1" for op in (">", "<", "==", "!=")] + [f"not {metric} > 1"]
    given = {metric: value, "train_loss": 0.5}
    met = judge_expectations([parse_expression(c, "") for c in claims], given)
    assert [m.ok for m in met] == [False] * 5
    assert {m.figures for m in met} == {f"{metric} {sentence}"}


@pytest.mark.parametrize(
    ("claim", "ok"),
    [
        ('val_recall("ants") > val_recall("bees")', True),
        ('val_recall("ants") - val_recall("bees") > 0.11', False),
        ('val_recall("ants") > val_recall', True),
        ('min(val_recall("ants"), val_recall("bees")) >= 0.8', True),
        ('0.85 if val_recall("bees") < 0.5 else val_recall("bees") > 0.85', False),
        ('not (val_recall("ants") < 0.9 and val_recall("bees") == 0.8)', True),
    ],
)
def test_metrics_of_single_classes_are_compared(claim: str, ok: bool) -> None:
    condition = parse_expression(claim, "")
    check_expectation(condition, 0.1, Budget())
    found = {"val_recall": 0.85, 'val_recall("ants")': 0.9, 'val_recall("bees")': 0.8}
    (met,) = judge_expectations([condition], found)
    assert met.ok is ok
    assert 'val_recall("bees") is 0.8000' in met.figures or "bees" not in claim


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_what_will_not_be_measured_is_refused_before(metric: str) -> None:
    condition = parse_expression(f"0.9 < {metric}", "")
    if metric.startswith("val_"):
        for nothing in (0, 0.0):
            with pytest.raises(NetError, match="holds out no images"):
                check_expectation(condition, nothing, Budget())
    check_expectation(condition, 0.1, Budget())
    check_expectation(condition, 100, Budget())
    both = parse_expression(f"(0.5 > train_loss or not ({metric} > 2))", "")
    for expected in (condition, both):
        if metric.startswith("test_"):
            with pytest.raises(NetError, match="no test images"):
                check_test_metrics([parse_expression("train_loss < 9", ""), expected])
        else:
            check_test_metrics([expected])


def test_a_recipe_s_expectations_are_looked_at() -> None:
    text = "net n { input(8x8x1); fc(10) }\ndata { source = digits, validation = 0 }\n"
    for expected, complaint in (
        ("val_loss < 1", "holds out no images"),
        ("val_top4 > 0", "no metric"),
        ("test_accuracy", "a condition must be"),
    ):
        with pytest.raises(NetError, match=complaint):
            resolve_recipe(build_program(parse(f"{text}train {{ expect {expected} }}")))

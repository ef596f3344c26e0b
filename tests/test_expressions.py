"""Indices of repeats and loops, and conditional expressions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.language.elaborate import elaborate
from netdsl.language.evaluate import Scope, evaluate
from netdsl.language.format import format_text
from netdsl.language.parse import parse, parse_expression
from netdsl.language.program import build_program


def value(text: str, **variables: Any) -> Any:
    return evaluate(parse_expression(text, ""), Scope(variables))


def widths(text: str) -> list[int]:
    """The channels of each layer of a file's first net."""
    return [x.output_type.shape[-1] for x in elaborate(build_program(parse(text))).layers]


def net(body: str, definitions: str = "") -> str:
    return f"{definitions}\nnet a(n=3) {{\n input(8)\n {body}\n}}"


# ---- indices ----------------------------------------------------------------------------------


def test_an_index_counts_from_zero() -> None:
    assert widths(net("fc(i + 1) * n as i")) == [1, 2, 3]
    assert widths(net("(fc(2*i + 1) -> fc(2*i + 2)) * 2 as i")) == [1, 2, 3, 4]
    assert widths(net("for c in [10, 20] as i { fc(c + i) }")) == [10, 21]
    assert widths(net("for c, d in [[10, 1], [20, 2]] as i { fc(c + d + i) }")) == [11, 23]
    assert widths(net("fc(7) -> fc(i) * 0 as i")) == [7]


def test_an_index_belongs_to_its_loop() -> None:
    nested = "(fc(10*i + 1) -> fc(100 + 10*i + j) * 2 as j) * 2 as i"
    assert widths(net(nested)) == [1, 100, 101, 11, 110, 111]
    assert widths(net("let i = 5; fc(i + 1) * 2 as i -> fc(i)")) == [1, 2, 5]
    assert widths(net("let i = 5; for c in [1] as i { fc(c + i) }; fc(i)")) == [1, 5]
    assert widths(net("fc(n) * 2 as n -> fc(n)".replace("fc(n) *", "fc(n + 1) *"))) == [1, 2, 3]
    with pytest.raises(NetError, match="fc"):
        widths(net("fc(i + 1) * 2 as i -> fc(i)"))


def test_the_count_of_a_repeat_does_not_see_its_index() -> None:
    assert widths(net("let i = 2; fc(i + 1) * i as i")) == [1, 2]


def test_as_is_a_word_only_where_an_index_may_follow() -> None:
    text = "net as(as=2) {\n  input(8)\n  as: fc(as + 1) * as as as\n  as -> fc(9)\n}\n"
    assert widths(text) == [1, 2, 9]
    assert format_text(text) == text


def test_comments_around_an_index_stay() -> None:
    text = net(
        "for c in [1, 2] as i { # one\n fc(c + i)\n }\n (fc(3) # two\n -> relu) * n as i # 3"
    )
    formatted = format_text(text)
    assert [line.partition("#")[2] for line in formatted.splitlines() if "#" in line] == [
        *(" one", " two", " 3"),
    ]
    assert parse(formatted) == parse(text)


# ---- conditional expressions ------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_conditional_chooses_as_python_does(conditions: list[bool]) -> None:
    """It associates to the right, and brackets around what comes last change nothing."""
    spelling = {True: "yes", False: "no"}
    flat = " else ".join(f"{i} if {spelling[c]}" for i, c in enumerate(conditions)) + " else 99"
    assert value(flat) == eval(flat, {"yes": True, "no": False})
    first, rest, last = flat.partition(" else ")
    assert value(f"{first}{rest}({last})") == value(flat)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 if yes or no else 2", 1),
        ("1 + 1 if no else 2 + 2", 4),
        ("not no if yes else no", True),
        ("(1 if no else 2) * 3", 6),
        ("[1 if no else 2, 3 if yes else 4]", (2, 3)),
        ("max(1 if yes else 9, 2)", 2),
        ("[5, 6][0 if no else 1]", 6),
        ("1 if yes else 1 / 0", 1),
        ("1 / 0 if no else 2", 2),
        ("1 if no else 1 / 0 if no else 3", 3),
    ],
)
def test_what_a_conditional_gives(text: str, expected: Any) -> None:
    """Only what is chosen is evaluated."""
    assert value(text) == expected


def test_a_conditional_stands_wherever_an_expression_does() -> None:
    block = "block b(c, d=c if c > 2 else 2) { let e = 1 if d == 2 else 5; fc(d) -> fc(e) }"
    assert widths(net("b(1) -> b(3)", block)) == [2, 1, 3, 5]
    assert widths(net("fc(3) * (2 if n == 3 else 1)")) == [3, 3]
    assert widths(net("for c in [1] if n == 2 else [4, 5] as i { fc(c) }")) == [4, 5]
    assert widths(net("if n > 2 if n != 3 else n > 1 { fc(1) } else { fc(2) }")) == [1]
    assert widths(net("fc(1)\n if n > 2 { fc(2) }")) == [1, 2], "a new line begins a statement"
    text = "net a { input(8); fc(2) }\ntest a { params == (18 if 1 < 2 else 0) }\n"
    assert format_text(text) == text

"""Indices of repeats and loops, conditional expressions, functions and constants."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.language import budget
from netdsl.language.budget import Budget, LimitError
from netdsl.language.definition_check import find_definition_errors
from netdsl.language.elaborate import elaborate
from netdsl.language.evaluate import Scope, evaluate
from netdsl.language.format import format_file, format_text
from netdsl.language.override import override
from netdsl.language.parse import parse, parse_expression
from netdsl.language.program import build_program
from netdsl.limits import MAX_ELABORATION_STEPS, MAX_EXPRESSION_VALUES
from netdsl.training.recipe.expectations import judge_expectations
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.resolved_recipe import resolve_file


def value(text: str, **variables: Any) -> Any:
    return evaluate(parse_expression(text, ""), Scope(variables))


def widths(text: str) -> list[int]:
    """The channels of each layer of a file's first net."""
    return [x.output_type.shape[-1] for x in elaborate(build_program(parse(text))).layers]


def net(body: str, definitions: str = "") -> str:
    return f"{definitions}\nnet a(n=3) {{\n input(8)\n {body}\n}}"


# ---- slices -----------------------------------------------------------------------------------

ends = st.none() | st.integers(-9, 9)


@given(st.lists(st.integers(-9, 9), max_size=6), ends, ends)
def test_a_slice_is_python_s(items: list[int], start: int | None, stop: int | None) -> None:
    text = f"x[{'' if start is None else start}:{'' if stop is None else stop}]"
    assert value(text, x=tuple(items)) == tuple(items[start:stop])


def test_a_slice_of_a_size_is_a_list() -> None:
    assert value("(8x9x3)[:2]") == (8, 9)
    assert value("[[1, 2], [3, 4]][1:][0][1]") == 4
    assert widths(net("fc(sum(d[:i]) + 1) * 3 as i", "let d = [3, 4, 6]")) == [1, 4, 8]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("let k = 2\nif n == 3 { let k = 4; fc(k) }\nfc(k)", [4, 4]),
        ("let k = 2\nif n == 3 { fc(k) } else { let k = 4; fc(k) }\nfc(k)", [2, 2]),
        ("let k = 2\nif n == 2 { fc(k) } else { let k = 4; fc(k) }\nfc(k)", [4, 4]),
        ("let k = 2\nfor i in [1, 2] { let k = k + i; fc(k) }\nfc(k)", [3, 5, 2]),
        ("let k = 2\nfor k in [5, 6] { fc(k) }\nfc(k)", [5, 6, 2]),
        ("let k = 2\nfc(k)\nlet k = k + 5\nfc(k)", [2, 7]),
    ],
)
def test_where_a_let_is_visible(body: str, found: list[int]) -> None:
    """Below an `if` whose branch was taken; in a loop and its later rounds, but not below it."""
    assert widths(net(body)) == found


@pytest.mark.parametrize("text", ["[1, 2][0.5:]", "[1, 2][:yes]", "[1, 2][:none]", "3[:1]"])
def test_what_cannot_be_sliced(text: str) -> None:
    with pytest.raises(NetError, match=r"integers|not a list"):
        value(text)


def test_slices_count_what_they_copy() -> None:
    with pytest.raises(LimitError):
        value(f"range(9_000){'[:]' * 200}")


# ---- branches that may be left out ------------------------------------------------------------

_UNIT = (
    "block unit(c, stride=1) {\n"
    "  add { conv(c, 1x1, stride=stride) | identity if stride == 1 and in.channels == c }\n}"
)


def image_net(body: str, definitions: str = "") -> str:
    return f"{definitions}\nnet a(n=3) {{\n input(8x8x3)\n {body}\n}}"


def layer_paths(text: str) -> list[str]:
    return [x.path for x in elaborate(build_program(parse(text))).layers]


def test_a_branch_whose_condition_fails_is_left_out() -> None:
    found = layer_paths(image_net("unit(4) -> unit(4) -> unit(4, 2)", _UNIT))
    assert found == [
        "unit1.conv1",
        *("unit2.conv1", "unit2.identity1", "unit2.add1"),
        "unit3.conv1",
    ]


@pytest.mark.parametrize("join", ["add", "mul", "concat"])
@pytest.mark.parametrize("kept", range(8))
def test_a_join_is_that_of_the_branches_that_are_left(join: str, kept: int) -> None:
    layers = ["relu", "tanh", "sigmoid"]
    conditions = ["yes" if kept >> i & 1 else "1 > 2" for i in range(3)]
    text = " | ".join(f"{a} if {c}" for a, c in zip(layers, conditions, strict=True))
    left = [a for a, c in zip(layers, conditions, strict=True) if c == "yes"]
    if not left:
        with pytest.raises(NetError, match=f"all branches of `{join}` are left out"):
            layer_paths(image_net(f"{join} {{ {text} }}"))
        return
    plain = f"{join} {{ {' | '.join(left)} }}" if len(left) > 1 else left[0]
    assert layer_paths(image_net(f"{join} {{ {text} }}")) == layer_paths(image_net(plain))


def test_a_difference_needs_both_of_its_branches() -> None:
    assert layer_paths(image_net("sub { identity | relu if n == 3 }"))[-1] == "sub1"
    with pytest.raises(NetError, match="`sub` needs two branches, not one"):
        layer_paths(image_net("sub { identity | relu if n == 4 }"))


def test_an_error_in_a_condition_is_reported_once() -> None:
    with pytest.raises(NetError) as e:
        layer_paths(image_net("add { relu if 3 | tanh if m > 2 | identity } -> conv(in.channels)"))
    messages = [d.message for d in e.value.diagnostics]
    assert messages == [
        "a condition must be `yes` or `no`, not 3",
        "a number is needed here, not m",
    ]


def test_a_condition_stays_with_its_branch() -> None:
    branches = " | ".join(f"{'relu -> ' * k}conv(n, 1x1) if n > {k} and n < 99" for k in range(9))
    text = format_text(image_net(f"add {{ {branches} }}"))
    assert format_text(text) == text
    for k in range(9):
        assert f"conv(n, 1x1) if n > {k} and n < 99" in text
    assert all(len(line) <= 100 for line in text.splitlines())


# ---- what no net reaches ----------------------------------------------------------------------


@given(st.lists(st.sampled_from(["c", "n", "i", "twice(c)", "max(c, 2)", "[c, n][0]"]), min_size=1))
def test_sound_definitions_have_no_errors(parts: list[str]) -> None:
    total = " + ".join(parts)
    text = (
        f"let twice(n) = 2 * n if n > 1 else n\nlet n = 3\nblock unused(c, act=relu) {{\n"
        f"  let i = c; let f(c, k=i) = {total} + k; let word = tanh\n  shared s = relu -> tanh\n"
        f"  d: conv({total}, 1x1, pad=same, weight=he) * (i + n) as i\n"
        f"  add {{ s if act == word and not c == {total} | d }}\n"
        f"  for c in [{total}] {{ relu }}\n}}"
    )
    assert list(find_definition_errors(build_program(parse(text)))) == []


@pytest.mark.parametrize("place", ["{} + 1", "-{}", "[1][{}:]", "1 if not {} else 2", "max({}, 1)"])
@pytest.mark.parametrize("what", ["lost", "lost(c)"])
def test_an_unknown_name_is_found_where_no_net_comes(place: str, what: str) -> None:
    bodies = (
        f"let f(c) = {place.format(what)}",
        f"block b(c) {{ fc({place.format(what)}) }}",
        f"net b(c) {{ input({place.format(what)}) }}",
    )
    for text in bodies:
        (found,) = find_definition_errors(build_program(parse(text)))
        assert found.message.endswith("is called `lost` here")


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
    assert widths(net("fc(n + 1) * 2 as n -> fc(n)")) == [1, 2, 3]
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


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the limits, which are then reached in a tenth of the time."""
    monkeypatch.setattr(budget, "MAX_EXPRESSION_VALUES", MAX_EXPRESSION_VALUES // 10)
    monkeypatch.setattr(budget, "MAX_ELABORATION_STEPS", MAX_ELABORATION_STEPS // 10)


# ---- functions and constants ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lets", "text", "expected"),
    [
        ("let n = 3", "n + 1", 4),
        ("let f(a, b=2) = a + b", "f(1) + f(1, 5) + f(b=1, a=1)", 11),
        ("let f(a, b=a + k) = a * b\nlet k = 2", "f(3)", 15),
        ("let c = b\nlet b = f(a)\nlet f(x) = x + a\nlet a = 1", "c", 2),
        ("let fact(n) = 1 if n < 2 else n * fact(n - 1)", "fact(10)", 3628800),
        (
            "let even(n) = yes if n == 0 else odd(n - 1)\nlet odd(n) = n > 0 and even(n - 1)",
            "1 if even(10) and odd(7) else 2",
            1,
        ),
        ("let f() = 3", "f()", 3),
        ("let max(a, b) = 7", "max(1, 2) + min(1, 2)", 8),
        ("let max = 7", "max(1, max)", 7),
        ("let f(x) = x + 1", "[f(1), f(2)][1]", 3),
        ("let sizes = [1, 2, 4]\nlet at(i) = sizes[i]", "at(2)", 4),
    ],
)
def test_what_a_function_gives(lets: str, text: str, expected: Any) -> None:
    program = build_program(parse(lets))
    scope = program.top_level.scope(Budget())
    assert evaluate(parse_expression(text, ""), scope) == expected


def test_a_function_in_a_body_sees_what_is_there() -> None:
    """The variables and the input where it is defined, and itself."""
    assert widths(net("let k = 2; let f(x) = x * k; let k = 5; fc(f(3)) -> fc(k)")) == [6, 5]
    block = "block b(c) { let f(x) = x + c + in.channels; fc(f(1)) -> fc(f(2)) }"
    assert widths(net("b(3)", block)) == [12, 13]
    assert widths(net("let f(k) = 1 if k == 0 else 2 * f(k - 1); fc(f(4))")) == [16]
    assert widths(net("for c in [1, 2] { let f(x) = x + c; fc(f(1)) }")) == [2, 3]
    assert widths(net("let f(i) = i + 3; fc(f(i)) * 2 as i")) == [3, 4]


def test_a_local_name_hides_one_of_the_file() -> None:
    lets = "let n = 50\nlet f(x) = n + x"
    assert widths(net("fc(f(n))", lets)) == [53], "the parameter, and the file's n inside f"
    assert widths(net("let f(x) = x; fc(f(n))", lets)) == [3]
    assert widths(net("b(n=2)", f"{lets}\nblock b(n, m=n) {{ fc(m) -> fc(f(n)) }}")) == [2, 52]
    assert widths(net("b", f"{lets}\nblock b(m=n) {{ fc(m) }}")) == [50]


def test_lets_are_visible_in_every_part_of_a_file() -> None:
    program = build_program(
        parse("""
    net a(c=width) { input(8x8x1); conv(c, 1x1) -> fc(10) }
    net b = a(c=twice(width))
    test b { params == count(2 * width), shape("conv1") == [8, 8, 2 * width], published(top1=goal) }
    data { source = digits, batch = twice(16) }
    train { optimizer = opt, epochs = twice(2), expect good(test_accuracy), expect 1 > goal }
    let goal = 0.9
    let width = 4
    let twice(x) = 2 * x
    let count(c) = 2 * c + (64 * c + 1) * 10
    let good(x) = x > goal
    let opt = sgd(lr=goal)
    """)
    )
    assert check_program(program) == (["a", "b"], [])
    assert all(run_test(program, t).ok for t in program.tests)
    recipe = resolve_recipe(program)
    assert (recipe.data.batch, recipe.epochs) == (32, 4)
    assert recipe.optimizer.arguments["lr"] == 0.9
    outcomes = judge_expectations(recipe.expectations, {"test_accuracy": 0.8}, recipe.top_level)
    assert [x.ok for x in outcomes] == [False, True]
    text = format_file(resolve_file(program, None))
    assert format_file(resolve_file(build_program(parse(text)), None)) == text


@pytest.mark.parametrize(
    "lets",
    [
        "let f(n) = f(n - 1) + f(n - 2)",
        "let f(n) = 1 if n < 2 else f(n - 1) + f(n - 1)",
        "let f(n) = [0] if n < 1 else f(n - 1) + f(n - 1)",
        "let f(n) = 0 if n < 1 else [f(n - 1)]",
        "let f(n, m=f(n)) = n",
        "let f(n) = g(n)\nlet g(n) = f(n)",
        "let f(n) = " + "max(1, -(" * 18 + "f(n - 1)" + "))" * 18,
        "".join(f"let v{i} = v{i + 1}\n" for i in range(2000)) + "let v2000 = 1\nlet f(x) = v0",
    ],
)
def test_no_function_runs_away(lets: str, small_limits: None) -> None:
    with pytest.raises(LimitError):
        widths(net("fc(f(300))", lets))


def test_what_fails_is_not_tried_again(small_limits: None) -> None:
    """Neither a `let` nor a function whose calls double."""
    doubling = "".join(f"let v{i + 1} = max(v{i}, v{i})\n" for i in range(60))
    with pytest.raises(NetError) as e:
        widths(net("fc(v60)", "let v0 = 1 / 0\n" + doubling))
    assert len(e.value.diagnostics) == 1
    with pytest.raises(LimitError) as limit:
        widths(net("fc(f(60))", "let f(n) = 1 / 0 if n < 1 else max(f(n - 1), f(n - 1))"))
    assert len(limit.value.diagnostics) == 2


def test_a_setting_changes_a_constant() -> None:
    file = parse("let width = 4\nlet f(x) = x\nnet a(n=2) { input(8); fc(width) * n }")
    changed = override(file, ["width=6", "n=1"])
    assert widths(format_file(changed)) == [6]
    with pytest.raises(NetError, match="no setting"):
        override(file, ["f=3"])


def test_calls_are_steps(small_limits: None) -> None:
    """Calls of small values take longer than their values say."""
    calls = ", ".join(["f()"] * 100)
    with pytest.raises(LimitError, match="steps"):
        widths(net(f"for i in range(200) {{ let x = [{calls}] }}; fc(3)", "let f() = 1"))

"""The language at its edges: values of expressions, the first thing past each limit, and the
numbers that layers are made with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.evaluate import Scope, evaluate
from netdsl.language.network import Network
from netdsl.language.override import override
from netdsl.language.parse import MAX_NESTING_DEPTH, parse, parse_expression
from netdsl.language.program import build_program
from netdsl.layers.convolution import resolve_padding
from netdsl.limits import MAX_LIST_LENGTH, MAX_NUMBER, MAX_REPEATS
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.types import dims
from netdsl.values import Size


def value(text: str, **variables: Any) -> Any:
    return evaluate(parse_expression(text, ""), Scope(variables))


def net(body: str, **settings: Any) -> Network:
    return elaborate(build_program(parse(f"net n {{ {body} }}")), None, Settings(**settings))


def shape(body: str) -> str:
    network = net(body)
    return dims(network.graph[network.graph.outputs["main"]].type.shape[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("8 / 2", 4), ("7 / 2", 3.5), ("-8 / 2", -4), ("8.0 / 2", 4.0), ("1 / 4", 0.25)],
        *[("7 // 2", 3), ("-7 // 2", -4), ("7 % 3", 1), ("-7 % 3", 2), ("7.5 // 2", 3.0)],
        *[("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("7 - 2 - 1", 4), ("8 / 2 / 2", 2), ("-2 - -3", 1)],
        *[("round(0.5)", 1), ("round(2.5)", 3), ("round(-0.5)", 0), ("round(2.4999)", 2)],
        *[("floor(-1.5)", -2), ("ceil(-1.5)", -1), ("floor(2)", 2), ("ceil(1.01)", 2)],
        *[("range(3)", (0, 1, 2)), ("range(1, 3)", (1, 2)), ("range(5, 0, -2)", (5, 3, 1))],
        *[("sum([1, 2, 3])", 6), ("len([])", 0), ("min(2, 1)", 1), ("max([3, 5])", 5)],
        *[("[1, 2, 3][0]", 1), ("[1, 2, 3][-1]", 3), ("[1, 2, 3][2]", 3), ("3x5[1]", 5)],
        *[("[[1, 2], [3]][0][1]", 2), ("[1] + [2, 3]", (1, 2, 3))],
        *[("3x3 == 3", True), ("3 == 3x3", True), ("3x4 == 3", False), ("3x4 == [3, 4]", True)],
        *[("[1, 1] == yes", False), ("yes == [1, 1]", False), ("yes == yes", True)],
        *[
            ("2 < 2", False),
            ("2 <= 2", True),
            ("2 > 2", False),
            ("2 >= 2", True),
            ("2 != 2", False),
        ],
        *[("1 < 2", True), ("2 <= 1", False), ("2 > 1", True), ("1 >= 2", False), ("1 != 2", True)],
    ],
)
def test_values_of_expressions(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("a", [True, False])
@pytest.mark.parametrize("b", [True, False])
@pytest.mark.parametrize("c", [True, False])
def test_truth(a: bool, b: bool, c: bool) -> None:
    known = {"a": a, "b": b, "c": c}
    assert value("a and b and c", **known) is (a and b and c)
    assert value("a or b or c", **known) is (a or b or c)
    assert value("a or b and c", **known) is (a or (b and c))
    assert value("not a and b", **known) is ((not a) and b)
    assert value("not (a or b)", **known) is not (a or b)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *[("[1, 2][2]", "there is no \\[2\\]"), ("[1, 2][-3]", "there is no \\[-3\\]")],
        *[
            ("[][0]", "has 0 entries"),
            ("[1][yes]", "an index must be"),
            ("[1][0.0]", "an index must be"),
        ],
        *[("1 / 0", "division by zero"), ("1 // 0", "division"), ("1 % 0", "division")],
        *[
            ("1 + yes", "a number is needed"),
            ('1 + "a"', "a number is needed"),
            ("-no", "a number"),
        ],
        *[("1 and yes", "a condition"), ("not 1", "a condition"), ("1 ~ 1", "only in a `test`")],
        (f"range({MAX_LIST_LENGTH + 1})", "a list has at most"),
        (f"range({MAX_LIST_LENGTH}) + [1]", "a list has at most"),
        (f"[1] + range({MAX_LIST_LENGTH})", "a list has at most"),
        (f"{MAX_NUMBER} + 1", "integers are limited to"),
        (f"-{MAX_NUMBER} - 1", "integers are limited to"),
        ("1e308 * 10", "too large"),
        ("sum([[1], [2]])", "cannot take these arguments"),
        ("min(yes, 1)", "cannot take these arguments"),
        ("len(3)", "cannot take these arguments"),
        ("round(value=1)", "cannot take these arguments"),
    ],
)
def test_what_has_no_value(text: str, complaint: str) -> None:
    with pytest.raises(NetError, match=complaint):
        value(text)


def test_the_last_that_is_allowed() -> None:
    assert len(value(f"range({MAX_LIST_LENGTH})")) == MAX_LIST_LENGTH
    assert value(f"{MAX_NUMBER} + 0") == MAX_NUMBER
    deep = MAX_NESTING_DEPTH
    assert value("(" * deep + "1" + ")" * deep) == 1
    with pytest.raises(NetError, match=f"brackets are nested more than {deep} deep"):
        value("(" * (deep + 1) + "1" + ")" * (deep + 1))
    assert shape("input(3) -> identity * 0") == "3"
    assert shape(f"input(3); relu * {MAX_REPEATS}") == "3"
    for times in (-1, MAX_REPEATS + 1):
        with pytest.raises(NetError, match="repeats"):
            net(f"input(3) -> relu * ({times})")


# ---- statements


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ("input(4); if no { fc(1) } else { fc(2) }", "2"),
        ("input(4); if no { fc(1) } else if yes { fc(2) } else { fc(3) }", "2"),
        ("input(4); if no { fc(1) } else if no { fc(2) } else { fc(3) }", "3"),
        ("input(4); if no { fc(1) }", "4"),
        ("input(4); if yes { fc(1) } else { fc(2) }", "1"),
        ("input(4); let c = 5; for c in [1, 2] { fc(c) }; fc(c)", "5"),
        ("input(4); let c = 5; shared s = fc(c); let c = 6; s", "5"),
        ("input(4); for a, b in [[1, 2], [3, 4]] { fc(a + b) }", "7"),
        ("input(4); fc(1) * 0", "4"),
    ],
)
def test_what_flows_out(body: str, size: str) -> None:
    assert shape(body) == size


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("net n { input(4); output main: fc(2) }", "`main` is the net's own output"),
        ("net n { input(4); for c in [1] { fc(2) }; fc(c) }", "an integer, not c"),
        ("net n { input(4); fc(2) }\nnet n { input(3) }", "two nets are called `n`"),
        ("block b { relu }\nblock b { tanh }", "two blocks are called `b`"),
        ("train { epochs = 1 }\ntrain { epochs = 2 }", "two train sections have no name"),
        ("data { batch = 1 }\ndata { batch = 2 }", "two data sections have no name"),
        ("train a { epochs = 1 }\ntrain a { epochs = 2 }", "two train sections are called `a`"),
        ("train { epochs = 1, epochs = 2 }", "`epochs` is given 2 times"),
        ("net n { a: input(4) -> fc(2); a: fc(3) }", "two things here are called `a`"),
        ("net n { labels: input(4) -> fc(2); lr: input(3) }", "cannot be called `lr`"),
    ],
)
def test_what_means_nothing_or_two_things(text: str, complaint: str) -> None:
    with pytest.raises(NetError, match=complaint):
        elaborate(build_program(parse(text)))


def test_an_instance_of_an_instance_has_the_last_word() -> None:
    text = "net a(x=1, y=1) { input(x); fc(y) }\nnet b = a(x=2, y=2)\nnet c = b(y=3)"
    found = elaborate(build_program(parse(text)), "c")
    assert [n.type.shape for n in found.graph.states] == [(3, 2), (3,)]


RECIPES = """
net n { input(8x8x1); fc(10) }
data { source = digits }
train { epochs = 1, optimizer = sgd(lr=0.5) }
train a { epochs = 2, optimizer = adam(lr=0.25, beta1=0.5) }
"""


@pytest.mark.parametrize(
    ("settings", "plain", "a"),
    [
        (["train.epochs=7"], (7, 0.5), (7, 0.25)),
        (["train.a.epochs=7"], (1, 0.5), (7, 0.25)),
        (["train.epochs=7", "train.a.epochs=8"], (7, 0.5), (8, 0.25)),
        (["train.a.epochs=8", "train.epochs=7"], (7, 0.5), (8, 0.25)),
        (["train.optimizer.lr=1"], (1, 1.0), (2, 1.0)),
        (["train.a.optimizer.lr=1"], (1, 0.5), (2, 1.0)),
        (["train.optimizer.lr=1", "train.optimizer.lr=2"], (1, 2.0), (2, 2.0)),
    ],
)
def test_what_is_set_reaches_its_section(
    settings: list[str], plain: tuple[int, float], a: tuple[int, float]
) -> None:
    file = build_program(override(parse(RECIPES), settings))
    for name, expected in ((None, plain), ("a", a)):
        recipe = resolve_recipe(file, name)
        assert (recipe.epochs, recipe.optimizer.arguments["lr"]) == expected
    assert resolve_recipe(file, "a").optimizer.arguments["beta1"] == 0.5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data.batch=65_537", "from 1 to 65,536"),
        ("data.batch=0", "from 1 to 65,536"),
        ("train.clip=0", "above 0"),
        ("train.ema=1", "below 1"),
        ("train.ema=0", "above 0"),
        ("train.seed=-1", "from 0"),
        ("train.epochs=1.5", "an integer"),
        ("train.epochs=yes", "an integer"),
        ("train.optimizer.lr=-0.1", "at least 0"),
        ("train.optimizer.momentum=1", "below 1"),
        ("train.optimizer.nesterov=1", "`yes` or `no`"),
        ("train.clip=1e39", "float32 can hold"),
    ],
)
def test_values_out_of_range(text: str, complaint: str) -> None:
    with pytest.raises(NetError, match=complaint):
        resolve_recipe(build_program(override(parse(RECIPES), [text])))


@pytest.mark.parametrize(
    "setting", ["data.batch=65_536", "data.batch=1", "train.ema=0.999", "train.optimizer.lr=0"]
)
def test_values_at_the_end_of_their_range(setting: str) -> None:
    resolve_recipe(build_program(override(parse(RECIPES), [setting])))


# ---- layers


def test_same_padding_has_its_odd_pixel_below_and_to_the_right() -> None:
    assert resolve_padding("same", (2, 4)) == ((0, 1), (1, 2))
    assert resolve_padding("same", (3, 5)) == ((1, 1), (2, 2))
    assert resolve_padding("same", (2, 3), (3, 2)) == ((1, 2), (2, 2))
    assert resolve_padding("same", (1, 1)) == ((0, 0), (0, 0))


@pytest.mark.parametrize("side", range(1, 8))
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1])
def test_windows_of_ceil_mode_begin_inside(side: int, kernel: int, stride: int, pad: int) -> None:
    """Every place whose window begins in the image or its padding before it, and one that a window
    is needed for: as PyTorch and Caffe count."""
    if pad >= kernel or side + 2 * pad < kernel:
        return
    starts, at = 1, 0
    while at + kernel < side + 2 * pad and at + stride < side + pad:
        at, starts = at + stride, starts + 1
    call = f"maxpool({kernel}, stride={stride}, pad={pad}, ceil=yes)"
    assert shape(f"input({side}x{side}x1); {call}") == f"{starts}x{starts}x1"


@pytest.mark.parametrize(
    ("layer", "fan"),
    [
        ("conv(6, 3x2, groups=2)", 3 * 2 * 2),
        ("conv(8, 3x3, groups=4)", 3 * 3 * 1),
        ("conv(3, 1x1)", 4),
        ("fc(5)", 6 * 6 * 4),
        ("convtranspose(3, 4x4, stride=2)", 4 * 4 * 4 / 4),
    ],
)
def test_he_initialises_by_what_one_output_sums_up(layer: str, fan: float) -> None:
    """Normal of deviation sqrt(2 / fan in), He et al. 2015."""
    weight = net(f"input(6x6x4); {layer}").parameters[0]
    law, scale = weight.attrs["init"]
    assert law == "normal"
    assert scale == pytest.approx(math.sqrt(2 / fan))


def test_running_moments_move_by_a_tenth_towards_the_batch_s() -> None:
    """The variance by n / (n - 1), as it is an estimate of that of all images."""
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 2))
    for momentum in (0.1, 0.25):
        found = net(
            f"input(2x2x2); batchnorm(momentum={momentum})", batch=3, training=True, dtype="float64"
        )
        given = {
            "input": x,
            "batchnorm1.running_mean": np.array([1.0, 2.0]),
            "batchnorm1.running_var": np.array([3.0, 4.0]),
            "batchnorm1.gamma": np.ones(2),
            "batchnorm1.beta": np.zeros(2),
        }
        out = evaluate_results(found.graph, given)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
        for name, old, new in (("mean", [1.0, 2.0], mean), ("var", [3.0, 4.0], variance)):
            expected = (1 - momentum) * np.array(old) + momentum * new
            update = out[f"update batchnorm1.running_{name}"]
            np.testing.assert_allclose(update, expected, rtol=1e-10)


def test_a_size_is_written_as_it_is_read() -> None:
    assert value("3x4") == Size((3, 4))


@pytest.mark.parametrize("layer", ["avgpool", "maxpool"])
@pytest.mark.parametrize("to", ["1x1", "1x8", "8x1"])
def test_adaptive_pooling_to_one_window(layer: str, to: str) -> None:
    network = elaborate(build_program(parse(f"net a {{ input(8x8x3); {layer}(to={to}) }}")))
    assert dims(network.layers[-1].output_type.shape) == f"1x{to}x3"

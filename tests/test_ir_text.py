"""The IR's text is read back as the very same graph; what is damaged is refused with its place."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.insight.compile_target import CompileTarget, prepare_target
from netdsl.ir.builder import Builder
from netdsl.ir.printer import to_text
from netdsl.ir.text_parser import parse_graph, parse_graphs
from netdsl.ir.verifier import verify_graph
from netdsl.language.program import load_program
from netdsl.limits import MAX_IR_CHARACTERS
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.parameter_types import AnyValue, accepts_words
from netdsl.passes.mixed_precision import convert_to_mixed_precision
from netdsl.passes.recompute import recompute
from netdsl.signature import Param
from netdsl.types import Attrs, Graph, Node, TensorType
from netdsl.values import Symbol
from tests.conftest import ROOT, HypothesisDraw
from tests.graphs import (
    BLOCK_NETS,
    assert_same_graph,
    block_step,
    draw_inference,
    draw_training_step,
)
from tests.random_graphs import draw_graph

MODELS = sorted((ROOT / "models").rglob("*.net"))
DRAWN = {"step": draw_training_step, "odd": draw_graph, "inference": draw_inference}


def round_trip(graph: Graph) -> None:
    text = to_text(graph)
    found = verify_graph(parse_graph(text))
    assert_same_graph(found, graph)
    assert to_text(found) == text


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn_graphs_are_read_back(kind: str) -> None:
    for seed in range(60):
        graph = DRAWN[kind](RandomDraw(np.random.default_rng(seed)))
        round_trip(graph)
        round_trip(convert_to_mixed_precision(graph, "bfloat16"))


@given(data=st.data())
def test_any_drawn_graph_is_read_back(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    round_trip(draw.choice(list(DRAWN.values()))(draw))


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_steps_of_blocks_are_read_back(net: str) -> None:
    round_trip(block_step(net))


def compiled(path: Path, nets: list[str], training: tuple[bool, ...]) -> Iterator[Graph]:
    """Nets of a file, compiled as `netdsl compile` does it; some can't be trained as they are."""
    file = load_program(str(path))
    for net in nets or list(file.nets):
        for way in training:
            try:
                yield prepare_target(file, CompileTarget(net, way)).graph
            except NetError:
                assert way


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_net_of_each_file_is_read_back(path: Path) -> None:
    """For inference and as a training step; all others are a slow test."""
    nets = list(load_program(str(path)).nets)
    if nets:
        chosen = next((n for n in nets if "small" in n), nets[0])
        for graph in compiled(path, [chosen], (False, True)):
            round_trip(graph)


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_the_zoo_is_read_back(path: Path) -> None:
    for graph in compiled(path, [], (False, True)):
        round_trip(graph)


# ---- names, values, places

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ODD = ["inf", "nan~2", "yes", "none", "0.5", "2x3", "a b", '"', "\\", "#", "\n"]
labels = st.one_of(texts, st.sampled_from(ODD))
numbers = st.one_of(
    st.floats(), st.sampled_from([0.0, -0.0, 0.1, 1 / 3, 1e-300, 1e22, math.inf, -math.inf])
)


@given(names=st.lists(labels, min_size=6, max_size=6, unique=True), value=numbers, other=numbers)
def test_any_name_and_number_is_read_back(names: list[str], value: float, other: float) -> None:
    x, w, y, region, root, title = names
    b = Builder()
    node = b.input(x, TensorType((3,)))
    state = b.state(w, TensorType(()), ("constant", value), trainable=value > 0)
    with b.at(None, y, region):
        product = b.mul(b.add(node, b.const(value)), b.const((value, other, value)))
    moved = b.reduce_sum(b.mul(product, b.const(other)), axes=(0,))
    outputs = {root: product, "const": b.nodes[product.args[1]], "state": state}
    graph = b.build(outputs, {w: moved}, title)
    text = to_text(graph)
    found = parse_graph(text)
    assert to_text(found) == text
    if not (math.isnan(value) or math.isnan(other)):
        assert_same_graph(found, graph)
        assert [repr(n.attrs) for n in found.nodes.values()] == [
            repr(n.attrs) for n in graph.nodes.values()
        ]


def test_constants_of_one_value_are_told_apart() -> None:
    """By element type and region; the readers show which."""
    b = Builder()
    x = b.input("x", TensorType((2,)))
    y = b.add(x, b.const(0.5))
    with b.at(None, None, "again"):
        y = b.mul(y, b.const(0.5))
    wide = b.cast(y, dtype="float64")
    graph = b.build({"y": b.mul(wide, b.const(0.5, "float64")), "half": b.const(0.5)})
    text = to_text(graph)
    for line in (
        "const const = 0.5  scalar float32\n",
        "add = add(x, 0.5)  2 float32\n",
        "mul = mul(add, 0.5~2)  2 float32  @again\n",
        "mul~2 = mul(cast, 0.5~3)  2 float64\n",
        "output half: 0.5\n",
    ):
        assert f"  {line}" in text
    round_trip(graph)


@pytest.mark.parametrize("value", [(-1, 2), (1, 2), (1.0, 2.0), (3,), (1, 2, -3), 7, -7, 10**17])
def test_whole_numbers_stay_whole(value: int | tuple[float, ...]) -> None:
    """Of constants, which operators that count are given."""
    b = Builder()
    x = b.emit("const", value=value, dtype="int64")
    graph = b.build({"y": x, "z": b.cast(x, dtype="float32")})
    round_trip(graph)
    (found,) = parse_graph(to_text(graph)).find_by_op("const")
    assert repr(found.attrs) == repr(x.attrs)


def test_equal_nodes_stay_two() -> None:
    """Nothing is simplified on the way."""
    x = Node("x", "input", (), Attrs({"shape": (2,), "dtype": "float32"}), TensorType((2,)))
    one, two = (Node(n, "relu", ("x",), Attrs(), TensorType((2,))) for n in ("one", "two"))
    b = Builder()
    for node in (x, one, two):
        b.insert(node)
    round_trip(b.build({"y": one, "z": two}))


def test_regions_are_read_back() -> None:
    step = block_step("residual_small")
    forward = {n for n in step.nodes if not n.startswith(("d.", "update"))}
    inner = [n for n in forward if OPS[step[n].op].kind != "leaf"]
    after = recompute(step, forward, dict.fromkeys(inner, "a region"))
    assert any(n.region for n in after.nodes.values())
    round_trip(after)


ATTRIBUTES = [(name, p) for name, op in OPS.items() for p in op.attrs]


@pytest.mark.parametrize(
    ("op", "param"), ATTRIBUTES, ids=lambda v: v if isinstance(v, str) else v.name
)
def test_every_attribute_has_a_kind_that_takes_what_examples_have(op: str, param: Param) -> None:
    """So that what a text gives can be held against it."""
    by_hand = {("const", "value"), ("state", "init")}
    if (op, param.name) in by_hand:
        return
    assert not isinstance(param.type, AnyValue)
    for seed in range(20):
        value = OPS[op].draw_example(RandomDraw(np.random.default_rng(seed))).attrs.get(param.name)
        if value is not None:
            is_word = isinstance(value, str) and accepts_words(param.type)
            plain = Symbol(value) if is_word else value
            assert param.type.accept(plain) == value


# ---- what is refused

GOOD = """graph g {
  input x: 2x3 float32
  state w: 4x3 float32 normal(0.5)
  const half = 0.5  scalar float32
  y = matmul(x, w)  2x4 float32
  # a comment
  z = mul(y, 0.5)  2x4 float32  @later
  s = reduce_sum(z, axes=[0], keepdims=yes)  1x4 float32
  output z: s
  update w: w
}
"""

WRONG = {
    "graf g {\n}": ("expected `graph NAME {`", 1),
    "graph g {": ("ends without `}`", 1),
    "graph g {\n}\nmore": ("expected `graph NAME {`", 3),
    "graph g {\n  what is this\n}": ("this is not a statement", 2),
}
CHANGES = [
    ("2x3 float32", "2x3 float33", "there is no element type float33", 2),
    ("2x3 float32", "0x3 float32", "`shape` must be", 2),
    ("2x3 float32", "9999999999999999999x3 float32", "at most 18 digits", 2),
    ("input x", "input w", "second value `w`", 3),
    ("normal(0.5)", "normal(half)", "parameter must be a number", 3),
    ("normal(0.5)", "normal(1, 2)", "one value", 3),
    ("= 0.5", "= yes", "a constant must be a number", 4),
    ("= 0.5", "= 0.25", "no constant 0.5 comes before", 7),
    ("matmul(x, w)", "matmull(x, w)", "there is no operator `matmull`", 5),
    ("matmul(x, w)", "state(x, w)", "there is no operator `state`", 5),
    ("matmul(x, w)", "matmul(x)", "operands of `matmul` are x, w; got 1", 5),
    ("matmul(x, w)", "matmul(x, v)", "no value named `v` comes before this", 5),
    ("matmul(x, w)", "matmul(x, z)", "no value named `z` comes before this", 5),
    ("matmul(x, w)", "matmul(x w)", "comma is missing", 5),
    ("matmul(x, w)", "matmul(x, x)", "", 5),
    ("matmul(x, w)", "matmul(x, w, k=3)", "`matmul` has no attribute `k`", 5),
    ("2x4 float32\n  #", "2x5 float32\n  #", "`y` is declared 2x5 float32, but is 2x4 float32", 5),
    ("0.5)  2x4", "0.5~2)  2x4", "no constant 0.5~2", 7),
    ("0.5)  2x4", "0.5é)  2x4", "comma", 7),
    ("0.5)  2x4", "$)  2x4", "this is not a value", 7),
    ("axes=[0]", "axes=[0", "comma or `]`", 8),
    ("axes=[0]", "axes=[7]", "not distinct axes", 8),
    ("axes=[0]", "axes=[[0]]", "`axes` must be", 8),
    ("axes=[0], ", "", "needs `axes`", 8),
    ("axes=[0]", "axes=[0], axes=[0]", "given twice", 8),
    ("axes=[0]", "axes=" + "[" * 60 + "]" * 60, "nested more than", 8),
    ("keepdims=yes", "keepdims=1", "`keepdims` must be `yes` or `no`", 8),
    ("keepdims=yes", "y", "operands must come before attributes", 8),
    ("output z: s", "output z: s\n  output z: s", "second output `z`", 10),
    ("update w: w", "update w: s", "`w` is 4x3 float32, its update is 1x4 float32", 10),
    ("update w: w", "update y: y", "`y` is not a state", 10),
    ("update w: w", 'update "\\q": w', "not a valid quoted string", 10),
]


@pytest.mark.parametrize(
    ("text", "expected"), WRONG.items(), ids=lambda v: v[:20] if isinstance(v, str) else ""
)
def test_what_is_no_graph_is_refused(text: str, expected: tuple[str, int]) -> None:
    refused(text, *expected)


@pytest.mark.parametrize(("old", "new", "said", "line"), CHANGES)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, said: str, line: int) -> None:
    parse_graph(GOOD)
    assert GOOD.count(old) == 1
    refused(GOOD.replace(old, new), said, line)


def refused(text: str, said: str, line: int) -> None:
    with pytest.raises(NetError) as e:
        parse_graph(text, "a.ir")
    (told,) = e.value.diagnostics
    assert said in told.message
    assert told.span is not None
    assert told.span.position[0] == line
    assert "a.ir" in e.value.render()


SCRAPS = [
    *'(){}[]|,:=~@#"\\ \n\t\0é²',
    *("  ", "0", "-1", "1e999", "9" * 5000, "inf", "nan", "yes", "none", "~2", "scalar", "0x0"),
    *(" float16", " int32", " bool", "axes=[0]", "stride=0x1", "pad=[1x1, 1x1]", "shape=[2, -2]"),
    *(" not learnt", "  @r", "const ", "state ", "input ", "output ", "update ", *OPS),
]


def test_damaged_texts_are_read_or_refused() -> None:
    """Never anything else, and never long."""
    rng = random.Random(0)
    good = [
        GOOD,
        *(to_text(draw_training_step(RandomDraw(np.random.default_rng(s)))) for s in range(8)),
    ]
    good += [to_text(draw_graph(RandomDraw(np.random.default_rng(s)))) for s in range(8)]
    refusals = 0
    for _ in range(1500):
        text = damaged(rng.choice(good), rng)
        refusals += is_refused(text)
    assert refusals > 750


def is_refused(text: str) -> bool:
    try:
        verify_graph(parse_graph(text))
    except NetError as e:
        return bool(e.render())
    return False


def damaged(text: str, rng: random.Random) -> str:
    """With a few parts cut out, doubled, exchanged with others or replaced by scraps."""
    lines = text.split("\n")
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        words = lines[i].split(" ")
        k = rng.randrange(len(words))
        other = rng.choice(lines).split(" ")
        way = rng.randrange(6)
        if way == 0:
            words[k] = rng.choice(other)
        elif way == 1:
            words[k] = rng.choice(SCRAPS)
        elif way == 2:
            at = rng.randrange(len(words[k]) + 1)
            words[k] = words[k][:at] + rng.choice(SCRAPS) + words[k][at:]
        elif way == 3:
            del words[k]
        elif way == 4:
            at = rng.randrange(len(words[k]) + 1)
            words[k] = words[k][:at] + words[k][at + 1 :]
        else:
            lines.insert(rng.randrange(len(lines)), lines[i])
            continue
        lines[i] = " ".join(words)
    return "\n".join(lines)


@settings(max_examples=50)
@given(text=st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(NetError):
        parse_graph(f"graph g {{\n{text}")


@pytest.mark.parametrize(
    "line",
    [
        "const a = " + " " * 200_000 + "1",
        "output a: " + " " * 200_000 + "y",
        "a = relu(" + "(" * 200_000 + ")  1",
        "a = relu(" + ")  1" * 100_000,
        'a = relu("' + "\\" * 200_000,
        "a = relu(" + "x, " * 60_000 + ")  2 float32",
        "a = relu(x, axes=" + "[" * 100_000 + ")  2 float32",
        "input a: " + "1x" * 100_000 + "1 float32",
    ],
    ids=range(8),
)
def test_long_lines_are_refused_at_once(line: str) -> None:
    started = time.perf_counter()
    with pytest.raises(NetError):
        parse_graph(f"graph g {{\n  input x: 2 float32\n  {line}\n}}")
    assert time.perf_counter() - started < 5


def test_a_text_has_a_limit() -> None:
    with pytest.raises(NetError, match="has more than"):
        parse_graph("#" * (MAX_IR_CHARACTERS + 1))


def test_a_text_holds_one_graph_or_several() -> None:
    one, two = parse_graphs(f"# two\n{GOOD}\n{GOOD}")
    assert_same_graph(one, two)
    for text in ("", GOOD + GOOD):
        with pytest.raises(NetError, match="graphs, not one"):
            parse_graph(text)

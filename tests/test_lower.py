"""Lowering: references traced to expressions, their primitives on both engines, and levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends.cpu.elementwise_functions import FUNCTIONS
from netdsl.backends.cuda.c_expression import TEMPLATES
from netdsl.lower.expression import PRIMITIVES, Constant, Expr, LinearIndex
from netdsl.lower.formula import trace_formula
from netdsl.lower.index_terms import (
    DomainDigits,
    UnsupportedKernelError,
    address_terms,
    domain_coordinates,
    reshape_coordinates,
)
from netdsl.lower.levels import Level, assign_levels
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw, draw_operand
from netdsl.ops.special import erf
from netdsl.plan.layout import row_major_strides

TRACED = [n for n, op in OPS.items() if op.kind == "elementwise" and not op.whole_operands]
TRACED.remove("dropout")  # its mask is a primitive of its own
NUMPY: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fma": lambda x, y, z: x * y + z,
    "neg": np.negative,
    "abs": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "greater": np.greater,
    "equal": np.equal,
    "is_finite": np.isfinite,
    "select": np.where,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "erf": lambda x: erf(np, x),
    "pow": np.power,
}


def leaf(dtype: str = "float32") -> Expr:
    return Expr("leaf", dtype)


def evaluate(e: Expr, values: Mapping[int, Any]) -> Any:
    if id(e) in values:
        return values[id(e)]
    if isinstance(e, Constant):
        return e.value
    args = [evaluate(a, values) for a in e.args]
    return args[0].astype(e.dtype) if e.op == "cast" else NUMPY[e.op](*args)


def to_text(e: Expr) -> str:
    if isinstance(e, Constant):
        return f"{e.value:g}"
    return f"{e.op}({', '.join(map(to_text, e.args))})" if e.args else e.op


def test_both_engines_render_every_primitive() -> None:
    others = {"cast"}
    assert PRIMITIVES.keys() == NUMPY.keys() | others
    assert PRIMITIVES.keys() == FUNCTIONS.keys() | others
    assert PRIMITIVES.keys() == TEMPLATES.keys() | others
    for name, template in TEMPLATES.items():
        operands = {f"{{{i}}}" for i in range(4) if f"{{{i}}}" in template}
        assert len(operands) == PRIMITIVES[name]


@pytest.mark.parametrize("name", TRACED)
def test_an_expression_computes_what_its_reference_does(name: str) -> None:
    op = OPS[name]
    draw = RandomDraw(np.random.default_rng(3))
    rng = np.random.default_rng(4)
    for _ in range(20):
        example = op.draw_example(draw)
        arrays = [draw_operand(o, rng) for o in example.operands]
        leaves = [leaf(o.type.dtype) for o in example.operands]
        dtype = op.shape(*(o.type for o in example.operands), **example.attrs).dtype
        e = trace_formula(name, dtype, leaves, example.attrs)
        found = evaluate(e, {id(x): v for x, v in zip(leaves, arrays, strict=True)})
        expected = op.reference(np, *arrays, **example.attrs)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert e.dtype == dtype


@pytest.mark.parametrize(
    ("op", "attrs", "text"),
    [
        ("relu", {}, "maximum(leaf, 0)"),
        ("clamp", {"low": 0.0, "high": 6.0}, "minimum(maximum(leaf, 0), 6)"),
        ("leaky_relu", {"slope": 0.5}, "select(greater(leaf, 0), leaf, mul(0.5, leaf))"),
        ("sigmoid", {}, "fma(0.5, tanh(mul(0.5, leaf)), 0.5)"),
        ("ema", {"decay": 0.75}, "fma(0.75, leaf, mul(0.25, leaf))"),
        ("descend", {}, "sub(leaf, mul(leaf, leaf))"),
        ("power", {"exponent": 2.0}, "mul(leaf, leaf)"),
        ("power", {"exponent": -1.0}, "div(1, leaf)"),
        ("power", {"exponent": 0.5}, "sqrt(leaf)"),
        ("power", {"exponent": 3.0}, "pow(leaf, 3)"),
        ("copy", {}, "leaf"),
    ],
)
def test_expressions_as_text(op: str, attrs: Mapping[str, Any], text: str) -> None:
    args = [leaf() for _ in OPS[op].operands]
    assert to_text(trace_formula(op, "float32", args, attrs)) == text


def test_what_no_primitive_stands_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def arctan(xp: Any, x: Any) -> Any:
        return xp.arctan(x)

    def step(xp: Any, x: Any) -> Any:
        return xp.where(x > 0, 1, 0)

    for reference, reason in ((arctan, "`arctan`"), (step, "numbers without a type")):
        monkeypatch.setitem(OPS, "new", replace(OPS["tanh"], name="new", reference=reference))
        with pytest.raises(UnsupportedKernelError, match=reason):
            trace_formula("new", "float32", [leaf()], {})


def test_levels_are_those_of_the_operands() -> None:
    scalar = Expr("neg", "float32", (Constant("const", "float32", value=2.0),))
    index = LinearIndex("index", "int64", (scalar,), terms=(), size=1)
    row = Expr("cast", "float32", (index,))
    both = Expr("add", "float32", (scalar, row))
    levels = assign_levels([both], lambda _: Level.ROW)
    found = [levels[id(e)] for e in (scalar, index, row, both)]
    assert found == [Level.FIXED, Level.ROW, Level.ROW, Level.ROW]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 3),
    st.booleans(),
)
def test_digits_find_every_element(sizes: list[int], axis: int, has_axes: bool) -> None:
    """An address by digits is that by coordinates, whether axes are merged or stay."""
    shape = tuple(sizes)
    size = int(np.prod(shape))
    flat = reshape_coordinates(domain_coordinates(shape), (size,))
    # a value that is broadcast along one axis, and the whole domain as a row
    strides = [0 if a == axis % len(shape) else s for a, s in enumerate(row_major_strides(shape))]
    addresses = [
        address_terms(domain_coordinates(shape), strides),
        address_terms(flat, (1,)),
    ]
    digits = DomainDigits(size, addresses, shape if has_axes else ())
    places = np.stack(np.unravel_index(np.arange(size), digits.extents or (1,)))
    for terms, expected in zip(addresses, (strides, row_major_strides(shape)), strict=True):
        moved = np.array(digits.strides(terms) or (0,)) @ places
        index = np.stack(np.unravel_index(np.arange(size), shape))
        np.testing.assert_array_equal(moved, np.array(expected) @ index)
    if has_axes:
        assert digits.extents == tuple(s for s in shape if s > 1)

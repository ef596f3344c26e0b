"""Every reference against its shape rule, and on an array module that is not NumPy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.ops.dropout import philox
from netdsl.ops.example_values import RandomDraw, draw_operands
from netdsl.parameter_types import Float
from netdsl.signature import Param
from tests.conftest import HypothesisDraw

COMPUTED = [op for op in OPS if op not in ("input", "state")]


@pytest.mark.parametrize("op", COMPUTED)
@settings(max_examples=20)
@given(data=st.data())
def test_the_reference_gives_what_the_shape_rule_says(op: str, data: st.DataObject) -> None:
    example = OPS[op].draw_example(HypothesisDraw(data))
    values = draw_operands(example, np.random.default_rng(0))
    b = Builder(dtype="float64")
    operands = [b.input(f"x{i}", o.type) for i, o in enumerate(example.operands)]
    node = b.emit(op, *operands, **example.attrs)
    out = np.asarray(OPS[op].reference(np, *values, **node.attrs))
    assert out.shape == node.type.shape
    assert str(out.dtype) == node.type.dtype
    assert np.all(np.isfinite(out))
    cost = OPS[op].cost(node.type, *(o.type for o in example.operands), **node.attrs)
    assert min(cost.macs, cost.flops, cost.bytes) >= 0


ATTRIBUTES = [(name, p) for name in COMPUTED for p in OPS[name].attrs if p.name != "dtype"]


@pytest.mark.parametrize(("op", "param"), ATTRIBUTES, ids=lambda v: getattr(v, "name", v))
def test_examples_draw_attributes_over_their_whole_range(op: str, param: Param) -> None:
    """No example keeps one at its default, or at a few values that happen to be harmless."""
    draws = [OPS[op].draw_example(RandomDraw(np.random.default_rng(seed))) for seed in range(200)]
    values = {example.attrs[param.name] for example in draws}
    kind = param.type
    if not isinstance(kind, Float):
        assert len(values) > 1
        return
    assert len(values) > 20
    assert any(v % 1 for v in values)
    low, high = max(kind.low, kind.above), min(kind.high, kind.below)
    for end in (low, high):
        assert math.isinf(end) or min(abs(v - end) for v in values) < 1e-5
    if math.isinf(high):
        assert max(values) >= 4
    if math.isinf(low):
        assert min(values) <= -4 or (op.startswith("lrn") and param.name == "alpha")


class Foreign(np.ndarray):
    """An array that refuses NumPy's own functions, as a GPU's arrays do."""

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} was called on a foreign array")


def _native(value: Any) -> Any:
    if isinstance(value, Foreign):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(map(_native, value))
    return value


def _foreign(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value).view(Foreign)
    if isinstance(value, tuple | list):
        return type(value)(map(_foreign, value))
    return value


class ForeignModule:
    """NumPy behind another name: the only way to compute with Foreign arrays."""

    inf = np.inf
    lib = SimpleNamespace(
        stride_tricks=SimpleNamespace(
            as_strided=lambda x, *rest: _foreign(np.lib.stride_tricks.as_strided(_native(x), *rest))
        )
    )

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        return lambda *a, **kw: _foreign(function(*map(_native, a), **kw))


@pytest.mark.parametrize("op", COMPUTED)
def test_the_reference_computes_on_any_array_module(op: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        example = OPS[op].draw_example(RandomDraw(rng))
        values = draw_operands(example, rng)
        attrs = {p.name: p.default for p in OPS[op].attrs} | dict(example.attrs)
        plain = OPS[op].reference(np, *values, **attrs)
        foreign = OPS[op].reference(ForeignModule(), *map(_foreign, values), **attrs)
        np.testing.assert_array_equal(_native(foreign), plain)


def words(*hexes: str) -> list[int]:
    return [int(h, 16) for h in hexes]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (["0"] * 4, ["0"] * 2, ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
        (["ffffffff"] * 4, ["ffffffff"] * 2, ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]),
        (
            ["243f6a88", "85a308d3", "13198a2e", "03707344"],
            ["a4093822", "299f31d0"],
            ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
        ),
    ],
)
def test_philox_gives_the_published_numbers(
    counter: list[str], key: list[str], expected: list[str]
) -> None:
    """The known answers of Random123 (Salmon et al. 2011)."""
    c = tuple(np.asarray([v], dtype=np.uint64) for v in words(*counter))
    k = tuple(np.asarray([v], dtype=np.uint64) for v in words(*key))
    assert philox(np, c, k)[0].tolist() == words(*expected)


def test_dropout_keeps_its_share_and_changes_with_step_and_key() -> None:
    x = np.ones(100_000, dtype=np.float32)

    def drop(step: int, key: str = "a") -> Any:
        reference = OPS["dropout"].reference
        return reference(np, x, np.int32(1), np.int32(step), np.int32(0), key=key, rate=0.25)

    first = drop(0)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.01
    assert np.array_equal(first, drop(0))
    assert not np.array_equal(first, drop(1))
    assert not np.array_equal(first, drop(0, "b"))


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "complaint"),
    [
        ("conv2d", [(1, 4, 4, 3), (2, 5, 5, 3)], {}, "does not fit"),
        ("conv2d", [(1, 4, 4, 3), (2, 1, 1, 4)], {}, "takes 4 channels"),
        ("conv2d", [(1, 4, 4, 3), (2, 1, 1, 3)], {"groups": 2}, "cannot be divided"),
        ("conv2d", [(1, 4), (2, 1, 1, 3)], {}, "image"),
        ("matmul", [(2, 3), (4, 5)], {}, "no matrix product"),
        ("reshape", [(2, 3)], {"shape": (5,)}, "has 6 values"),
        ("concat", [(2, 3), (3, 3)], {"axis": 1}, "cannot join"),
        ("slice", [(4,)], {"start": (0,), "stop": (5,), "step": (1,)}, "outside"),
        (
            "max_pool",
            [(1, 4, 4, 1)],
            {"kernel": (2, 2), "stride": (1, 1), "pad": ((2, 0), (0, 0))},
            "smaller",
        ),
        ("lrn", [(1, 2, 2, 3)], {"size": 4}, "odd"),
    ],
)
def test_shape_rules_refuse(
    op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any], complaint: str
) -> None:
    from netdsl.types import TensorType

    b = Builder()
    operands = [b.input(f"x{i}", TensorType(s)) for i, s in enumerate(shapes)]
    with pytest.raises(NetError, match=complaint):
        b.emit(op, *operands, **attrs)

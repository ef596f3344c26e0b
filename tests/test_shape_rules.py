"""Shape rules refuse what their operators cannot compute: examples with one thing changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw, draw_operands
from netdsl.ops.op import Example, Operand
from netdsl.types import TensorType

COMPUTED = [name for name, op in OPS.items() if op.kind != "leaf"]
SEEDS = 6
_LABELS = re.compile(r"below:\d+")


def near(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes with one axis longer or shorter, one axis more or less."""
    for axis, side in enumerate(shape):
        for other in (side - 1, side + 1):
            if other:
                yield (*shape[:axis], other, *shape[axis + 1 :])
    yield (*shape, 2)
    yield (2, *shape)
    if shape:
        yield shape[1:]
        yield shape[:-1]


def odd(value: Any) -> Iterator[Any]:
    """Whole numbers, in lists too, that are one more or less."""
    if isinstance(value, tuple):
        for i, inner in enumerate(value):
            for other in odd(inner):
                yield (*value[:i], other, *value[i + 1 :])
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value - 1
        yield value + 1


def changed(op: str, example: Example) -> Iterator[Example]:
    for i, operand in enumerate(example.operands):
        kind = operand.type
        for other in near(kind.shape):
            yield _with(example, i, replace(operand, type=TensorType(other, kind.dtype)))
        if kind.dtype == "float64":
            yield _with(example, i, replace(operand, type=TensorType(kind.shape, "float32")))
    for name, value in example.attrs.items():
        for other in odd(value):
            yield Example(example.operands, {**example.attrs, name: other})


def _with(example: Example, i: int, operand: Operand) -> Example:
    operands = (*example.operands[:i], operand, *example.operands[i + 1 :])
    return Example(operands, example.attrs)


@pytest.mark.parametrize("op", COMPUTED)
def test_what_a_rule_lets_through_is_computed(op: str) -> None:
    """In the shape and the type that it says; all else it refuses with a sentence."""
    record = OPS[op]
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        drawn = record.draw_example(RandomDraw(rng))
        # the label 0, which there is however many classes there are
        operands = (
            replace(o, distribution=_LABELS.sub("below:1", o.distribution)) for o in drawn.operands
        )
        for example in changed(op, Example(tuple(operands), drawn.attrs)):
            attrs = Builder()._complete_attributes(op, example.attrs)
            shapes = [o.type for o in example.operands]
            try:
                kind = record.shape(*shapes, **attrs)
            except NetError:
                continue
            found = np.asarray(record.reference(np, *draw_operands(example, rng), **attrs))
            assert found.shape == kind.shape, (shapes, attrs)

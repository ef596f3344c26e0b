"""Every gradient of the operator table against finite differences, and proof that this bites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.numerical_gradient import compute_vjp_error, find_differentiable_operands
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.ops.op import Op, Vjp
from tests.conftest import HypothesisDraw
from tests.finite_differences import gradient_errors
from tests.graphs import BLOCKS

TOLERANCE = 1e-6
PAIRS = [(op, i) for op in OPS for i in find_differentiable_operands(op)]
DIFFERENTIABLE = [op for op in OPS if find_differentiable_operands(op)]


@pytest.mark.parametrize(("op", "operand"), PAIRS, ids=lambda v: str(v))
@settings(max_examples=25)
@given(data=st.data())
def test_vjp_is_the_derivative(op: str, operand: int, data: st.DataObject) -> None:
    example = OPS[op].draw_example(HypothesisDraw(data))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    which = data.draw(st.integers(0, len(example.operands) - 1)) if OPS[op].is_variadic else operand
    error = compute_vjp_error(op, example, which, rng)
    assume(error is not None)
    assert error is not None
    assert error < TOLERANCE


@pytest.mark.parametrize("op", OPS)
def test_every_operand_has_a_gradient_or_a_reason(op: str) -> None:
    record = OPS[op]
    for i, operand in enumerate(record.operands):
        assert (record.vjp_of(i) is None) == (operand in record.nondiff), operand


def scaled(rule: Vjp) -> Vjp:
    return lambda b, g, y, *args, **kw: b.mul(rule(b, g, y, *args, **kw), b.const(1.01))


def negated(rule: Vjp) -> Vjp:
    return lambda b, g, y, *args, **kw: b.neg(rule(b, g, y, *args, **kw))


def mutated(op: Op, operand: int, mutation: Any) -> Op:
    vjp = list(op.vjp)
    vjp[operand] = mutation(vjp[operand])
    return replace(op, vjp=tuple(vjp))


def swapped(op: Op) -> Op | None:
    """The op with its gradients handed to the wrong operands; None where there are not two."""
    if op.is_variadic:
        rule = op.vjp[0]
        assert rule is not None
        return replace(
            op,
            vjp=(lambda b, g, y, *a, operand: rule(b, g, y, *a, operand=len(a) - 1 - operand),),
        )
    places = find_differentiable_operands(op.name)
    if len(places) < 2:
        return None
    vjp = list(op.vjp)
    first, last = places[0], places[-1]
    vjp[first], vjp[last] = vjp[last], vjp[first]
    return replace(op, vjp=tuple(vjp))


def caught(monkeypatch: pytest.MonkeyPatch, mutant: Op, tries: int = 20) -> bool:
    """Whether any of a few seeded examples refuses the mutant."""
    operands = find_differentiable_operands(mutant.name)
    with monkeypatch.context() as m:
        m.setitem(OPS, mutant.name, mutant)
        return any(refused(mutant, i, seed) for seed in range(tries) for i in operands)


def refused(mutant: Op, operand: int, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    example = mutant.draw_example(RandomDraw(rng))
    which = seed % len(example.operands) if mutant.is_variadic else operand
    try:
        error = compute_vjp_error(mutant.name, example, which, rng)
    except Exception:
        return True  # a swapped rule may not even build: its shapes do not fit
    return error is not None and error > TOLERANCE


@pytest.mark.parametrize(("op", "operand"), PAIRS, ids=lambda v: str(v))
@pytest.mark.parametrize("mutation", [scaled, negated], ids=["scaled", "negated"])
def test_a_wrong_vjp_is_caught(
    op: str, operand: int, mutation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not caught(monkeypatch, OPS[op], tries=5)
    assert caught(monkeypatch, mutated(OPS[op], operand, mutation))


def same_gradients(op: Op) -> bool:
    """Whether both operands' rules emit the very same node, so that swapping changes nothing."""
    example = op.draw_example(RandomDraw(np.random.default_rng(3)))
    b = Builder(dtype="float64")
    args = [b.input(f"x{i}", o.type) for i, o in enumerate(example.operands)]
    y = b.emit(op.name, *args, **example.attrs)
    g = b.input("g", y.type)
    rules = [op.vjp_of(i) for i in find_differentiable_operands(op.name)]
    return len({rule(b, g, y, *args).name for rule in rules if rule}) == 1


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_swapped_vjps_are_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = swapped(OPS[op])
    if mutant is None:
        return
    if not OPS[op].is_variadic and same_gradients(OPS[op]):
        assert op == "add"  # x + z: both gradients are g, a swap is no mutation
        return
    assert caught(monkeypatch, mutant)


def test_gradient_of_what_the_loss_ignores_is_zero() -> None:
    from netdsl.ir.interpreter import evaluate_graph
    from netdsl.types import TensorType

    b = Builder(dtype="float64")
    x, unused = (b.input(n, TensorType((2, 3), "float64")) for n in ("x", "unused"))
    g = grad(b, b.reduce_sum(x, axes=(0, 1)), [x, unused])
    values = evaluate_graph(b.build({}), {"x": np.ones((2, 3)), "unused": np.ones((2, 3))})
    assert values[g["unused"].name].tolist() == np.zeros((2, 3)).tolist()
    assert values[g["x"].name].tolist() == np.ones((2, 3)).tolist()


@pytest.mark.parametrize("net", ["residual", "googlenet"])
def test_gradients_of_a_planned_step(net: str) -> None:
    """The check that the engines are given on their devices, in the kernels that they share."""
    errors = gradient_errors(BLOCKS, net, open_backend("model"))
    assert len(errors) > 10
    assert max(errors.values()) < 1e-5, errors

"""The gradient check of whole nets: wrong gradients are found where they are, right ones pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from netdsl.insight.gradcheck import GRADCHECK_SETTINGS, TOLERANCE, LayerCheck, gradcheck
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program
from netdsl.ops import OPS
from netdsl.ops.op import Vjp

NET = """
net n {
  input(4x4x2)
  stem: conv(4, 3x3, pad=same) -> batchnorm -> gelu
  add { identity | conv(4, 1x1, groups=2) -> tanh }
  mul { identity | globalavgpool -> conv(4, 1x1) -> sigmoid }
  concat { maxpool(2x2) | avgpool(2x2) }
  lrn -> convtranspose(2, 2x2, stride=2) -> elu -> groupnorm(2) -> upsample(2)
  globalmaxpool -> fc(6) -> leaky_relu -> layernorm -> fc(3)
}
"""
PROGRAM = build_program(parse(NET))
NETWORK = elaborate(PROGRAM, None, GRADCHECK_SETTINGS)


def _sites() -> dict[tuple[str, int], set[str]]:
    """The layers whose results depend on each operand of each operator, constants left out."""
    found: dict[tuple[str, int], set[str]] = {}
    graph = NETWORK.graph
    for layer in NETWORK.layers:
        inside = graph.backward_slice(layer.result).intersection(layer.nodes)
        for node in (graph[n] for n in inside):
            for i, arg in enumerate(node.args):
                operand = 0 if OPS[node.op].is_variadic else i
                if OPS[node.op].vjp_of(operand) is not None and graph[arg].op != "const":
                    found.setdefault((node.op, operand), set()).add(layer.path)
    return found


SITES = dict(sorted(_sites().items()))


def scaled(by: float) -> Callable[[Vjp], Vjp]:
    return lambda rule: lambda b, g, y, *args, **kw: b.mul(rule(b, g, y, *args, **kw), b.const(by))


def planted(
    monkeypatch: pytest.MonkeyPatch, op: str, operand: int, mutation: Callable[[Vjp], Any]
) -> None:
    """Puts another gradient in the table of operators."""
    rules = list(OPS[op].vjp)
    rule = rules[operand]
    assert rule is not None
    rules[operand] = mutation(rule)
    monkeypatch.setitem(OPS, op, replace(OPS[op], vjp=tuple(rules)))


def faulty(found: Program, seed: int = 1) -> set[str]:
    return {row.name for row in gradcheck(found, None, seed) if not row.ok}


def test_the_net_has_every_kind_of_layer() -> None:
    assert len(SITES) > 25
    assert {op for op, _ in SITES} > {"conv2d", "conv2d_dgrad", "matmul", "normalize", "concat"}


@pytest.mark.parametrize("seed", [1, 2])
def test_right_gradients_pass(seed: int) -> None:
    assert faulty(PROGRAM, seed) == set()


@pytest.mark.parametrize(("op", "operand"), SITES, ids=lambda v: str(v))
def test_a_gradient_that_is_a_little_off_is_found(
    op: str, operand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each layer that has it, for each operand alone. What comes through the moments is a small
    share of a normalisation's gradient."""
    planted(monkeypatch, op, operand, scaled(1.02))
    assert faulty(PROGRAM) >= SITES[op, operand]


WHOLE = [
    *[("conv2d", 0), ("conv2d", 1), ("conv2d_dgrad", 0), ("matmul", 0), ("matmul", 1)],
    *[("tanh", 0), ("gelu", 0), ("max_pool", 0), ("concat", 0), ("lrn", 0), ("add", 1)],
]


@pytest.mark.parametrize(("op", "operand"), WHOLE, ids=lambda v: str(v))
def test_a_five_thousandth_is_found_where_it_is_all_of_a_gradient(
    op: str, operand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, op, operand, scaled(1.0002))
    assert faulty(PROGRAM) >= SITES[op, operand]


@pytest.mark.parametrize(("op", "operand"), WHOLE, ids=lambda v: str(v))
def test_the_whole_net_has_a_row_of_its_own(
    op: str, operand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, op, operand, scaled(1.1))
    rows = list(gradcheck(PROGRAM))
    assert rows[-1].name == "the whole net"
    assert not rows[-1].ok


def _without_the_variance(rule: Vjp) -> Vjp:
    """The gradient of moments without that of the variance: a term left out."""

    def other(b: Any, g: Any, y: Any, x: Any) -> Any:
        rank = g.type.rank
        first = b.slice(g, start=(0,) * rank, stop=(1, *g.type.shape[1:]), step=(1,) * rank)
        return rule(b, b.concat(first, b.sub(first, first), axis=0), y, x)

    return other


def _other_gelu(b: Any, g: Any, y: Any, x: Any) -> Any:
    """A rough approximation's."""
    return b.mul(g, b.sigmoid(b.mul(x, b.const(1.702))))


def _upside_down(rule: Vjp) -> Vjp:
    """An image turned over: the right numbers in wrong places."""

    def other(b: Any, g: Any, y: Any, *args: Any) -> Any:
        found = rule(b, g, y, *args)
        return b.transpose(found, perm=(0, 2, 1, 3))

    return other


@pytest.mark.parametrize(
    ("op", "operand", "mutation", "layer"),
    [
        ("moments", 0, _without_the_variance, "stem.batchnorm1"),
        ("conv2d", 0, _upside_down, "stem.conv1"),
        ("conv2d", 1, _upside_down, "stem.conv1"),
        ("max_pool", 0, _upside_down, "maxpool1"),
        ("gelu", 0, lambda rule: _other_gelu, "stem.gelu1"),
        ("add", 1, lambda rule: lambda b, g, y, x, z: b.neg(g), "add1"),
    ],
)
def test_a_gradient_of_the_wrong_kind_is_found(
    op: str, operand: int, mutation: Any, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, op, operand, mutation)
    assert {layer, "the whole net"} <= faulty(PROGRAM)


@pytest.mark.parametrize(
    ("chain", "op", "operand", "layer"),
    [
        ("fc(4) -> tanh -> fc(3, weight=normal(1e-7))", "matmul", 0, "fc2"),
        ("conv(4, 2x2) -> batchnorm(gamma=zeros) -> tanh -> fc(3)", "normalize", 0, "batchnorm1"),
        ("conv(4, 2x2) -> batchnorm(gamma=zeros) -> tanh -> fc(3)", "mul", 0, "batchnorm1"),
        ("conv(4, 1x1, weight=zeros) -> conv(3, 4x4)", "conv2d", 0, "conv1"),
    ],
)
def test_small_and_constant_weights_hide_no_gradient(
    chain: str, op: str, operand: int, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build_program(parse(f"net n {{ input(4x4x2); {chain} }}"))
    assert faulty(net) == set()
    planted(monkeypatch, op, operand, scaled(1.002))
    assert layer in faulty(net)


def test_an_error_counts_from_the_tolerance_on() -> None:
    assert TOLERANCE == 1e-5
    assert LayerCheck("a", TOLERANCE * 0.999).ok
    assert not LayerCheck("a", TOLERANCE).ok
    assert not LayerCheck("a", float("nan")).ok

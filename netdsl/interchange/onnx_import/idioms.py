"""Idioms: what exporters write as several ONNX operators, and netdsl as one layer.

A pattern is written as it would be read: `Mul(x, Sigmoid(x))`. Names are values, equal names equal
values; a name that begins with `c_` is a number, a literal one near to it. Both orders of `Add` and
`Mul` match."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from netdsl.interchange.onnx_import.graph import Attribute, OnnxGraph, OnnxNode
from netdsl.interchange.onnx_import.local_idiom import find_local_layer

IDIOM_DOMAIN = "netdsl"
_COMMUTATIVE = ("Add", "Mul")
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Match:
    """What the names of a pattern stand for, and the nodes that it covers by their operators."""

    values: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, tuple[OnnxNode, ...]] = field(default_factory=dict)


_Attributes = Callable[[OnnxGraph, Match], Mapping[str, Attribute] | None]


@dataclass(frozen=True)
class Idiom:
    """The operator that nodes which match one of the patterns become, on the value `x`.
    `attributes` gives its attributes, or None where the nodes are something else after all."""

    operator: str
    patterns: tuple[str, ...]
    attributes: _Attributes = lambda graph, match: {}


def replace_idioms(graph: OnnxGraph) -> OnnxGraph:
    """The graph with idioms as single nodes, without the nodes that no output needs."""
    needed = set(graph.outputs)
    kept: list[OnnxNode] = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        found = _find_idiom(graph, node) or find_local_layer(graph, node) or node
        found = replace(found, outputs=tuple(n if n in needed else "" for n in found.outputs))
        kept.append(found)
        needed.update(found.inputs)
    return replace(graph, nodes=tuple(reversed(kept)))


def _find_idiom(graph: OnnxGraph, node: OnnxNode) -> OnnxNode | None:
    for idiom, pattern in _patterns_by_root().get(node.operator, ()):
        for match in _match_call(graph, pattern, node, Match()):
            attributes = idiom.attributes(graph, match)
            if attributes is not None:
                return replace(
                    node,
                    operator=f"{IDIOM_DOMAIN}.{idiom.operator}",
                    inputs=(match.values["x"],),
                    attributes=attributes,
                    scope=_common_scope(match),
                )
    return None


def _common_scope(match: Match) -> str:
    scopes = [n.scope.split(".") for nodes in match.nodes.values() for n in nodes]
    common = []
    for parts in zip(*scopes, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _match_value(graph: OnnxGraph, pattern: ast.expr, name: str, match: Match) -> Iterator[Match]:
    """The ways in which a pattern matches a value."""
    if isinstance(pattern, ast.Call):
        node = graph.producers.get(name)
        if node is not None and node.outputs[0] == name:
            yield from _match_call(graph, pattern, node, match)
    elif isinstance(pattern, ast.Constant):
        number = _number(graph, name)
        wanted = ast.literal_eval(pattern)
        if number is not None and math.isclose(number, wanted, rel_tol=_TOLERANCE):
            yield match
    elif isinstance(pattern, ast.Name) and pattern.id.startswith("c_"):
        number = _number(graph, name)
        if number is not None:
            yield replace(match, numbers={**match.numbers, pattern.id[2:]: number})
    elif isinstance(pattern, ast.Name):
        is_same = match.values.get(pattern.id, name) == name
        if is_same and name not in graph.constants:
            yield replace(match, values={**match.values, pattern.id: name})


def _match_call(
    graph: OnnxGraph, pattern: ast.Call, node: OnnxNode, match: Match
) -> Iterator[Match]:
    operator = _operator(pattern)
    inputs = node.inputs
    if node.operator != operator or len(inputs) < len(pattern.args):
        return
    nodes = {**match.nodes, operator: (*match.nodes.get(operator, ()), node)}
    for order in (inputs, inputs[::-1]) if operator in _COMMUTATIVE else (inputs,):
        found = iter((replace(match, nodes=nodes),))
        for argument, name in zip(pattern.args, order, strict=False):
            found = _extend(graph, argument, name, found)
        yield from found


def _extend(
    graph: OnnxGraph, pattern: ast.expr, name: str, matches: Iterator[Match]
) -> Iterator[Match]:
    for match in matches:
        yield from _match_value(graph, pattern, name, match)


def _operator(pattern: ast.expr) -> str:
    assert isinstance(pattern, ast.Call)
    assert isinstance(pattern.func, ast.Name)
    return pattern.func.id


def _number(graph: OnnxGraph, name: str) -> float | None:
    value = graph.constants.get(name)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


@cache
def _patterns_by_root() -> dict[str, list[tuple[Idiom, ast.Call]]]:
    found: dict[str, list[tuple[Idiom, ast.Call]]] = {}
    for idiom in IDIOMS:
        for text in idiom.patterns:
            pattern = ast.parse(text, mode="eval").body
            assert isinstance(pattern, ast.Call)
            found.setdefault(_operator(pattern), []).append((idiom, pattern))
    return found


def _mean_attributes(graph: OnnxGraph, match: Match) -> Mapping[str, Attribute] | None:
    """The axes of the means, which must all be the same and kept, and what is added to the
    variance."""
    means = match.nodes["ReduceMean"]
    axes = {mean_axes(graph, node) for node in means}
    if len(axes) != 1 or None in axes or any(not n.attributes.get("keepdims", 1) for n in means):
        return None
    return {"axes": axes.pop(), "eps": match.numbers["eps"]}


def mean_axes(graph: OnnxGraph, node: OnnxNode) -> tuple[int, ...] | None:
    """The axes of a reduction, if they are constant."""
    given = node.attributes.get("axes")
    if isinstance(given, tuple):
        return tuple(int(a) for a in given)
    axes = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    return tuple(int(a) for a in axes.reshape(-1)) if axes is not None else None


def _hard_sigmoid_attributes(graph: OnnxGraph, match: Match) -> Mapping[str, Attribute] | None:
    """netdsl's has a slope of 1/6 and an offset of 1/2."""
    node = match.nodes["HardSigmoid"][0]
    slope, offset = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    is_same = isinstance(slope, float) and math.isclose(slope, 1 / 6, rel_tol=_TOLERANCE)
    return {} if is_same and offset == 0.5 else None


def _clip_attributes(graph: OnnxGraph, match: Match) -> Mapping[str, Attribute] | None:
    """A clip between 0 and 6, as attributes or operands."""
    return {} if all(clip_bounds(graph, n) == (0, 6) for n in match.nodes["Clip"]) else None


def clip_bounds(graph: OnnxGraph, node: OnnxNode) -> tuple[float | None, float | None] | None:
    """The bounds of a Clip, each None if there is none; None if one is computed."""
    bounds: list[float | None] = []
    for key, index in (("min", 1), ("max", 2)):
        name = node.inputs[index] if len(node.inputs) > index else ""
        given = node.attributes.get(key)
        if name and _number(graph, name) is None:
            return None
        bounds.append(_number(graph, name) if name else given if isinstance(given, float) else None)
    return bounds[0], bounds[1]


def _softmax_attributes(graph: OnnxGraph, match: Match) -> Mapping[str, Attribute] | None:
    reductions = (*match.nodes["ReduceMax"], *match.nodes["ReduceSum"])
    axes = {mean_axes(graph, node) for node in reductions}
    found = axes.pop()
    if axes or found is None or len(found) != 1:
        return None
    is_kept = all(n.attributes.get("keepdims", 1) for n in reductions)
    return {"axis": found[0]} if is_kept else None


_EXPONENTIAL = "Exp(Sub(x, ReduceMax(x)))"
_CUBE = ("Pow(x, 3)", "Mul(x, Mul(x, x))")
_ERF = ("Erf(Div(x, 1.41421356))", "Erf(Mul(x, 0.70710678))")
_DEVIATION = "Sub(x, ReduceMean(x))"
_VARIANCES = (f"ReduceMean(Pow({_DEVIATION}, 2))", f"ReduceMean(Mul({_DEVIATION}, {_DEVIATION}))")
_SQUARES = ("ReduceMean(Pow(x, 2))", "ReduceMean(Mul(x, x))")
_TANH = tuple(f"Tanh(Mul(0.7978845608, Add(x, Mul(0.044715, {cube}))))" for cube in _CUBE)
IDIOMS = (
    Idiom("silu", ("Mul(x, Sigmoid(x))",)),
    Idiom("mish", ("Mul(x, Tanh(Softplus(x)))",)),
    Idiom("softplus", ("Where(Greater(x, 20), x, Softplus(x))",)),
    Idiom("softsign", ("Div(x, Add(1, Abs(x)))",)),
    Idiom("hardswish", ("Mul(x, HardSigmoid(x))",), _hard_sigmoid_attributes),
    Idiom(
        "hardswish",
        (
            "Div(Mul(x, Clip(Add(x, 3))), 6)",
            "Mul(x, Div(Clip(Add(x, 3)), 6))",
            "Mul(x, Mul(Clip(Add(x, 3)), 0.16666667))",
            "Mul(Mul(x, Clip(Add(x, 3))), 0.16666667)",
        ),
        _clip_attributes,
    ),
    Idiom(
        "hardsigmoid",
        ("Div(Clip(Add(x, 3)), 6)", "Mul(Clip(Add(x, 3)), 0.16666667)"),
        _clip_attributes,
    ),
    Idiom("softmax", (f"Div({_EXPONENTIAL}, ReduceSum({_EXPONENTIAL}))",), _softmax_attributes),
    Idiom("relu6", ("Min(Relu(x), 6)",)),
    Idiom(
        "gelu",
        tuple(
            pattern
            for erf in _ERF
            for pattern in (
                f"Mul(Mul(x, Add({erf}, 1)), 0.5)",
                f"Mul(Mul(x, 0.5), Add({erf}, 1))",
                f"Mul(x, Mul(Add({erf}, 1), 0.5))",
            )
        ),
    ),
    Idiom(
        "gelu",
        tuple(
            pattern
            for tanh in _TANH
            for pattern in (
                f"Mul(Mul(x, Add({tanh}, 1)), 0.5)",
                f"Mul(Mul(x, 0.5), Add({tanh}, 1))",
                f"Mul(x, Mul(Add({tanh}, 1), 0.5))",
            )
        ),
        lambda graph, match: {"approximate": "tanh"},
    ),
    Idiom(
        "layernorm",
        tuple(
            pattern
            for variance in _VARIANCES
            for pattern in (
                f"Div({_DEVIATION}, Sqrt(Add({variance}, c_eps)))",
                f"Mul({_DEVIATION}, Reciprocal(Sqrt(Add({variance}, c_eps))))",
                f"Mul({_DEVIATION}, Div(1, Sqrt(Add({variance}, c_eps))))",
            )
        ),
        _mean_attributes,
    ),
    Idiom(
        "rmsnorm",
        tuple(
            pattern
            for square in _SQUARES
            for pattern in (
                f"Div(x, Sqrt(Add({square}, c_eps)))",
                f"Mul(x, Reciprocal(Sqrt(Add({square}, c_eps))))",
                f"Mul(x, Div(1, Sqrt(Add({square}, c_eps))))",
            )
        ),
        _mean_attributes,
    ),
)

"""Reverse-mode differentiation: one traversal of the graph that emits the gradients as IR."""

from __future__ import annotations

from collections.abc import Iterable

from netdsl.errors import fail
from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.types import Node, find_reachable


def grad(
    b: Builder, loss: Node, wrt: Iterable[Node], cotangent: Node | None = None
) -> dict[str, Node]:
    """Emits, through `b`, the gradient of the scalar `loss` with respect to each node of `wrt`.

    With a `cotangent` u of the same shape as `loss`, `loss` may be any tensor; the gradients are
    then those of <u, loss>.

    A node that the loss does not depend on gets zeros. Every emitted node is named `d.NAME` after
    the node whose gradient it helps to compute, and inherits its span. Raises NetError if a path
    runs through an operand that has no gradient.
    """
    targets = list(wrt)
    forward = list(b.nodes.values())
    dependents = find_reachable(b.dag, [n.name for n in targets])
    cotangents = {loss.name: cotangent or b.const(1.0, loss.type.dtype)}
    for node in reversed(forward):
        g = cotangents.get(node.name)
        if g is None or node.name not in dependents:
            continue
        with b.at(node.span, f"d.{node.name}"):
            _propagate_cotangent(b, node, g, dependents, cotangents)
    return {n.name: _find_gradient(b, n, cotangents) for n in targets}


def _propagate_cotangent(
    b: Builder, node: Node, g: Node, dependents: set[str], cotangents: dict[str, Node]
) -> None:
    args = [b.nodes[a] for a in node.args]
    for i, arg in enumerate(args):
        if arg.name not in dependents:
            continue
        rule = OPS[node.op].vjp_of(i)
        if rule is None:
            operand = OPS[node.op].operands[i]
            reason = OPS[node.op].nondiff[operand]
            raise fail(f"`{node.op}` has no gradient for its {operand}: {reason}", node.span)
        contribution = b.sum_to(rule(b, g, node, *args), arg.type.shape)
        accumulated = cotangents.get(arg.name)
        cotangents[arg.name] = (
            contribution if accumulated is None else b.add(accumulated, contribution)
        )


def _find_gradient(b: Builder, node: Node, cotangents: dict[str, Node]) -> Node:
    found = cotangents.get(node.name)
    if found is not None:
        return found
    with b.at(node.span, f"d.{node.name}"):
        return b.broadcast(b.const(0.0, node.type.dtype), shape=node.type.shape)

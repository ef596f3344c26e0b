"""Rewriting by rules: every node is emitted anew, or what a rule emits in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netdsl.errors import internal_error
from netdsl.ir.builder import Builder
from netdsl.ir.restrict import restricted
from netdsl.ir.views import row
from netdsl.types import Graph, Node

Rule = Callable[..., Node | None]
"""`rule(b, *operands, **attributes)` gives the node that stands for this one, or None to keep it.
What it emits through `b` meets the rules in its turn."""
Rules = Mapping[str, Sequence[Rule]]


class Rewriter(Builder):
    """A Builder that asks the rules of an operator before it emits one."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def emit(self, op: str, *args: Node, name: str | None = None, **attrs: Any) -> Node:
        rules = self._rules.get(op)
        if rules:
            attrs = dict(self._attributes(op, attrs))
            for rule in rules:
                found = rule(self, *args, **attrs)
                if found is not None:
                    return found
        return super().emit(op, *args, name=name, **attrs)


def rewrite(graph: Graph, rules: Rules) -> Graph:
    """The graph with its rules applied, equal nodes made one, and what nobody needs left out.

    Every node keeps its name, span and region as far as it stays; states keep their names always.
    """
    b = Rewriter(rules)
    new: dict[str, Node] = {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            args = (new[a] for a in node.args)
            new[node.name] = b.emit(node.op, *args, name=node.name, **node.attrs)
        if node.op in ("input", "state") and new[node.name].name != node.name:
            raise internal_error(f"{node.name} lost its name")
    return rebuilt(b, graph, new)


def rebuilt(b: Builder, graph: Graph, new: Mapping[str, Node], prune: bool = True) -> Graph:
    """What `b` holds, with the outputs and updates that `graph` had; pruned, of what they need."""
    return b.graph(
        {label: new[name] for label, name in graph.outputs.items()},
        {state: new[name] for state, name in graph.updates.items()},
        graph.name,
        prune,
    )


def reads(graph: Graph) -> Counter[str]:
    """How often each value is read or given out."""
    return Counter(a for n in graph.nodes.values() for a in n.args) + Counter(graph.roots)


def standard(b: Builder, m: Node, eps: float) -> tuple[Node, Node]:
    """What normalising by moments takes away from each channel, and what it multiplies it by."""
    mean, variance = row(b, m, 0), row(b, m, 1)
    one, least = (b.const(value, m.type.dtype) for value in (1.0, eps))
    return mean, b.div(one, b.sqrt(b.add(variance, least)))


def dead(graph: Graph) -> Graph:
    """The graph without the nodes that neither an output nor an update needs."""
    return restricted(graph, graph.live_names, graph.outputs, graph.updates)


def common(graph: Graph) -> Graph:
    """Common subexpressions: equal nodes of one region become one node, the first of them."""
    return rewrite(graph, {})

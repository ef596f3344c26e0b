"""Rule-based rewriting: re-emits every node, or what a rule emits in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netdsl.errors import internal_error
from netdsl.ir.builder import Builder
from netdsl.ir.subgraph import extract_subgraph
from netdsl.ir.views import extract_row
from netdsl.types import Graph, Node

Rule = Callable[..., Node | None]
"""`rule(b, *operands, **attributes)` returns the node that replaces this one, or None to keep it.
What it emits through `b` is rewritten by the rules in turn."""
Rules = Mapping[str, Sequence[Rule]]


class Rewriter(Builder):
    """A Builder that applies an operator's rules before it emits it."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def emit(self, op: str, *args: Node, name: str | None = None, **attrs: Any) -> Node:
        rules = self._rules.get(op)
        if rules:
            attrs = dict(self._complete_attributes(op, attrs))
            for rule in rules:
                found = rule(self, *args, **attrs)
                if found is not None:
                    return found
        return super().emit(op, *args, name=name, **attrs)


def rewrite_graph(graph: Graph, rules: Rules) -> Graph:
    """Returns the graph with its rules applied, equal nodes merged, and dead nodes removed.

    Every node that remains keeps its name, span and region; states always keep their names.
    """
    b = Rewriter(rules)
    new_nodes: dict[str, Node] = {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            args = (new_nodes[a] for a in node.args)
            new_nodes[node.name] = b.emit(node.op, *args, name=node.name, **node.attrs)
        if node.op in ("input", "state") and new_nodes[node.name].name != node.name:
            raise internal_error(f"{node.name} lost its name")
    return rebuild_graph(b, graph, new_nodes)


def rebuild_graph(
    b: Builder, graph: Graph, new_nodes: Mapping[str, Node], prune: bool = True
) -> Graph:
    """Builds the graph of `b` with the outputs and updates of `graph`; pruned, it keeps only what
    they need."""
    return b.build(
        {label: new_nodes[name] for label, name in graph.outputs.items()},
        {state: new_nodes[name] for state, name in graph.updates.items()},
        graph.name,
        prune,
    )


def count_uses(graph: Graph) -> Counter[str]:
    """Counts how often each value is read or is a root."""
    return Counter(a for n in graph.nodes.values() for a in n.args) + Counter(graph.roots)


def emit_mean_and_inverse_std(b: Builder, m: Node, eps: float) -> tuple[Node, Node]:
    """Emits what normalization by moments subtracts from each channel, and what it multiplies it
    by."""
    mean, variance = extract_row(b, m, 0), extract_row(b, m, 1)
    one, epsilon = (b.const(value, m.type.dtype) for value in (1.0, eps))
    return mean, b.div(one, b.sqrt(b.add(variance, epsilon)))


def eliminate_dead_nodes(graph: Graph) -> Graph:
    """Removes the nodes that neither an output nor an update needs."""
    return extract_subgraph(graph, graph.live_names, graph.outputs, graph.updates)


def eliminate_common_subexpressions(graph: Graph) -> Graph:
    """Merges equal nodes of one region into the first of them."""
    return rewrite_graph(graph, {})

"""Names for labels, blocks and nets: from the graph's own where they say something."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from netdsl.interchange.layer_graph import INPUT, LayerGraph
from netdsl.interchange.structure_tree import LabelItem, Sequence, StatementItem, walk_items
from netdsl.language.evaluate import CONSTANTS
from netdsl.language.functions import FUNCTIONS
from netdsl.layers import LAYERS

_KEYWORDS = frozenset(
    "use block net test let shared output in if else for as expect or and not data train main "  # noqa: SIM905
    "input labels weights lr step update seed ema_rate identity same".split()
)
RESERVED = frozenset((*_KEYWORDS, *LAYERS, *CONSTANTS, *FUNCTIONS))
"""Names that no label, block or parameter gets."""


def identifier(text: str) -> str:
    """A text as a name: letters, digits and `_`, beginning with a letter; may be empty."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return re.sub(r"^\d+_*", "", name)[:40]


def net_name(text: str) -> str:
    name = identifier(text) or "net1"
    return f"{name}_" if name in _KEYWORDS else name


def unique_name(name: str, taken: Collection[str]) -> str:
    """A name that is not taken, with a number if needed."""
    if name.rstrip("0123456789") in RESERVED:
        name += "_"  # `conv1` is the name of an unnamed layer
    found, n = name, 1
    while found in taken:
        n += 1
        found = f"{name}_{n}" if name[-1].isdigit() else f"{name}{n}"
    return found


def label_statements(
    graph: LayerGraph, statements: tuple[StatementItem, ...], taken: set[str]
) -> tuple[tuple[StatementItem, ...], dict[str, str], dict[str, str]]:
    """The statements with labels, the labels by node, and the names of outputs."""
    used = set(taken)
    outputs = {"main": "main"}
    for name in graph.outputs:
        if name != "main":
            outputs[name] = unique_name(identifier(name) or "side", used)
            used.add(outputs[name])
    needed = _needed_labels(statements)
    inputs = [n.name for n in graph.nodes.values() if n.layer == INPUT]
    labels: dict[str, str] = {}
    found = []
    for st in statements:
        label = None
        is_read = st.node in needed or (len(inputs) > 1 and st.node in inputs)
        if is_read and st.output is None and st.node not in labels:
            label = unique_name(identifier(st.node.rpartition(".")[2]) or "x", used)
            used.add(label)
            labels[st.node] = label
        output = outputs[st.output] if st.output else None
        found.append(replace(st, label=label, output=output))
    return tuple(found), labels, outputs


def _needed_labels(statements: tuple[StatementItem, ...]) -> set[str]:
    """Nodes whose values something reads that does not follow directly."""
    needed, current = set(), None
    for st in statements:
        needed |= {i.node for i in walk_items(st.items) if isinstance(i, LabelItem)}
        if st.source is not None and st.source != current:
            needed.add(st.source)
        if st.output is None:
            current = st.node
    return needed


def sequence_nodes(items: Sequence) -> tuple[str, ...]:
    return tuple(n for item in items for n in item.nodes)

"""Decompiles a graph of layer calls to the text of a net as an engineer would have written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from netdsl.errors import NetError, fail
from netdsl.interchange.layer_graph import INPUT, LayerGraph, layer_graph
from netdsl.interchange.structure.flow import flat_statements, statements
from netdsl.interchange.structure.fold import Draft
from netdsl.interchange.structure.graph import (
    difference,
    graph_arguments,
    without_identities,
)
from netdsl.interchange.structure.lines import cut_by_modules, cut_by_size
from netdsl.interchange.structure.names import (
    HEAD,
    STEM,
    TOP,
    graph_naming,
    label_statements,
    name_blocks,
    net_name,
)
from netdsl.interchange.structure.sharing import merge_chains, name_chains, share_layers
from netdsl.interchange.structure.tables import fold_tables
from netdsl.interchange.structure.text import NetText
from netdsl.interchange.structure.tree import (
    BlockItem,
    Sequence,
    StatementItem,
    item_nodes,
)
from netdsl.language import syntax as s
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_text
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program, reject_read


@dataclass(frozen=True)
class StructuredNet:
    """A graph as a text: one net, with the blocks that it uses.

    `order` holds the names of the graph's nodes in the order of `layer_graph(elaborate(text))`,
    both without calls of `identity`: how often that is written has no meaning.
    `outputs` maps the graph's outputs to those of the net."""

    name: str
    text: str
    order: tuple[str, ...]
    outputs: Mapping[str, str]

    @cached_property
    def file(self) -> s.File:
        """The syntax tree."""
        return parse(self.text, f"{self.name}.net")

    @cached_property
    def network(self) -> Network:
        """The elaborated net."""
        return elaborate(build_program(self.file, reject_read), self.name)


def structure(graph: LayerGraph) -> StructuredNet:
    """Writes a graph as a net. The text was elaborated and gives the graph again: if the readable
    one does not, a flat one is written, with a line for each call.

    Raises NetError if a call does not fit its layer, or if the net exceeds a limit of the language.
    """
    graph = without_identities(graph)
    try:
        return write_net(graph, _fold(graph))
    except NetError:
        return write_net(graph, _lay_flat(graph))


@dataclass(frozen=True)
class _Layout:
    """What a text consists of before its labels: the order of its calls is that of `flat`."""

    flat: tuple[StatementItem, ...]
    statements: tuple[StatementItem, ...]
    shared: Mapping[str, Sequence]
    blocks: Mapping[str, BlockItem]


def fold_graph(graph: LayerGraph) -> StructuredNet:
    """The readable text alone. Raises NetError if it does not give the graph again."""
    graph = without_identities(graph)
    return write_net(graph, _fold(graph))


def _fold(graph: LayerGraph) -> _Layout:
    arguments = graph_arguments(graph)
    shared, chains = share_layers(graph, arguments)
    naming = graph_naming(graph)
    whole, chains = merge_chains(statements(graph, arguments, shared), chains, graph)
    whole, chains = name_chains(whole, chains, naming, ())
    flat, is_cut = cut_by_modules(whole, naming, graph)
    draft = Draft([*(st.items for st in flat), *chains.values()], {*chains})
    draft.fold()
    taken = {*chains, STEM, TOP, HEAD, *(st.label for st in flat if st.label)}
    folded, blocks = name_blocks(draft.chains, draft.blocks, naming, taken)
    found = tuple(replace(st, items=c) for st, c in zip(flat, folded, strict=False))
    if not is_cut:
        found = cut_by_size(found, graph)
    chains = dict(zip(chains, folded[len(flat) :], strict=True))
    return _Layout(flat, fold_tables(found, blocks, {*chains}), chains, blocks)


def _lay_flat(graph: LayerGraph) -> _Layout:
    arguments = graph_arguments(graph)
    shared, chains = share_layers(graph, arguments)
    flat = flat_statements(graph, arguments, shared)
    return _Layout(flat, flat, chains, {})


def write_net(graph: LayerGraph, layout: _Layout) -> StructuredNet:
    """The text of a layout. Raises NetError if it does not give the graph again."""
    taken = {*layout.shared, *layout.blocks}
    lines, labels, outputs = label_statements(graph, layout.statements, taken)
    net = NetText(net_name(graph.name), tuple(layout.blocks.values()), layout.shared, lines, labels)
    order = _call_order(graph, layout.flat)
    found = StructuredNet(net.name, format_text("\n".join(net.lines())), order, outputs)
    written = without_identities(layer_graph(found.network))
    problem = difference(graph, written, order, outputs)
    if problem is not None:
        raise fail(f"the text of `{net.name}` is not its graph: {problem}")
    return found


def _call_order(graph: LayerGraph, found: tuple[StatementItem, ...]) -> tuple[str, ...]:
    """Inputs, then calls, in the order of a text's statements."""
    nodes = [n for st in found for n in item_nodes(st.items)]
    return tuple(sorted(nodes, key=lambda n: graph.nodes[n].layer != INPUT))


def state_keys(network: Network, structured: StructuredNet, graph: LayerGraph) -> Mapping[str, str]:
    """The key in the graph of every state of the elaborated net, by the state's name."""
    written = without_identities(layer_graph(network)).nodes.values()
    return {
        name: graph.nodes[origin].states[state]
        for node, origin in zip(written, structured.order, strict=True)
        for state, name in node.states.items()
    }


def name_states(
    network: Network, structured: StructuredNet, graph: LayerGraph
) -> Mapping[str, str]:
    """The name in the elaborated net of every state of the graph, by its key.

    States that the text cannot share have several names there, of which this is the first: see
    `state_keys`."""
    names: dict[str, str] = {}
    for name, key in state_keys(network, structured, graph).items():
        names.setdefault(key, name)
    return names

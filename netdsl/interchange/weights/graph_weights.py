"""The states of a net from those of another one, matched by structure and shape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.interchange.imported_net import ImportedNet
from netdsl.interchange.layer_graph import LayerGraph, LayerNode, Shape, layer_graph
from netdsl.interchange.weights.drawn_layers import layer_path
from netdsl.interchange.weights.expressions import ExpressionTable
from netdsl.interchange.weights.graph_differences import compare_layers
from netdsl.interchange.weights.graph_matching import UnitMatch, find_extra_units, match_units
from netdsl.interchange.weights.graph_units import PRODUCTS, Unit, UnitGraph, unit_graph
from netdsl.interchange.weights.match_errors import NO_SIDE_OUTPUTS, is_side_only
from netdsl.interchange.weights.tensor_matching import MatchedModule, WeightsMatch
from netdsl.language.network import Network
from netdsl.text_escaping import escape_line
from netdsl.types import Array, dims

_MAX_LISTED = 8


def match_graph(
    network: Network, given: ImportedNet, origin: str, drawn: Collection[str] = ()
) -> WeightsMatch:
    """Finds every state of a net in another net. A batch normalisation that is folded into the
    product before it has the identity's values, but for its offset. Raises NetError if the nets
    differ in more than what lies between layers with weights, or if two matches would compute
    different outputs. The layers `drawn` take nothing."""
    graph = layer_graph(network)
    here, there = _unit_graphs(graph, given, drawn, has_sizes=True)
    match = match_units(here, there)
    if isinstance(match, int):  # the weights of convolutions fit images of other sizes too
        here, there = _unit_graphs(graph, given, drawn, has_sizes=False)
        match = match_units(here, there)
    if isinstance(match, int):
        raise _difference_error(network, here, there, match, origin)
    _check_choices(network, here, there, match, origin)
    epsilons = {x.path: float(x.arguments["eps"]) for x in network.layers if "eps" in x.arguments}
    states: dict[str, Array] = {}
    modules, folded = [], 0
    for unit, other in zip(here.units, (there.units[i] for i in match.pairs), strict=True):
        transfer = _Transfer(unit, other, graph.state_shapes, given.states, origin)
        states |= dict(transfer.states(epsilons))
        folded += unit.norm is not None and other.norm is None
        modules += list(_describe(unit, other, given))
    used = {key for unit in there.units for key in _state_keys(unit)}
    unused = {k: tuple(v.shape) for k, v in given.states.items() if k not in used}
    notes = list(compare_layers(graph, given.graph, here, there, match.pairs))
    if folded:
        what = "batch norms are folded in the file: here they only add their offset"
        notes.append(f"{folded:,} {what}")
    return WeightsMatch(states, tuple(modules), unused, tuple(notes))


def _unit_graphs(
    graph: LayerGraph, given: ImportedNet, drawn: Collection[str], has_sizes: bool
) -> tuple[UnitGraph, UnitGraph]:
    """The units of both nets, without layers that take nothing, and those there like none here."""
    there = unit_graph(given.graph, has_sizes)
    if not drawn:
        return unit_graph(graph, has_sizes), there
    left_out = [n.name for n in graph.nodes.values() if _paths(n) and _paths(n) <= set(drawn)]
    here = unit_graph(graph, has_sizes, left_out)
    extra = [there.units[i].node.name for i in find_extra_units(here, there)]
    return here, unit_graph(given.graph, has_sizes, extra)


def _paths(node: LayerNode) -> set[str]:
    return {layer_path(key) for key in node.states.values()}


def _state_keys(unit: Unit) -> Iterator[str]:
    yield from unit.node.states.values()
    if unit.norm is not None:
        yield from unit.norm.states.values()


def _describe(unit: Unit, other: Unit, given: ImportedNet) -> Iterator[MatchedModule]:
    for node, source in ((unit.node, other.node), (unit.norm, other.norm or other.node)):
        if node is not None:
            shapes = tuple(tuple(given.states[k].shape) for k in source.states.values())
            yield MatchedModule(node.name, source.name, shapes)


@dataclass(frozen=True)
class _Transfer:
    """The states of a unit from those of its counterpart."""

    unit: Unit
    other: Unit
    shapes: Mapping[str, Shape]
    given: Mapping[str, Array]
    origin: str

    def states(self, epsilons: Mapping[str, float]) -> Iterator[tuple[str, Array]]:
        node, norm, folded = self.unit.node, self.unit.norm, self.other.norm
        is_alike = node.states.keys() == self.other.node.states.keys()
        if node.layer not in PRODUCTS or (is_alike and (norm is None) == (folded is None)):
            yield from self._copy(node, self.other.node)
            if norm is not None and folded is not None:
                yield from self._copy(norm, folded)
            return
        weight, bias = self._product()
        if norm is None and folded is not None:
            raise self._error("has a batch normalisation there but not here")
        yield self._state(node, "weight", weight)
        if norm is None or "bias" in node.states:
            yield from self._bias(node, bias)
            bias = np.zeros_like(bias)
        if norm is not None and folded is not None:
            copied = dict(self._copy(norm, folded))
            copied[norm.states["running_mean"]] = copied[norm.states["running_mean"]] - bias
            yield from copied.items()
        elif norm is not None:
            yield from self._identity_norm(norm, bias, epsilons[norm.name])

    def _product(self) -> tuple[Array, Array]:
        """Weight and bias there."""
        node = self.other.node
        if not {"weight"} <= node.states.keys() or "weight" not in self.unit.node.states:
            raise self._error("has weight norm (length and direction) on one side only")
        weight = self.given[node.states["weight"]]
        key = node.states.get("bias")
        bias = np.zeros(weight.shape[0], np.float32) if key is None else self.given[key]
        return weight, bias.reshape(-1)

    def _bias(self, node: LayerNode, bias: Array) -> Iterator[tuple[str, Array]]:
        if "bias" in node.states:
            yield self._state(node, "bias", bias)
        elif bias.any():
            raise self._error("has a bias there but not here")

    def _identity_norm(
        self, norm: LayerNode, bias: Array, eps: float
    ) -> Iterator[tuple[str, Array]]:
        """The values with which a batch normalisation adds `bias` and does nothing else."""
        ones, zeros = np.ones_like(bias), np.zeros_like(bias)
        is_affine = "beta" in norm.states
        values = {
            "running_mean": zeros if is_affine else -bias,
            "running_var": np.float32(1 - eps) * ones,
            "gamma": ones,
            "beta": bias,
        }
        yield from ((key, values[name]) for name, key in norm.states.items())

    def _copy(self, node: LayerNode, other: LayerNode) -> Iterator[tuple[str, Array]]:
        if node.states.keys() != other.states.keys():
            raise self._error(f"has other states there: {', '.join(sorted(other.states))}")
        for name in node.states:
            yield self._state(node, name, self.given[other.states[name]])

    def _state(self, node: LayerNode, name: str, value: Array) -> tuple[str, Array]:
        key = node.states[name]
        return key, value.reshape(self.shapes[key])

    def _error(self, reason: str) -> NetError:
        name = escape_line(self.other.node.name)
        return fail(f"`{self.unit.node.name}`, which is `{name}` in {self.origin}, {reason}")


def _check_choices(
    network: Network, here: UnitGraph, there: UnitGraph, match: UnitMatch, origin: str
) -> None:
    """Raises NetError if another match that structure and shape allow computes other outputs."""
    table = ExpressionTable()
    chosen = table.outputs(network, _sources(here, there, match.pairs))
    for pairs in match.others:
        if table.outputs(network, _sources(here, there, pairs)) != chosen:
            raise _choice_error(network.name, here, there, (match.pairs, pairs), origin)


def _sources(here: UnitGraph, there: UnitGraph, pairs: tuple[int, ...]) -> dict[str, str]:
    found = {}
    for unit, other in zip(here.units, (there.units[i] for i in pairs), strict=True):
        for key in unit.node.states.values():
            found[layer_path(key)] = other.node.name
    return found


def _choice_error(
    net: str,
    here: UnitGraph,
    there: UnitGraph,
    ways: tuple[tuple[int, ...], tuple[int, ...]],
    origin: str,
) -> NetError:
    notes = [
        f"`{u.node.name}` could be `{escape_line(there.units[a].node.name)}` or "
        f"`{escape_line(there.units[b].node.name)}`"
        for u, a, b in zip(here.units, *ways, strict=True)
        if a != b
    ]
    return fail(
        f"neither the structure nor the shapes determine which weights of {origin} belong to "
        f"{len(notes):,} "
        f"layers of `{net}`",
        notes=notes[:_MAX_LISTED],
        help="`netdsl import MODEL.onnx -o x.net --weights x.safetensors` keeps the net as it is",
    )


def _difference_error(
    network: Network, here: UnitGraph, there: UnitGraph, index: int, origin: str
) -> NetError:
    help = (
        "`netdsl import MODEL.onnx -o x.net --weights x.safetensors` writes the net of the file, "
        "and `netdsl diff` compares it with this one"
    )
    if index == len(here.units):
        message = f"{origin} has more layers with weights than `{network.name}`, or other outputs"
        counts = f"{len(there.units):,} there, {len(here.units):,} here"
        return fail(message, notes=[counts], help=help)
    node = here.units[index].node
    if is_side_only(network, node.states.values()):
        help = NO_SIDE_OUTPUTS
    return fail(
        f"{origin} has no layer like `{node.name}` of `{network.name}`: {node.layer} with "
        f"a result of {dims(node.shape)}, and what it reads",
        notes=[f"{index:,} of {len(here.units):,} layers before it have a counterpart"],
        help=help,
    )

"""The result of elaboration: the graph of a net, with its layers and their costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from netdsl.errors import Span, fail, suggest_name
from netdsl.limits import MAX_NAME_CHARACTERS
from netdsl.ops import OPS
from netdsl.ops.op import Cost
from netdsl.types import Graph, Node, TensorType, dims
from netdsl.values import Argument, Value

_MAX_SHOWN = 6


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer at its path: the call, its result, and the nodes it emitted. `input_types` are the
    types of its inputs, `input_paths` the layers and inputs that give them; `arguments` holds all
    arguments as bound, `written` those in the text. Uses of a shared chain have one
    `weight_path`."""

    path: str
    call: str
    layer_type: str
    result: str
    nodes: tuple[str, ...]
    output_type: TensorType
    span: Span
    input_types: tuple[TensorType, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    written: tuple[Argument, ...] = ()
    input_paths: tuple[str, ...] = ()
    weight_path: str = ""

    @property
    def positional_values(self) -> tuple[Value, ...]:
        """The values of the arguments that were written without a name."""
        return tuple(a.value for a in takewhile(lambda a: a.name is None, self.written))


@dataclass(frozen=True)
class Network:
    """An elaborated net.

    `nodes_by_path` maps every path (label, block, layer) to its output node; `loss_weights` holds
    each output's weight in the loss, `output_paths` the layer or input that gives it; outputs other
    than `main` are side outputs."""

    name: str
    graph: Graph
    layers: tuple[LayerInfo, ...]
    nodes_by_path: Mapping[str, str]
    loss_weights: Mapping[str, float]
    training: bool
    output_paths: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1
    """The number of ranks that train it together, each on `batch` images."""

    def find_node(self, path: str, span: Span | None = None) -> Node:
        """Returns the output node of a path. Raises NetError if there is no such path."""
        if path not in self.nodes_by_path:
            help = self._similar_paths_help(path) or suggest_name(
                path, self.nodes_by_path, "its places are"
            )
            raise fail(f"`{self.name}` has no place `{path}`", span, help=help)
        return self.graph[self.nodes_by_path[path]]

    def _similar_paths_help(self, path: str) -> str | None:
        """A help line if the path exists with numbers, or at a deeper level."""
        if len(path) > MAX_NAME_CHARACTERS:
            return None
        numbered = re.compile(r"\d*\.".join(map(re.escape, path.split("."))) + r"\d*")
        found = [p for p in self.nodes_by_path if numbered.fullmatch(p)]
        if found:
            reason = "repeats and siblings with the same name are numbered"
        else:
            reason = "a path includes the labels and blocks along the way"
            found = [p for p in self.nodes_by_path if p.endswith(f".{path}")]
        more = ", ..." if len(found) > _MAX_SHOWN else ""
        return f"{reason}: {', '.join(found[:_MAX_SHOWN])}{more}" if found else None

    @cached_property
    def described_inputs(self) -> tuple[str, ...]:
        """The inputs, without labels, as names and shapes of one sample."""
        return tuple(f"`{n.name}` ({dims(n.type.shape[1:])})" for n in self.sample_inputs)

    @cached_property
    def image_input(self) -> str:
        """The name of the single image input. Raises NetError if there is not exactly one."""
        images = self.sample_inputs
        if len(images) != 1:
            names = ", ".join(self.described_inputs)
            raise fail(
                f"`{self.name}` has the inputs {names}; training and prediction take nets of one "
                "image",
                help="`netdsl run` computes such a net, with `--input NAME=FILE` for each input, "
                "and `netdsl export --raw` writes its weights as an ONNX model",
            )
        return images[0].name

    @property
    def sample_inputs(self) -> tuple[Node, ...]:
        """The inputs that hold one value for each image of a batch."""
        return tuple(n for n in self.graph.inputs if n.type.rank > 1)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one input image: H x W x C."""
        return self.graph[self.image_input].type.shape[1:]

    @cached_property
    def parameters(self) -> tuple[Node, ...]:
        """The trainable states."""
        return tuple(n for n in self.graph.states if n.attrs["trainable"])

    @cached_property
    def params(self) -> int:
        """The number of trainable values, without running statistics."""
        return sum(n.type.size for n in self.parameters)

    def cost(self, layer: LayerInfo) -> Cost:
        """The cost of one layer for the whole batch, in the mode of elaboration (evaluation or
        training)."""
        costs = [node_cost(self.graph, self.graph[n]) for n in layer.nodes]
        return Cost(
            sum(c.macs for c in costs), sum(c.flops for c in costs), sum(c.bytes for c in costs)
        )

    def layer_params(self, layer: LayerInfo) -> int:
        """Trainable values that a layer adds; a shared weight counts at its first use."""
        nodes = (self.graph[n] for n in layer.nodes)
        return sum(n.type.size for n in nodes if n.op == "state" and n.attrs["trainable"])

    @property
    def main_output(self) -> Node:
        return self.graph[self.graph.outputs["main"]]

    @property
    def dtype(self) -> str:
        """The element type of the main output."""
        return self.main_output.type.dtype

    @cached_property
    def batch(self) -> int:
        return self.main_output.type.shape[0]

    @cached_property
    def _main_nodes(self) -> frozenset[str]:
        """The nodes that the main output is computed from."""
        return frozenset(self.graph.backward_slice(self.graph.outputs["main"]))

    @cached_property
    def _side_nodes(self) -> frozenset[str]:
        """The nodes that only side outputs need, which only training uses."""
        return frozenset(self.graph.backward_slice(*self.graph.outputs.values())) - self._main_nodes

    def _macs(self, nodes: Iterable[Node]) -> int:
        return sum(node_cost(self.graph, n).macs for n in nodes) // self.batch

    @property
    def _counted_nodes(self) -> Iterator[Node]:
        return (n for name, n in self.graph.nodes.items() if name not in self._side_nodes)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and fully connected layers for one image: of all
        layers that `params` counts, except those of side outputs (see `side_macs`)."""
        return self._macs(self._counted_nodes)

    @cached_property
    def side_macs(self) -> int:
        """Multiply-accumulates that only side outputs need, for one image."""
        return self._macs(self.graph[n] for n in self._side_nodes)

    @property
    def side_params(self) -> int:
        """The part of `params` that only side outputs need."""
        return sum(n.type.size for n in self.parameters if n.name in self._side_nodes)

    @property
    def unread_layers(self) -> tuple[LayerInfo, ...]:
        """Layers that no output depends on. They are counted like all others."""
        needed_nodes = self._main_nodes | self._side_nodes
        return tuple(x for x in self.layers if x.result not in needed_nodes)

    @cached_property
    def activations(self) -> int:
        """Output values of the layers that `macs` counts, for one image."""
        anchors = (n for n in self._counted_nodes if OPS[n.op].kind == "anchor")
        return sum(n.type.size for n in anchors) // self.batch


def node_cost(graph: Graph, node: Node) -> Cost:
    types = (graph[a].type for a in node.args)
    return OPS[node.op].cost(node.type, *types, **node.attrs)

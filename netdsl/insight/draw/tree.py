"""The content of a drawing: the layers of a net as boxes, in nested groups by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from typing import Literal

from netdsl.language.frame import format_call
from netdsl.language.network import LayerInfo, Network
from netdsl.layers import LAYER_FAMILIES, LAYERS
from netdsl.signature import BoundCall
from netdsl.types import dims
from netdsl.values import Argument

MAIN_OUTPUT = "main"


@dataclass(frozen=True)
class LayerBox:
    """A layer, an input or an output. `label` is its name if the text gives one, `family` the
    family of its layer, `parameters` its arguments as written. An elementwise box keeps the shape
    of its only input and reads no neighbours: it is drawn right below the box that it reads."""

    key: str
    path: str
    word: str
    label: str
    parameters: str
    shape: str
    family: str
    is_elementwise: bool = False

    @property
    def boxes(self) -> Iterator[LayerBox]:
        yield self


@dataclass(frozen=True)
class Group:
    """Boxes and groups that are drawn in one frame: a block or label of the text, a kernel, or
    siblings that repeat each other."""

    key: str
    path: str
    title: str
    kind: Literal["block", "kernel", "repeat"]
    children: tuple[Item, ...]

    @property
    def boxes(self) -> Iterator[LayerBox]:
        for child in self.children:
            yield from child.boxes

    @property
    def groups(self) -> Iterator[Group]:
        """This group and all groups in it."""
        yield self
        for child in self.children:
            if isinstance(child, Group):
                yield from child.groups


Item = LayerBox | Group
Edge = tuple[str, str]
"""The keys of two boxes: the second one reads the result of the first one."""


@dataclass(frozen=True)
class NetTree:
    """A net as a tree of groups, with the edges between its boxes. The boxes of every group follow
    each other in an executable order, so that no two siblings depend on each other."""

    name: str
    root: Group
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Entry:
    """Something drawn, with the names of the groups that it is in, outermost first."""

    groups: tuple[str, ...]
    item: Item


def make_tree(network: Network) -> NetTree:
    """The tree of a net by its labels and blocks."""
    entries = make_entries(network)
    return assemble_tree(network.name, entries, find_edges(network, entries))


def make_entries(network: Network) -> list[Entry]:
    """The boxes of a net in executable order: inputs, layers, outputs."""
    entries = []
    inputs = {n.name: dims(n.type.shape[1:]) for n in network.graph.inputs if n.type.rank > 1}
    calls = [(path, _make_input_box(path, shape)) for path, shape in inputs.items()]
    shown = [layer for layer in network.layers if not _is_plain_line(layer)]
    calls += [(layer.path, _make_layer_box(layer)) for layer in shown]
    for i, (path, box) in enumerate(calls):
        entries.append(Entry(tuple(path.split(".")[:-1]), replace(box, key=f"b{i}")))
    for i, (name, _) in enumerate(network.output_paths.items()):
        entries.append(Entry((), _make_output_box(network, name, f"o{i}")))
    return entries


def find_edges(network: Network, entries: Sequence[Entry]) -> tuple[Edge, ...]:
    """Every edge between two boxes once, in the order of the boxes that read."""
    keys = {box.path: box.key for entry in entries for box in entry.item.boxes}
    for layer in network.layers:
        if _is_plain_line(layer):
            keys[layer.path] = keys[layer.input_paths[0]]
    found: dict[Edge, None] = {}
    for layer in network.layers:
        if _is_plain_line(layer):
            continue
        found |= {(keys[path], keys[layer.path]): None for path in layer.input_paths}
    for i, path in enumerate(network.output_paths.values()):
        found[keys[path], f"o{i}"] = None
    return tuple(found)


def _is_plain_line(layer: LayerInfo) -> bool:
    """Whether a layer is an `identity` without a name, which is drawn as a line."""
    return layer.layer_type == "identity" and not _find_own_name(layer)


def assemble_tree(name: str, entries: Sequence[Entry], edges: Sequence[Edge]) -> NetTree:
    """Nests entries by the names of their groups. A group is a run of entries: names that come
    back later are a second group, so that the groups have an executable order too."""
    counter = count()
    children = _nest(entries, 0, "", counter)
    return NetTree(name, Group("root", "", name, "block", children), tuple(edges))


def _nest(
    entries: Sequence[Entry], depth: int, path: str, counter: Iterator[int]
) -> tuple[Item, ...]:
    items: list[Item] = []
    for name, run in groupby(entries, lambda e: e.groups[depth] if len(e.groups) > depth else None):
        inside = list(run)
        if name is None:
            items += [e.item for e in inside]
            continue
        inner_path = f"{path}.{name}" if path else name
        children = _nest(inside, depth + 1, inner_path, counter)
        items.append(_make_group(f"g{next(counter)}", inner_path, name, children))
    return tuple(items)


def _make_group(key: str, path: str, name: str, children: tuple[Item, ...]) -> Item:
    """A group; a single child takes the name of the group instead."""
    if len(children) > 1:
        return Group(key, path, name, "block", children)
    only = children[0]
    if isinstance(only, LayerBox):
        return replace(only, label=f"{name}.{only.label}" if only.label else name)
    joint = "." if only.kind == "block" else ", "
    return replace(only, title=f"{name}{joint}{only.title}")


def _make_input_box(path: str, shape: str) -> LayerBox:
    label = "" if path == "input" else path
    return LayerBox("", path, "input", label, "", shape, "input")


def _make_output_box(network: Network, name: str, key: str) -> LayerBox:
    label = "" if name == MAIN_OUTPUT else name
    weight = network.loss_weights[name]
    parameters = f"{weight:g} of the loss" if weight != 1 else ""
    shape = dims(network.graph[network.graph.outputs[name]].type.shape[1:])
    return LayerBox(key, f"output:{name}", "output", label, parameters, shape, "output")


_ELEMENTWISE_FAMILIES = frozenset(("activation", "normalization", "dense"))


def _make_layer_box(layer: LayerInfo) -> LayerBox:
    word, shape = layer.layer_type, layer.output_type.shape
    has_weight = "weight" in layer.arguments
    family = LAYER_FAMILIES[word]
    is_elementwise = (
        LAYERS[word].arity == "one"
        and family in _ELEMENTWISE_FAMILIES
        and not has_weight
        and shape == layer.input_types[0].shape
    )
    if family == "dense" and not has_weight:
        family = "rearrangement"  # flatten and dropout compute no product
    written = LAYERS[word].signature.drop_defaults(layer.written)
    call = format_call(word, [a for a in written if not _is_initialiser(layer, a)])
    parameters = call.removeprefix(word).removeprefix("(").removesuffix(")")
    return LayerBox(
        "",
        layer.path,
        word,
        _find_own_name(layer),
        parameters,
        dims(shape[1:]),
        family,
        is_elementwise,
    )


def _find_own_name(layer: LayerInfo) -> str:
    """The label of a layer; nothing if it is only numbered."""
    name = layer.path.rpartition(".")[2]
    return "" if re.fullmatch(re.escape(layer.layer_type) + r"\d+", name) else name


def _is_initialiser(layer: LayerInfo, argument: Argument) -> bool:
    """Whether a written argument says how weights begin, which no picture of a graph shows."""
    return argument.name is not None and isinstance(layer.arguments[argument.name], BoundCall)

"""An ONNX graph as plain data: nodes in an order in which they can run, constants as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.interchange.onnx_import.constant_folding import fold
from netdsl.interchange.onnx_import.model_file import opset, read_model
from netdsl.interchange.onnx_import.tensors import TensorReader, as_text
from netdsl.limits import MAX_AXES, MAX_FOLDED_VALUES
from netdsl.text_escaping import escape_line
from netdsl.types import Array

_STANDARD_DOMAINS = ("", "ai.onnx")
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter notes the modules that a node comes from, as a list in Python's form."""
_BYTES, FLOATS = 2, (1, 10, 11, 16)
"""Numbers of TensorProto.DataType."""
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | Array | None


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node; `operator` has its domain in front unless it is a standard one. Inputs left out are
    empty names. `place` is what it is called in messages. `scope` are the modules it comes from, as
    far as the exporter wrote them."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    scope: str = ""

    @property
    def place(self) -> str:
        return escape_line(self.name or next(filter(None, self.outputs), "?"))


@dataclass(frozen=True)
class OnnxInput:
    """An input of the net: its shape, with None for sizes that vary, and what it holds."""

    name: str
    shape: tuple[int | None, ...]
    element_type: int

    @property
    def is_bytes(self) -> bool:
        return self.element_type == _BYTES

    @property
    def is_float(self) -> bool:
        return self.element_type in FLOATS

    @property
    def is_image_of_open_size(self) -> bool:
        """Whether one or two axes of a batch of images vary."""
        return len(self.shape) == 4 and 1 <= self.shape[1:].count(None) <= 2

    @property
    def shape_text(self) -> str:
        """The shape with the batch, as in `1x3x?x?`."""
        return "x".join("?" if n is None else str(n) for n in self.shape)

    def resized(self, size: tuple[int, int]) -> OnnxInput | None:
        """Images of an open size with this height and width; None if a side is fixed to another or
        the channels are open."""
        for axes in _SIDES:
            shape = list(self.shape)
            for axis, side in zip(axes, size, strict=True):
                shape[axis] = side
            known = zip(shape, self.shape, strict=True)
            if None not in shape[1:] and all(given in (None, n) for n, given in known):
                return replace(self, shape=tuple(shape))
        return None


_SIDES = ((2, 3), (1, 2))
"""The axes of height and width, with the channels before or behind them."""


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in topological order, inputs without a value, `constants` with one, and the names of
    the outputs."""

    origin: str
    nodes: tuple[OnnxNode, ...]
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    opset: int
    metadata: Mapping[str, str]

    @cached_property
    def producers(self) -> dict[str, OnnxNode]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def use_counts(self) -> Counter[str]:
        """How many operands and outputs each value is."""
        used = [name for node in self.nodes for name in node.inputs]
        return Counter((*used, *self.outputs))


def read_graph(path: Path) -> OnnxGraph:
    """The graph of an ONNX file, with constants folded. Raises NetError for a file that is damaged,
    beyond the limits, or contradicts itself."""
    origin = str(path)
    model = read_model(path)
    reader = TensorReader(path)
    constants = {as_text(t.name): reader.read(t) for t in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise fail(f"{origin} has sparse tensors, which are not supported")
    nodes = tuple(_convert_node(n, reader) for n in model.graph.node)
    inputs = [
        _convert_input(v, origin) for v in model.graph.input if as_text(v.name) not in constants
    ]
    given = [*constants, *(v.name for v in inputs)]
    _check_names(nodes, given, origin)
    graph = OnnxGraph(
        origin,
        _sort(nodes, set(given), origin),
        tuple(inputs),
        tuple(as_text(v.name) for v in model.graph.output),
        constants,
        opset(model, origin),
        {as_text(p.key): as_text(p.value) for p in model.metadata_props},
    )
    missing = [name for name in graph.outputs if name not in graph.producers]
    if missing:
        raise fail(f"{origin}: no node computes the output `{escape_line(missing[0])}`")
    return fold_constants(graph)


def fix_size(graph: OnnxGraph, size: tuple[int, int]) -> OnnxGraph:
    """The graph for images of this height and width. Raises NetError if no input leaves one of them
    open, or if one is fixed to another size."""
    shapes = ", ".join(i.shape_text for i in graph.inputs)
    if not any(i.is_image_of_open_size for i in graph.inputs):
        message = f"{graph.origin}: the size of its images is fixed: its input is {shapes}"
        raise fail(message, help="leave out `--size`")
    inputs = [i.resized(size) if i.is_image_of_open_size else i for i in graph.inputs]
    found = tuple(i for i in inputs if i is not None)
    if len(found) < len(inputs):
        message = f"{graph.origin}: its input is {shapes}, not height {size[0]} and width {size[1]}"
        raise fail(message, help="only a height or width shown as `?` can be set")
    return replace(graph, inputs=found)


def _convert_node(node: Any, reader: TensorReader) -> OnnxNode:
    domain, operator, name = map(as_text, (node.domain, node.op_type, node.name))
    scopes = [as_text(p.value) for p in node.metadata_props if p.key == _SCOPES_KEY]
    return OnnxNode(
        operator if domain in _STANDARD_DOMAINS else f"{domain}.{operator}",
        name,
        tuple(map(as_text, node.input)),
        tuple(map(as_text, node.output)),
        {as_text(a.name): _convert_attribute(a, reader) for a in node.attribute},
        _find_scope(name, scopes),
    )


def _find_scope(name: str, scopes: Sequence[str]) -> str:
    """The innermost module that a node comes from, as a path with dots: from what the exporter
    noted, or a name such as `/layer1/layer1.0/relu/Relu`."""
    if scopes:
        entries = [s.strip(" '\"") for s in scopes[-1].strip("[]").split(",")]
        modules = [e for e in entries[:-1] if e]
        return modules[-1] if modules else ""
    if not name.startswith("/"):
        return ""
    path = ""
    for part in name.split("/")[1:-1]:
        is_path = part == path or part.startswith(f"{path}.")
        path = part if is_path or not path else f"{path}.{_own_part(part, path)}"
    return path


def _own_part(part: str, path: str) -> str:
    """What a module's name adds: in a list of modules it repeats the name of the list."""
    return part.removeprefix(path.rpartition(".")[2] + ".")


def _convert_attribute(attribute: Any, reader: TensorReader) -> Attribute:
    """The value of an attribute; None for a graph, which no operator that is supported has."""
    kind = attribute.type
    kinds = type(attribute).AttributeType
    if kind == kinds.FLOAT:
        return float(attribute.f)
    if kind == kinds.INT:
        return int(attribute.i)
    if kind == kinds.STRING:
        return as_text(attribute.s)
    if kind == kinds.TENSOR:
        return reader.read(attribute.t)
    if kind == kinds.FLOATS:
        return tuple(attribute.floats)
    if kind == kinds.INTS:
        return tuple(attribute.ints)
    if kind == kinds.STRINGS:
        return tuple(map(as_text, attribute.strings))
    return None


def _convert_input(value: Any, origin: str) -> OnnxInput:
    name = as_text(value.name)
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        message = f"the input `{escape_line(name)}` is not a tensor with a known number of axes"
        raise fail(f"{origin}: {message}")
    shape = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    if len(shape) > MAX_AXES:
        raise fail(f"{origin}: the input `{escape_line(name)}` has {len(shape)} axes")
    return OnnxInput(name, shape, tensor.elem_type)


def _check_names(nodes: Iterable[OnnxNode], given: Iterable[str], origin: str) -> None:
    counts = Counter(name for node in nodes for name in node.outputs if name)
    counts.update(given)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise fail(f"{origin}: two values are called `{escape_line(twice[0])}`")


def _sort(nodes: Sequence[OnnxNode], known: set[str], origin: str) -> tuple[OnnxNode, ...]:
    """The nodes in an order in which they can run, close to that of the file. Raises NetError for
    an input that nothing computes, and for a cycle."""
    produced = {name for node in nodes for name in node.outputs}
    for node in nodes:
        for name in filter(None, node.inputs):
            if name not in produced and name not in known:
                raise _unknown_value_error(node, name, origin)
    waiting = {i: {x for x in n.inputs if x and x not in known} for i, n in enumerate(nodes)}
    readers: dict[str, list[int]] = {}
    for i, names in waiting.items():
        for name in names:
            readers.setdefault(name, []).append(i)
    ready = [i for i, names in waiting.items() if not names][::-1]
    ordered: list[OnnxNode] = []
    while ready:
        node = nodes[ready.pop()]
        ordered.append(node)
        for name in node.outputs:
            for i in readers.get(name, ()):
                waiting[i].discard(name)
                if not waiting[i]:
                    ready.append(i)
    if len(ordered) < len(nodes):
        inside = next(n for i, n in enumerate(nodes) if waiting[i])
        raise fail(f"{origin}: the node `{inside.place}` needs its own result")
    return _keep_order(ordered, nodes)


def _keep_order(ordered: list[OnnxNode], nodes: Sequence[OnnxNode]) -> tuple[OnnxNode, ...]:
    """The nodes as they were, if that was an order in which they can run."""
    known: set[str] = set()
    produced = {name for node in nodes for name in node.outputs if name}
    for node in nodes:
        if any(name in produced and name not in known for name in node.inputs):
            return tuple(ordered)
        known.update(node.outputs)
    return tuple(nodes)


def _unknown_value_error(node: OnnxNode, name: str, origin: str) -> NetError:
    return fail(f"{origin}: nothing computes `{escape_line(name)}`, which `{node.place}` reads")


def fold_constants(graph: OnnxGraph) -> OnnxGraph:
    """The graph without the nodes whose operands are all constant."""
    constants = dict(graph.constants)
    kept = []
    budget = MAX_FOLDED_VALUES + 8 * sum(v.size for v in constants.values())
    for node in graph.nodes:
        results = None
        if all(name in constants or not name for name in node.inputs):
            results = fold(node, [constants.get(name) for name in node.inputs])
        if results is None:
            kept.append(node)
        else:
            constants |= {n: v for n, v in zip(node.outputs, results, strict=False) if n}
            budget -= sum(v.size for v in results)
            if budget < 0:
                raise fail(f"{graph.origin} computes more constants than it has weights")
    return replace(graph, nodes=tuple(kept), constants=constants)

"""A net of layers from an ONNX graph: every node by its rule, then what can be fused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import Diagnostic, NetError, fail
from netdsl.interchange.imported_net import ImportedNet, PixelNormalization
from netdsl.interchange.onnx_import.axis_views import IMAGE_ORDER, View, ViewError, atoms_of, flat
from netdsl.interchange.onnx_import.call import OnnxCall, UnsupportedError
from netdsl.interchange.onnx_import.constant_folding import FOLDABLE, fold
from netdsl.interchange.onnx_import.graph import OnnxGraph, OnnxInput, OnnxNode
from netdsl.interchange.onnx_import.idioms import replace_idioms
from netdsl.interchange.onnx_import.layer_fusion import drop_final_softmax, fuse
from netdsl.interchange.onnx_import.layer_names import LayerNamer
from netdsl.interchange.onnx_import.layer_records import LayerRecord, LayerRecords, layer_graph_of
from netdsl.interchange.onnx_import.operators import RULES
from netdsl.interchange.onnx_import.pixel_normalization import absorb_normalization
from netdsl.interchange.onnx_import.unsupported import (
    NO_LAYER,
    Problem,
    UnsupportedGraphError,
    unsupported_error,
)
from netdsl.limits import MAX_FOLDED_VALUES, MAX_WEIGHT_USES
from netdsl.text_escaping import escape_line
from netdsl.types import Array, dims

_CHANNELS_SECOND = {2: (0, 1), 3: (0, 2, 1), 4: IMAGE_ORDER, 5: (0, 2, 3, 4, 1)}
"""The axes of an input in the order of netdsl's, by their number."""
_DROPPED_NOTE = "a net ends in scores, and the loss applies the softmax"
_SIGMOID_NOTE = (
    "the sigmoid at the end is kept: it gives an independent probability for each label, which "
    "`predict` prints; to train the net, remove it from the .net and use `loss = bce`"
)
_TO_CHANNELS_FIRST = (0, 3, 1, 2)


def net_from_onnx(graph: OnnxGraph, name: str) -> ImportedNet:
    """The net of an ONNX graph. Raises NetError that lists all operators that netdsl lacks."""
    graph, pixels = absorb_normalization(graph)
    graph = replace_idioms(graph)
    try:
        found = _build(graph, name, is_channels_second=True)
    except UnsupportedGraphError as e:
        try:
            found = _build(graph, name, is_channels_second=False)
        except NetError:
            raise e from None
    return found if pixels is None else replace(found, pixels=pixels)


def _build(graph: OnnxGraph, name: str, is_channels_second: bool) -> ImportedNet:
    """The net if the channels of its inputs come second, or last."""
    inputs = [i for i in graph.inputs if graph.use_counts[i.name]]
    if not inputs:
        raise fail(f"{graph.origin} computes a constant: its outputs need no input")
    given_values = sum(v.size for v in graph.constants.values())
    limit = MAX_WEIGHT_USES * given_values + MAX_FOLDED_VALUES
    records = LayerRecords(_batch(inputs, graph.origin), limit)
    values: dict[str, Any] = dict(graph.constants)
    orders = {}
    for given in inputs:
        view = values[given.name] = _add_input(records, given, graph, is_channels_second)
        orders[view.node] = view.order() or (0,)
    _emit_nodes(graph, records, values)
    finished = _finish_outputs(graph, records, values)
    outputs = {key: node for key, (node, _) in finished.items()}
    orders |= {key: order for key, (_, order) in finished.items()}
    outputs, dropped = drop_final_softmax(records.records, outputs)
    kept, outputs = fuse(records.records, outputs)
    layers, states = layer_graph_of(name, kept, outputs)
    notes = (
        *(f"the {layer} at the end is left out: {_DROPPED_NOTE}" for layer in dropped),
        *(_SIGMOID_NOTE for name in outputs.values() if _gives_labels(kept[name])),
    )
    pixels = None if records.pixels is None else PixelNormalization(*records.pixels, is_bytes=True)
    return ImportedNet(layers, states, notes, orders, pixels=pixels)


def _gives_labels(record: LayerRecord) -> bool:
    """Whether the layer at the end gives a probability for each class by itself."""
    return record.layer == "sigmoid" and all(n == 1 for n in record.shape[:-1])


def _batch(inputs: Sequence[OnnxInput], origin: str) -> int:
    sizes = {i.shape[0] or 1 for i in inputs if len(i.shape) > 1}
    if len(sizes) > 1:
        raise fail(f"{origin}: its inputs have different batches: {sorted(sizes)}")
    return sizes.pop() if sizes else 1


def _add_input(
    records: LayerRecords, given: OnnxInput, graph: OnnxGraph, is_channels_second: bool
) -> View:
    """An input with its axes as they are here: images with the channels last."""
    name, shape = escape_line(given.name), given.shape
    if len(shape) == 1:
        shape = (1, *shape)
    unknown = [i for i, n in enumerate(shape) if n is None and i > 0]
    if unknown or not 2 <= len(shape) <= 5:
        shown = "x".join("?" if n is None else str(n) for n in shape)
        raise fail(
            f"{graph.origin}: the input `{name}` is {shown}; only the batch may vary",
            help="`--size 224x224` sets the height and width"
            if given.is_image_of_open_size
            else "export the model with a fixed height and width",
        )
    sizes = (records.batch, *(n or 1 for n in shape[1:]))
    if not (given.is_bytes or given.is_float):
        raise fail(f"{graph.origin}: the input `{name}` has neither floats nor bytes")
    is_last = not is_channels_second or _is_transposed_first(given.name, graph)
    order = tuple(range(len(shape))) if is_last else _CHANNELS_SECOND[len(shape)]
    node = records.add_input(_identifier(given.name), tuple(sizes[i] for i in order[1:]))
    base = tuple(atoms_of(sizes[i]) for i in order)
    axes = tuple(base[order.index(i)] for i in range(len(order)))
    axes = axes if len(given.shape) > 1 else axes[1:]
    channels = axes[-1] if order == tuple(range(len(order))) else base[-1]
    count = int(np.prod([a.size for a in channels], initial=1))
    pixels = ((1.0,) * count, (0.0,) * count) if given.is_bytes else None
    return View(node, base, axes, pixels, is_integer=given.is_bytes)


def _identifier(name: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    found = re.sub(r"\W+", "_", plain, flags=re.ASCII).strip("_")
    return found if found[:1].isalpha() else f"input_{found}".strip("_")


def _is_transposed_first(name: str, graph: OnnxGraph) -> bool:
    """Whether the first operator that minds the order of the axes makes the channels the second."""
    names, seen = [name], set()
    while names:
        current = names.pop()
        for node in graph.nodes:
            if current in node.inputs and node.place not in seen:
                seen.add(node.place)
                if node.operator == "Transpose":
                    return node.attributes.get("perm") == _TO_CHANNELS_FIRST
                if node.operator in _POINTWISE:
                    names += node.outputs
    return False


_POINTWISE = frozenset(("Add", "Cast", "Clip", "Div", "Identity", "Mul", "Pad", "Sub"))


def _emit_nodes(graph: OnnxGraph, records: LayerRecords, values: dict[str, Any]) -> None:
    """Emits every node. Raises NetError with all that cannot be expressed."""
    namer = LayerNamer(graph.nodes)
    problems: list[Problem] = []
    for node in graph.nodes:
        is_known = all(not name or name in values for name in node.inputs)
        if node.operator not in RULES and not _can_fold(node, values, is_known):
            problems.append(Problem(node.operator, node.place, NO_LAYER))
        elif is_known:
            operands = tuple(values[name] if name else None for name in node.inputs)
            call = OnnxCall(node, operands, records, graph.opset, namer)
            found = dict(zip(node.outputs, _emit_node(call, problems), strict=False))
            values.update(found)
            unknown = [n for n in node.outputs if n and n not in found] if found else []
            problems += [Problem(node.operator, node.place, f"its result `{n}`") for n in unknown]
    if problems:
        raise unsupported_error(graph, problems)


def _can_fold(node: OnnxNode, values: Mapping[str, Any], is_known: bool) -> bool:
    """Whether the operands are constants, or may be if those that are not known were."""
    if not is_known:
        return node.operator in FOLDABLE
    return all(not name or isinstance(values[name], np.ndarray) for name in node.inputs)


def _emit_node(call: OnnxCall, problems: list[Problem]) -> tuple[View | Array, ...]:
    """The results of a node; none if it is a problem."""
    node = call.node
    if not any(isinstance(o, View) for o in call.operands):
        folded = fold(node, [o for o in call.operands if not isinstance(o, View)])
        if folded is not None:
            return folded
    try:
        rule = RULES.get(node.operator)
        if rule is None:
            raise UnsupportedError(NO_LAYER)
        results = rule(call)
    except UnsupportedError as e:
        reason = str(e)
    except ViewError as e:
        reason = str(e) or "no layer gives this order of axes"
    except NetError as e:
        reason = e.diagnostics[0].message
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError):
        reason = "its attributes or operands do not fit"
    else:
        return results if isinstance(results, tuple) else (results,)
    problems.append(Problem(node.operator, node.place, reason))
    return ()


def _finish_outputs(
    graph: OnnxGraph, records: LayerRecords, values: Mapping[str, Any]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The nodes of the outputs, with their axes in netdsl's order: the first one is `main`."""
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i, name in enumerate(graph.outputs):
        view = values[name]
        if not isinstance(view, View):
            raise fail(f"{graph.origin}: the output `{escape_line(name)}` is a constant")
        outputs["main" if i == 0 else _identifier(name)] = _finish(graph, records, name, view)
    return outputs


def _finish(
    graph: OnnxGraph, records: LayerRecords, name: str, view: View
) -> tuple[str, tuple[int, ...]]:
    """The node of an output, an image with the channels last or a row, and the order of its
    axes."""
    node, plain = records.use(view), tuple(range(view.rank))
    if view.rank <= 2 and flat(view.axes) == flat(view.base):
        is_row = len([a for a in records.shape(node)[1:] if a > 1]) <= 1
        return (node if is_row else records.emit("flatten", "flatten", [node])), plain
    order = _CHANNELS_SECOND.get(view.rank, plain)
    for wanted in (order, plain):
        if view.base == tuple(view.axes[i] for i in wanted):
            return node, wanted
    for wanted in (order, plain):
        with suppress(ViewError):
            return records.arrange("output", view, [view.axes[i] for i in wanted]), wanted
    message = (
        f"{graph.origin}: the output `{escape_line(name)}` ({dims(view.shape)}) has its values"
    )
    raise UnsupportedGraphError(Diagnostic(f"{message} in an order that no layer gives"))


def net_name(path: Path) -> str:
    return _identifier(path.stem)

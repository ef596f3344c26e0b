"""The arithmetic with which a model for floats normalises its pixels itself, such as (x/255 -
mean)/std, taken out of its graph: in a .net it belongs to the data section."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from netdsl.interchange.imported_net import PixelNormalization
from netdsl.interchange.onnx_import.graph import FLOATS, OnnxGraph, OnnxInput, OnnxNode
from netdsl.types import Array

_IMAGE_CHANNELS = (1, 3)
_CHANNEL_AXES = (1, 3)
_MIN_BYTE_SCALE = 32.0
"""A mean or a deviation of at least so much is one of pixels from 0 to 255: the usual ones are near
120 and 60. Those of pixels from 0 to 1 are at most 1; with one in between nothing is taken out."""
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Step:
    """A value that is the input with its axes in the order `perm`, times factors, plus offsets,
    both for the axes of the value; `arithmetic` are the nodes that compute so far."""

    name: str
    perm: tuple[int, ...]
    factors: Array
    offsets: Array
    arithmetic: tuple[OnnxNode, ...] = ()


def absorb_normalization(graph: OnnxGraph) -> tuple[OnnxGraph, PixelNormalization | None]:
    """The graph without the constants that its only input, an image, is multiplied with or that are
    added to it before anything else, if they are a normalisation of pixels."""
    inputs = [i for i in graph.inputs if graph.use_counts[i.name]]
    if len(inputs) != 1 or not inputs[0].is_float or len(inputs[0].shape) != 4:
        return graph, None
    found = None
    for step in _steps(graph, inputs[0].name):
        pixels = _recognize(step, inputs[0]) if step.arithmetic else None
        found = (step, pixels) if pixels is not None else found
    return (graph, None) if found is None else (_without(graph, found[0].arithmetic), found[1])


def _steps(graph: OnnxGraph, name: str) -> Iterator[_Step]:
    """The values that are computed one after another from the input and constants alone, as long as
    nothing else reads them."""
    readers = {name: node for node in graph.nodes for name in node.inputs}
    step: _Step | None = _Step(name, (0, 1, 2, 3), np.ones((1,) * 4), np.zeros((1,) * 4))
    while step is not None:
        yield step
        is_single = graph.use_counts[step.name] == 1 and step.name in readers
        step = _next_step(graph, readers[step.name], step) if is_single else None


def _next_step(graph: OnnxGraph, node: OnnxNode, step: _Step) -> _Step | None:
    """The result of a node that moves axes or computes with a constant; else None."""
    moved = replace(step, name=node.outputs[0])
    if node.operator == "Identity" or (
        node.operator == "Cast" and node.attributes.get("to") in FLOATS
    ):
        return moved
    if node.operator == "Transpose":
        perm = node.attributes.get("perm")
        if not isinstance(perm, tuple) or sorted(perm) != [0, 1, 2, 3]:
            return None
        order = [int(p) for p in perm]
        return replace(
            moved,
            perm=tuple(step.perm[p] for p in order),
            factors=step.factors.transpose(order),
            offsets=step.offsets.transpose(order),
        )
    change = _constant_arithmetic(graph, node, step.name)
    if change is None:
        return None
    factor, offset = change
    try:
        factors = step.factors * factor
        offsets = step.offsets * factor + offset
    except ValueError:
        return None
    return _Step(moved.name, step.perm, factors, offsets, (*step.arithmetic, node))


def _constant_arithmetic(graph: OnnxGraph, node: OnnxNode, name: str) -> tuple[Array, Array] | None:
    """The factor and the offset of a sum, difference, product or quotient with a constant."""
    if node.operator not in ("Add", "Div", "Mul", "Sub") or len(node.inputs) != 2:
        return None
    is_first = node.inputs[0] == name
    constant = graph.constants.get(node.inputs[1 if is_first else 0])
    if (
        constant is None
        or constant.dtype.kind != "f"
        or not 0 < constant.size <= max(_IMAGE_CHANNELS)
    ):
        return None
    if constant.ndim > 4:
        return None
    value = constant.astype(np.float64).reshape((1,) * (4 - constant.ndim) + constant.shape)
    one, zero = np.ones((1,) * 4), np.zeros((1,) * 4)
    if node.operator == "Add":
        return one, value
    if node.operator == "Sub":
        return (one, -value) if is_first else (-one, value)
    if node.operator == "Mul":
        return value, zero
    return (1 / value, zero) if is_first and value.all() else None


def _recognize(step: _Step, given: OnnxInput) -> PixelNormalization | None:
    """The normalisation of pixels from 0 to 255 or from 0 to 1 that the arithmetic up to a value
    is, if it is one: its mean lies within the range of the pixels."""
    axis = next((i for i in _CHANNEL_AXES if given.shape[i] in _IMAGE_CHANNELS), None)
    if axis is None:
        return None
    factors, offsets = np.broadcast_arrays(step.factors, step.offsets)
    if any(n > 1 and step.perm[i] != axis for i, n in enumerate(factors.shape)):
        return None
    if factors.size not in (1, given.shape[axis]):
        return None
    if not (np.isfinite(factors).all() and np.isfinite(offsets).all() and (factors > 0).all()):
        return None
    count = given.shape[axis] or 1
    means, deviations = (
        np.broadcast_to(v.ravel(), count) for v in (-offsets / factors, 1 / factors)
    )
    largest = max(means.max(), deviations.max())
    if largest > 1 + _TOLERANCE and largest < _MIN_BYTE_SCALE:
        return None
    top = 255.0 if largest >= _MIN_BYTE_SCALE else 1.0
    if means.min() < -_TOLERANCE * top or means.max() > (1 + _TOLERANCE) * top:
        return None
    if deviations.max() > (1 + _TOLERANCE) * top or _is_nothing(means, deviations, top):
        return None
    in_bytes = np.broadcast_to(factors.ravel(), count) * top / 255
    shifts = np.broadcast_to(offsets.ravel(), count)
    return PixelNormalization(tuple(in_bytes.tolist()), tuple(shifts.tolist()), top)


def _is_nothing(means: Array, deviations: Array, top: float) -> bool:
    return top == 1 and bool((means == 0).all() and (deviations == 1).all())


def _without(graph: OnnxGraph, nodes: tuple[OnnxNode, ...]) -> OnnxGraph:
    """The graph in which those that read the results of these nodes read what the nodes read."""
    renamed: dict[str, str] = {}
    for node in nodes:
        source = next(n for n in node.inputs if n not in graph.constants)
        renamed[node.outputs[0]] = renamed.get(source, source)
    kept = (
        replace(n, inputs=tuple(renamed.get(i, i) for i in n.inputs))
        for n in graph.nodes
        if n not in nodes
    )
    return replace(graph, nodes=tuple(kept))

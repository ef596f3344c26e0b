"""Convolutions and their gradients by cuDNN: graphs of one operation, the fastest plan of several.

`graph_of` needs no GPU, only the properties of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from netdsl.backends.arrays import address
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.launch import WORKSPACE_BYTES
from netdsl.backends.cuda.libraries import cudnn
from netdsl.backends.cuda.tuning import Candidate
from netdsl.plan.placement import Placement
from netdsl.types import Node

MOST_PLANS = 12
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}


def supported(places: Sequence[Placement]) -> bool:
    """Whether cuDNN computes with these element types."""
    return all(p.dtype in _TYPES for p in places)


def graph_of(node: Node, places: Sequence[Placement], **settings: Any) -> tuple[Any, list[Any]]:
    """A convolution's graph and its tensors: operands, then the result. `settings` are the handle,
    or the properties of a device that is not there."""
    lib = cudnn()
    kind = getattr(lib.data_type, _TYPES[places[-1].dtype])
    graph = lib.pygraph(
        io_data_type=kind,
        intermediate_data_type=lib.data_type.FLOAT,
        compute_data_type=lib.data_type.FLOAT,
        **settings,
    )
    given = [_tensor(graph, f"t{i}", p, kind) for i, p in enumerate(places[:-1])]
    result = _operation(graph, node, given)
    dim, stride = _channels_first(places[-1])
    result.set_output(True).set_data_type(kind).set_dim(dim).set_stride(stride)
    return graph, [*given, result]


def _channels_first(place: Placement) -> tuple[list[int], list[int]]:
    """Extents and strides in cuDNN's order of axes."""
    n, h, w, c = place.layout.shape
    sn, sh, sw, sc = place.layout.strides
    return [n, c, h, w], [sn, sc, sh, sw]


def _tensor(graph: Any, name: str, place: Placement, kind: Any) -> Any:
    dim, stride = _channels_first(place)
    return graph.tensor(name=name, dim=dim, stride=stride, data_type=kind)


def _operation(graph: Any, node: Node, given: Sequence[Any]) -> Any:
    (top, bottom), (left, right) = node.attrs["pad"]
    window = {
        "pre_padding": [top, left],
        "post_padding": [bottom, right],
        "stride": list(node.attrs["stride"]),
        "dilation": list(node.attrs["dilation"]),
    }
    first, second = given
    if node.op == "conv2d":
        return graph.conv_fprop(image=first, weight=second, **window)
    if node.op == "conv2d_dgrad":
        return graph.conv_dgrad(loss=first, filter=second, **window)
    return graph.conv_wgrad(loss=first, image=second, **window)


def prepared(graph: Any, exact: bool, repeatable: bool = False) -> list[str]:
    """The plans of a graph by name, the likeliest first. `exact` leaves out those that round 32-bit
    operands, `repeatable` those whose results differ from run to run."""
    lib = cudnn()
    modes, notes = lib.heur_mode, lib.numerical_note
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
    unwanted = [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS] if exact else []
    unwanted += [notes.NONDETERMINISTIC] if repeatable else []
    if unwanted:
        graph.deselect_numeric_notes(unwanted)
    return [graph.get_plan_name_at_index(i) for i in range(graph.get_execution_plan_count())]


def built(graph: Any, index: int) -> int:
    """The plan of that number, ready to run. Raises an exception where it cannot be used."""
    graph.build_plan_at_index(index)
    size = graph.get_workspace_size_plan_at_index(index)
    if size > WORKSPACE_BYTES:
        raise RuntimeError(f"it wants a workspace of {size:,} bytes")
    return index


def bound(
    device: Device, node: Node, places: Sequence[Placement], pointers: Sequence[int]
) -> Thunk:
    """The convolution at these addresses, by the plan that is fastest there. Raises RuntimeError
    where cuDNN has none."""
    key = (
        node.op,
        *sorted(node.attrs.items()),
        *((p.dtype, p.layout.shape, p.layout.strides) for p in places),
    )
    if key not in device.chosen:
        device.chosen[key] = _fastest(device, key, node, places, pointers)
    graph, tensors, index = device.chosen[key]
    return _call(device, graph, dict(zip(tensors, pointers, strict=True)), index)


def _call(device: Device, graph: Any, pack: dict[Any, int], index: int) -> Thunk:
    workspace, handle = address(device.workspace), device.handle
    execute: Callable[..., None] = graph.execute_plan_at_index
    return lambda: execute(pack, workspace, index, handle=handle)


def _fastest(
    device: Device,
    key: object,
    node: Node,
    places: Sequence[Placement],
    pointers: Sequence[int],
) -> tuple[Any, list[Any], int]:
    graph, tensors = graph_of(node, places, **device.planned_for)
    names = prepared(graph, places[0].dtype == "float32", device.repeatable)
    if device.handle is not None:
        graph.check_support()
    pack = dict(zip(tensors, pointers, strict=True))
    plans = [Candidate(name, partial(built, graph, i)) for i, name in enumerate(names)]
    timed = lambda i: device.milliseconds(_call(device, graph, pack, i))
    return graph, tensors, device.tuner.fastest(key, plans, timed, MOST_PLANS)

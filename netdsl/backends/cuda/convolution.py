"""Convolutions and their gradients by cuDNN: graphs of one operation, the fastest plan of several.

`graph_of` needs no GPU, only the properties of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.launch import WORKSPACE_BYTES
from netdsl.backends.cuda.libraries import cudnn
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


def prepared(graph: Any, exact: bool) -> int:
    """Lists the plans of a graph and says how many there are; `exact` leaves out those that round
    32-bit operands."""
    modes = cudnn().heur_mode
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
    if exact:
        notes = cudnn().numerical_note
        graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
    return int(graph.get_execution_plan_count())


def bound(
    device: Device, node: Node, places: Sequence[Placement], pointers: Sequence[int]
) -> Thunk:
    """The convolution at these addresses, by the plan that is fastest there. Raises RuntimeError
    where cuDNN has none."""
    key = (
        node.op,
        *node.attrs.items(),
        *((p.dtype, p.layout.shape, p.layout.strides) for p in places),
    )
    if key not in device.chosen:
        device.chosen[key] = _fastest(device, node, places, pointers)
    graph, tensors, index = device.chosen[key]
    return _call(device, graph, dict(zip(tensors, pointers, strict=True)), index)


def _call(device: Device, graph: Any, pack: dict[Any, int], index: int) -> Thunk:
    workspace, handle = int(device.workspace.data.ptr), device.handle
    execute: Callable[..., None] = graph.execute_plan_at_index
    return lambda: execute(pack, workspace, index, handle=handle)


def _fastest(
    device: Device, node: Node, places: Sequence[Placement], pointers: Sequence[int]
) -> tuple[Any, list[Any], int]:
    graph, tensors = graph_of(node, places, handle=device.handle)
    count = prepared(graph, places[0].dtype == "float32")
    graph.check_support()
    pack = dict(zip(tensors, pointers, strict=True))
    times: dict[int, float] = {}
    problem = "no plan"
    for i in range(count):
        if len(times) == MOST_PLANS:
            break
        try:
            graph.build_plan_at_index(i)
            if graph.get_workspace_size_plan_at_index(i) <= WORKSPACE_BYTES:
                times[i] = device.milliseconds(_call(device, graph, pack, i))
        except (
            Exception
        ) as e:  # what the frontend raises for a plan that does not build has no type
            problem = str(e)
    if not times:
        raise RuntimeError(f"cuDNN has no plan for {node.name}: {problem}")
    return graph, tensors, min(times, key=times.__getitem__)

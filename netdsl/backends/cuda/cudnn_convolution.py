"""Convolutions and their gradients by cuDNN, with their epilogues, by the fastest of its plans.

`build_graph` needs no GPU, only the properties of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from netdsl.backends.array_backend import address
from netdsl.backends.cuda.cuda_launch import WORKSPACE_BYTES
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.epilogue import Epilogue
from netdsl.backends.cuda.libraries import load_cudnn
from netdsl.backends.cuda.tuning import TimedCandidate
from netdsl.plan.placement import Placement
from netdsl.types import Node

MAX_PLANS = 12
MAX_FUSED_PLANS = 3
"""Plans with an epilogue take a second each to compile; the first ones are the best."""
MIN_EPILOGUE_BYTES = 16 << 20
"""A convolution with a smaller result gets no epilogue: that costs a second of compilation, and the
map after it can no longer compute reductions on the way."""
_DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}


@dataclass(frozen=True)
class FusedConvolution:
    """A convolution with an epilogue. `places` are its operands, the epilogue's operands and the
    result, in this order."""

    node: Node
    places: tuple[Placement, ...]
    epilogue: Epilogue | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that the choice of a plan depends on."""
        layouts = ((p.dtype, p.layout.shape, p.layout.strides) for p in self.places)
        kind = (self.epilogue.kind,) if self.epilogue else ()
        return (self.node.op, *kind, *sorted(self.node.attrs.items()), *layouts)


def is_supported(places: Sequence[Placement]) -> bool:
    """Returns whether cuDNN supports these element types."""
    return all(p.dtype in _DATA_TYPES for p in places)


def build_graph(convolution: FusedConvolution, **settings: Any) -> tuple[Any, list[Any]]:
    """Returns the cuDNN graph of a convolution and its tensors: operands, then the result, with
    uids from 1. `settings` are the handle, or the properties of a device that is not there."""
    lib = load_cudnn()
    first, out = convolution.places[0], convolution.places[-1]
    graph = lib.pygraph(
        io_data_type=getattr(lib.data_type, _DATA_TYPES[first.dtype]),
        intermediate_data_type=lib.data_type.FLOAT,
        compute_data_type=lib.data_type.FLOAT,
        **settings,
    )
    operands = [_make_tensor(graph, f"t{i}", p) for i, p in enumerate(convolution.places[:-1])]
    result = _add_convolution(graph, convolution.node, operands[:2])
    if convolution.epilogue is not None:
        _set_shape(result, out)
        result = _apply_epilogue(graph, convolution.epilogue, result, operands[2:])
    _set_shape(result, out)
    result.set_output(True).set_data_type(getattr(lib.data_type, _DATA_TYPES[out.dtype]))
    for i, tensor in enumerate([*operands, result]):
        tensor.set_uid(i + 1)
    return graph, [*operands, result]


def _apply_epilogue(graph: Any, epilogue: Epilogue, result: Any, operands: Sequence[Any]) -> Any:
    """Adds the operations of an epilogue to a graph; `operands` are its operands in order."""
    remaining = iter(operands)
    if epilogue.bias is not None:
        result = graph.bias(input=result, bias=next(remaining))
    if epilogue.addend is not None:
        result = graph.add(a=result, b=next(remaining))
    if epilogue.mask is not None:
        result = graph.relu_backward(loss=result, input=next(remaining))
    return graph.relu(input=result) if epilogue.relu else result


def _set_shape(tensor: Any, place: Placement) -> None:
    dim, stride = _channels_first(place)
    tensor.set_dim(dim).set_stride(stride)


def _channels_first(place: Placement) -> tuple[list[int], list[int]]:
    """Returns shape and strides in cuDNN's order of axes; a vector has one value per channel."""
    shape, strides = place.layout.shape, place.layout.strides
    if math.prod(shape) == shape[-1]:
        return [1, shape[-1], 1, 1], [shape[-1], strides[-1], shape[-1], shape[-1]]
    n, h, w, c = shape
    sn, sh, sw, sc = strides
    return [n, c, h, w], [sn, sc, sh, sw]


def _make_tensor(graph: Any, name: str, place: Placement) -> Any:
    dim, stride = _channels_first(place)
    kind = getattr(load_cudnn().data_type, _DATA_TYPES[place.dtype])
    return graph.tensor(name=name, dim=dim, stride=stride, data_type=kind)


def _add_convolution(graph: Any, node: Node, operands: Sequence[Any]) -> Any:
    (top, bottom), (left, right) = node.attrs["pad"]
    window = {
        "pre_padding": [top, left],
        "post_padding": [bottom, right],
        "stride": list(node.attrs["stride"]),
        "dilation": list(node.attrs["dilation"]),
    }
    first, second = operands
    if node.op == "conv2d":
        return graph.conv_fprop(image=first, weight=second, **window)
    if node.op == "conv2d_dgrad":
        return graph.conv_dgrad(loss=first, filter=second, **window)
    return graph.conv_wgrad(loss=first, image=second, **window)


def create_plans(graph: Any, is_exact: bool, deterministic: bool = False) -> list[str]:
    """Returns the names of a graph's plans, the most promising first. `is_exact` leaves out those
    that round 32-bit operands, `deterministic` those whose results differ from run to run."""
    lib = load_cudnn()
    modes, notes = lib.heur_mode, lib.numerical_note
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
    unwanted = [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS] if is_exact else []
    unwanted += [notes.NONDETERMINISTIC] if deterministic else []
    if unwanted:
        graph.deselect_numeric_notes(unwanted)
    return [graph.get_plan_name_at_index(i) for i in range(graph.get_execution_plan_count())]


def build_plan(graph: Any, index: int) -> int:
    """Builds a plan and returns its index. Raises an exception if it cannot be used."""
    graph.build_plan_at_index(index)
    size = graph.get_workspace_size_plan_at_index(index)
    if size > WORKSPACE_BYTES:
        raise RuntimeError(f"it needs a workspace of {size:,} bytes")
    return index


def bind(device: Device, convolution: FusedConvolution, pointers: Sequence[int]) -> Thunk:
    """Binds the convolution to addresses, with its fastest plan. Raises RuntimeError without one."""
    if convolution.key not in device.chosen_plans:
        device.chosen_plans[convolution.key] = _choose_plan(device, convolution, pointers)
    graph, tensors, index = device.chosen_plans[convolution.key]
    return _make_thunk(device, graph, dict(zip(tensors, pointers, strict=True)), index)


def _make_thunk(
    device: Device, graph: Any, variant_pack: dict[Any, int], index: int | None
) -> Thunk:
    """Runs the plan `index` of a graph; None is the only plan of a deserialised one."""
    workspace, handle = address(device.workspace), device.handle
    if index is None:
        return lambda: graph.execute(variant_pack, workspace, handle=handle)
    execute: Callable[..., None] = graph.execute_plan_at_index
    return lambda: execute(variant_pack, workspace, index, handle=handle)


def _choose_plan(
    device: Device, convolution: FusedConvolution, pointers: Sequence[int]
) -> tuple[Any, list[Any], int | None]:
    cached_graph = _load_cached_plan(device, convolution)
    if cached_graph is not None:
        return cached_graph, list(range(1, len(convolution.places) + 1)), None
    graph, tensors = build_graph(convolution, **device.graph_settings)
    names = create_plans(graph, convolution.places[0].dtype == "float32", device.deterministic)
    if device.handle is not None:
        graph.check_support()
    variant_pack = dict(zip(tensors, pointers, strict=True))
    candidates = [
        TimedCandidate(name, partial(build_plan, graph, i)) for i, name in enumerate(names)
    ]
    measure = lambda i: device.measure_milliseconds(_make_thunk(device, graph, variant_pack, i))
    max_plans = MAX_FUSED_PLANS if convolution.epilogue else MAX_PLANS
    index = device.tuner.choose_fastest(convolution.key, candidates, measure, max_plans)
    if convolution.epilogue is not None and device.handle is not None:
        with suppress(Exception):  # errors of the library: the plan is compiled again next time
            build_plan(graph, index)  # the plan that was built last is serialised
            device.plan_cache.store(convolution.key, bytes(graph.serialize()))
    return graph, tensors, index


def _load_cached_plan(device: Device, convolution: FusedConvolution) -> Any:
    """Returns the graph with the plan that an earlier process compiled, if it is still usable."""
    if convolution.epilogue is None or device.handle is None:
        return None
    found = device.plan_cache.load(convolution.key)
    if found is None:
        return None
    graph = load_cudnn().pygraph(**device.graph_settings)
    try:
        graph.deserialize(device.handle, list(found))
    except Exception:  # the library's errors have no common type: the plan is built again
        return None
    return graph

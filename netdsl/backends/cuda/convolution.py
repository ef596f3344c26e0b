"""Convolutions and their gradients by cuDNN, with what follows them: the fastest plan of several.

`graph_of` needs no GPU, only the properties of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from netdsl.backends.array_backend import address
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.epilogue import Epilogue
from netdsl.backends.cuda.launch import WORKSPACE_BYTES
from netdsl.backends.cuda.libraries import cudnn
from netdsl.backends.cuda.tuning import Candidate
from netdsl.plan.placement import Placement
from netdsl.types import Node

MOST_PLANS = 12
MOST_FUSED = 3
"""Plans with an epilogue are compiled when they are built, for a second each; the first are best."""
WORTH_FUSING = 16 << 20
"""Bytes of a result from which on a convolution gets an epilogue: what it saves, a second of
compilation and the sums that can no longer be taken of it on the way considered."""
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}


@dataclass(frozen=True)
class Task:
    """A convolution and what is done to its result before that is written. `places` are those of
    its operands, of the epilogue's and of the result, in this order."""

    node: Node
    places: tuple[Placement, ...]
    epilogue: Epilogue | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What a plan depends on."""
        laid = ((p.dtype, p.layout.shape, p.layout.strides) for p in self.places)
        kind = (self.epilogue.kind,) if self.epilogue else ()
        return (self.node.op, *kind, *sorted(self.node.attrs.items()), *laid)


def supported(places: Sequence[Placement]) -> bool:
    """Whether cuDNN computes with these element types."""
    return all(p.dtype in _TYPES for p in places)


def graph_of(task: Task, **settings: Any) -> tuple[Any, list[Any]]:
    """A convolution's graph and its tensors: operands, then the result, numbered from 1.
    `settings` are the handle, or the properties of a device that is not there."""
    lib = cudnn()
    first, out = task.places[0], task.places[-1]
    graph = lib.pygraph(
        io_data_type=getattr(lib.data_type, _TYPES[first.dtype]),
        intermediate_data_type=lib.data_type.FLOAT,
        compute_data_type=lib.data_type.FLOAT,
        **settings,
    )
    given = [_tensor(graph, f"t{i}", p) for i, p in enumerate(task.places[:-1])]
    result = _operation(graph, task.node, given[:2])
    if task.epilogue is not None:
        _shaped(result, out)
        result = _finished(graph, task.epilogue, result, given[2:])
    _shaped(result, out)
    result.set_output(True).set_data_type(getattr(lib.data_type, _TYPES[out.dtype]))
    for i, tensor in enumerate([*given, result]):
        tensor.set_uid(i + 1)
    return graph, [*given, result]


def _finished(graph: Any, epilogue: Epilogue, result: Any, given: Sequence[Any]) -> Any:
    """The epilogue's operations; `given` are its operands in order."""
    left = iter(given)
    if epilogue.bias is not None:
        result = graph.bias(input=result, bias=next(left))
    if epilogue.beside is not None:
        result = graph.add(a=result, b=next(left))
    if epilogue.mask is not None:
        result = graph.relu_backward(loss=result, input=next(left))
    return graph.relu(input=result) if epilogue.relu else result


def _shaped(tensor: Any, place: Placement) -> None:
    dim, stride = _channels_first(place)
    tensor.set_dim(dim).set_stride(stride)


def _channels_first(place: Placement) -> tuple[list[int], list[int]]:
    """Extents and strides in cuDNN's order of axes; a vector has a value for each channel."""
    shape, strides = place.layout.shape, place.layout.strides
    if math.prod(shape) == shape[-1]:
        return [1, shape[-1], 1, 1], [shape[-1], strides[-1], shape[-1], shape[-1]]
    n, h, w, c = shape
    sn, sh, sw, sc = strides
    return [n, c, h, w], [sn, sc, sh, sw]


def _tensor(graph: Any, name: str, place: Placement) -> Any:
    dim, stride = _channels_first(place)
    kind = getattr(cudnn().data_type, _TYPES[place.dtype])
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


def bound(device: Device, task: Task, pointers: Sequence[int]) -> Thunk:
    """The convolution at these addresses, by the plan that is fastest there. Raises RuntimeError
    where cuDNN has none."""
    if task.key not in device.chosen:
        device.chosen[task.key] = _fastest(device, task, pointers)
    graph, tensors, index = device.chosen[task.key]
    return _call(device, graph, dict(zip(tensors, pointers, strict=True)), index)


def _call(device: Device, graph: Any, pack: dict[Any, int], index: int | None) -> Thunk:
    """A plan by its number; by None the only one of a graph that was read back."""
    workspace, handle = address(device.workspace), device.handle
    if index is None:
        return lambda: graph.execute(pack, workspace, handle=handle)
    execute: Callable[..., None] = graph.execute_plan_at_index
    return lambda: execute(pack, workspace, index, handle=handle)


def _fastest(
    device: Device, task: Task, pointers: Sequence[int]
) -> tuple[Any, list[Any], int | None]:
    before = _read_back(device, task)
    if before is not None:
        return before, list(range(1, len(task.places) + 1)), None
    graph, tensors = graph_of(task, **device.planned_for)
    names = prepared(graph, task.places[0].dtype == "float32", device.repeatable)
    if device.handle is not None:
        graph.check_support()
    pack = dict(zip(tensors, pointers, strict=True))
    plans = [Candidate(name, partial(built, graph, i)) for i, name in enumerate(names)]
    timed = lambda i: device.milliseconds(_call(device, graph, pack, i))
    most = MOST_FUSED if task.epilogue else MOST_PLANS
    index = device.tuner.fastest(task.key, plans, timed, most)
    if task.epilogue is not None and device.handle is not None:
        with suppress(Exception):  # the libraries' own errors: it is compiled again then
            built(graph, index)  # what was built last is what is written
            device.plans.keep(task.key, bytes(graph.serialize()))
    return graph, tensors, index


def _read_back(device: Device, task: Task) -> Any:
    """A plan that was compiled for its epilogue by an earlier process, if it can still be used."""
    if task.epilogue is None or device.handle is None:
        return None
    found = device.plans.read(task.key)
    if found is None:
        return None
    graph = cudnn().pygraph(**device.planned_for)
    try:
        graph.deserialize(device.handle, list(found))
    except Exception:  # the library's own errors have no common type: it is built anew
        return None
    return graph

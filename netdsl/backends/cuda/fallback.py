"""Runs kernels by their operators' references on the host, if CuPy lacks an element type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from netdsl.backends.cuda.device import Thunk
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array


def needs_host(plan: Plan, kernel: Kernel) -> bool:
    """Returns whether a kernel uses an element type that CuPy does not have."""
    return any(plan.graph[n].type.dtype == "bfloat16" for n in (*kernel.nodes, *kernel.inputs))


def bind_on_host(cupy: Any, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
    """Returns a function that runs a kernel's nodes in turn on NumPy arrays."""
    graph = plan.graph
    inputs = {name: plan.placements[name] for name in kernel.inputs}
    outputs = {name: plan.placements[name] for name in kernel.outputs}

    def run() -> None:
        values = {name: _read(cupy, place, memory) for name, place in inputs.items()}
        with np.errstate(all="ignore"):
            for name in kernel.nodes:
                node = graph[name]
                args = (values[a] for a in node.args)
                values[name] = OPS[node.op].reference(np, *args, **node.attrs)
        for name, place in outputs.items():
            _write(cupy, place, memory, values[name])

    return run


def _view_bits(cupy: Any, place: Placement, memory: Mapping[str, Array], layout: Layout) -> Array:
    """Views a placement on the device as unsigned integers of the same width."""
    flat = memory[place.buffer].reshape(-1).view(f"uint{8 * place.itemsize}")
    strides = tuple(s * place.itemsize for s in layout.strides)
    return cupy.lib.stride_tricks.as_strided(flat[layout.offset :], layout.shape, strides)


def _read(cupy: Any, place: Placement, memory: Mapping[str, Array]) -> Array:
    bits = cupy.asnumpy(_view_bits(cupy, place, memory, place.layout))
    return np.ascontiguousarray(bits).view(dtype_of(place.dtype)).reshape(place.layout.shape)


def _write(cupy: Any, place: Placement, memory: Mapping[str, Array], value: Array) -> None:
    if place.padding is not None:
        _view_bits(cupy, place, memory, place.padded_layout())[...] = 0
    value = np.array(np.broadcast_to(value, place.layout.shape), dtype_of(place.dtype), order="C")
    raw = cupy.asarray(value.reshape(-1).view(f"uint{8 * place.itemsize}"))
    _view_bits(cupy, place, memory, place.layout)[...] = raw.reshape(place.layout.shape)

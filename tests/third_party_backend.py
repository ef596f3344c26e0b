"""A backend as a third party would write it, using only the interface of `netdsl.backends.base`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from netdsl.backends.base import Backend, Thunk
from netdsl.backends.roofline import Ceilings
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan


class Tensor:
    """An array of this backend, which NumPy cannot read."""

    __array_ufunc__ = None

    def __init__(self, inside: np.ndarray[Any, Any]) -> None:
        self.inside, self.shape, self.dtype = inside, inside.shape, inside.dtype

    def __getitem__(self, part: slice) -> Tensor:
        return Tensor(self.inside[part])

    def __float__(self) -> float:
        return float(self.inside)


class ThirdParty(Backend):
    """Runs one operator per kernel, by its reference implementation."""

    name = "third party"

    def upload(self, array: Any) -> Tensor:
        return Tensor(np.array(array, order="C"))

    def download(self, array: Tensor) -> Any:
        return array.inside.copy()

    def write(self, target: Tensor, values: Any) -> None:
        target.inside[...] = values

    def allocate(self, nbytes: int) -> Tensor:
        return Tensor(np.zeros(nbytes, np.uint8))

    def view(self, buffer: Tensor, dtype: str, layout: Layout) -> Tensor:
        flat = buffer.inside.reshape(-1).view(dtype_of(dtype))
        strides = [s * flat.itemsize for s in layout.strides]
        return Tensor(np.lib.stride_tricks.as_strided(flat[layout.offset :], layout.shape, strides))

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Tensor]) -> Thunk:
        at = plan.placements
        if not kernel.nodes:  # a copy
            (source,), (target,) = kernel.inputs, kernel.outputs
            return self._call(np.copy, [at[source]], at[target], memory)
        (name,) = kernel.nodes
        node = plan.graph[name]
        if node.op == "concat":  # the operands that are not in place yet
            pieces = plan.find_concat_copies(name)
            return self.capture(
                [self._call(np.copy, [at[p.source]], p.target, memory) for p in pieces]
            )
        compute = lambda *args: OPS[node.op].reference(np, *args, **node.attrs)
        return self._call(compute, [at[a] for a in node.args], at[name], memory)

    def _call(
        self, compute: Any, given: list[Placement], to: Placement, memory: Mapping[str, Tensor]
    ) -> Thunk:
        *args, out = (self.view(memory[p.buffer], p.dtype, p.layout).inside for p in (*given, to))
        return lambda: out.__setitem__(..., compute(*args))

    def measure_ceilings(self) -> Ceilings:
        return Ceilings(flops=1e9, bandwidth=1e9)

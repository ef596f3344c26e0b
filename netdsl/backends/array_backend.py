"""Backends that run every operator by its reference, on NumPy or CuPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from netdsl.backends.base import AsyncThunk, Backend, SequentialThunk, Thunk
from netdsl.backends.host_collective import bind_host_collective
from netdsl.backends.roofline import Ceilings
from netdsl.lower.candidates import CandidateChoice
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.plan.fusion import FULL_FUSION, NO_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.types import Array

_ALIGN = 64


@dataclass(frozen=True)
class ArrayBackend(Backend):
    """Computes the nodes of a kernel one after the other, by the reference of each operator."""

    name: str
    xp: Any
    fusion: FusionOptions = NO_FUSION
    communicator: Communicator = ONE_RANK

    def upload(self, array: Array) -> Array:
        return self.xp.array(array, order="C")

    def download(self, array: Array) -> Array:
        return array.copy() if self.xp is np else self.xp.asnumpy(array)

    def write(self, target: Array, values: Array) -> None:
        target[...] = values if self.xp is np else self.xp.asarray(values)

    def allocate(self, nbytes: int) -> Array:
        buffer = self.xp.zeros(nbytes + _ALIGN, dtype="uint8")
        first = -address(buffer) % _ALIGN
        return buffer[first : first + nbytes]

    def view(self, buffer: Array, dtype: str, layout: Layout) -> Array:
        flat = buffer.reshape(-1).view(dtype_of(dtype))
        size = flat.itemsize
        strides = tuple(s * size for s in layout.strides)
        as_strided = self.xp.lib.stride_tricks.as_strided
        return as_strided(flat[layout.offset :], layout.shape, strides)

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        binder = _Binder(self, plan, memory)
        if kernel.parts:
            return SequentialThunk(tuple(binder.make_compute(part) for part in kernel.parts))
        if kernel.kind == "copy" and not kernel.nodes:
            (source,), (target,) = kernel.inputs, kernel.outputs
            return binder.make_copy(source, plan.placements[target])
        if plan.graph[kernel.outputs[-1]].op == "concat":
            pieces = plan.find_concat_copies(kernel.name)
            return SequentialThunk(tuple(binder.make_copy(p.source, p.target) for p in pieces))
        return binder.make_compute(kernel)

    def bind_collective(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> AsyncThunk:
        return bind_host_collective(self, plan, kernel, memory)

    def with_communicator(self, communicator: Communicator) -> Backend:
        return replace(self, communicator=communicator)

    def explain_choices(self, plan: Plan) -> tuple[CandidateChoice[Any, Any], ...]:
        """All kernels are computed by reference."""
        return tuple(CandidateChoice() for _ in plan.kernels)

    def measure_ceilings(self) -> Ceilings:
        """Measures with square matrix products and a copy."""
        xp, side, size = self.xp, *((1024, 1 << 24) if self.xp is np else (8192, 1 << 28))
        source, target = (xp.ones(size, dtype="float32") for _ in range(2))
        copy = self._min_seconds(partial(target.__setitem__, ..., source))
        flops = 2 * side**3 / self._min_seconds(self._make_matmul(side, "float32"))
        if xp is np:
            return Ceilings(flops, 2 * source.nbytes / copy)
        flops_16bit = 2 * side**3 / self._min_seconds(self._make_matmul(side, "float16"))
        return Ceilings(flops, 2 * source.nbytes / copy, flops_16bit)

    def _make_matmul(self, side: int, dtype: str) -> Thunk:
        a, b, c = (self.xp.ones((side, side), dtype=dtype) for _ in range(3))
        return partial(self.xp.matmul, a, b, out=c)

    def _min_seconds(self, thunk: Thunk) -> float:
        return min(self.measure_seconds([thunk])[0] for _ in range(5))


@dataclass(frozen=True)
class _Binder:
    """Turns kernels into functions over the arrays of one plan."""

    backend: ArrayBackend
    plan: Plan
    memory: Mapping[str, Array]

    def view_array(self, name: str) -> Array:
        placement = self.plan.placements[name]
        return self.backend.view(self.memory[placement.buffer], placement.dtype, placement.layout)

    def make_store(self, placement: Placement) -> Callable[[Array], None]:
        """Returns a function that writes a value to its placement, and zeros around it if it owns
        them."""
        buffer = self.memory[placement.buffer]
        target = self.backend.view(buffer, placement.dtype, placement.layout)
        if placement.padding is None:
            return partial(target.__setitem__, ...)
        padded = self.backend.view(buffer, placement.dtype, placement.padded_layout())

        def store(value: Array) -> None:
            padded[...] = 0
            target[...] = value

        return store

    def make_copy(self, source: str, target: Placement) -> Thunk:
        return partial(self.make_store(target), self.view_array(source))

    def make_compute(self, kernel: Kernel) -> Thunk:
        """Computes all nodes of a kernel in turn, then stores its outputs."""
        graph, xp = self.plan.graph, self.backend.xp
        inputs = {name: self.view_array(name) for name in kernel.inputs}
        steps = [
            (name, partial(OPS[graph[name].op].reference, xp, **graph[name].attrs), args)
            for name in kernel.nodes
            for args in (graph[name].args,)
        ]
        stores = [(name, self.make_store(self.plan.placements[name])) for name in kernel.outputs]
        if len(steps) == 1:
            ((_, compute, names),) = steps
            ((_, store),) = stores
            return _make_single(compute, [inputs[a] for a in names], store)

        def run() -> None:
            values = dict(inputs)
            for name, compute, args in steps:
                values[name] = compute(*[values[a] for a in args])
            for name, store in stores:
                store(values[name])

        return run


def _make_single(compute: Any, args: list[Array], store: Callable[[Array], None]) -> Thunk:
    return lambda: store(compute(*args))


def address(buffer: Array) -> int:
    """Returns the memory address of an array."""
    data = getattr(buffer, "data", None)
    address = getattr(data, "ptr", None)
    return int(address if address is not None else buffer.__array_interface__["data"][0])


def reference_backend() -> ArrayBackend:
    """Returns the oracle: one operator after the other, by its reference."""
    return ArrayBackend("reference", np)


def model_backend() -> ArrayBackend:
    """Returns the reference backend with the engines' kernels: it runs and measures what they
    share, partition, placement and order, without the engines."""
    return ArrayBackend("model", np, FULL_FUSION)

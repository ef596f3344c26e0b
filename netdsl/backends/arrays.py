"""Backends that run every operator by its reference, on the arrays of NumPy or of CuPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from netdsl.backends.base import Backend, InTurn, Thunk
from netdsl.backends.roofline import Ceilings
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.plan.fusion import FULL_FUSION, NO_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array

_ALIGN = 64


@dataclass(frozen=True)
class ArrayBackend(Backend):
    """Kernels whose nodes are computed one after the other, as their records define them."""

    name: str
    xp: Any
    fusion: FusionOptions = NO_FUSION

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
            return InTurn(tuple(binder.nodes(part) for part in kernel.parts))
        if kernel.kind == "copy" and not kernel.nodes:
            (source,), (target,) = kernel.inputs, kernel.outputs
            return binder.copy(source, plan.placements[target])
        if plan.graph[kernel.outputs[-1]].op == "concat":
            pieces = plan.find_concat_copies(kernel.name)
            return InTurn(tuple(binder.copy(p.source, p.target) for p in pieces))
        return binder.nodes(kernel)

    def ceilings(self) -> Ceilings:
        """By square products and a copy."""
        xp, side, size = self.xp, *((1024, 1 << 24) if self.xp is np else (8192, 1 << 28))
        source, target = (xp.ones(size, dtype="float32") for _ in range(2))
        copy = self._least(partial(target.__setitem__, ..., source))
        flops = 2 * side**3 / self._least(self._square(side, "float32"))
        if xp is np:
            return Ceilings(flops, 2 * source.nbytes / copy)
        narrow = 2 * side**3 / self._least(self._square(side, "float16"))
        return Ceilings(flops, 2 * source.nbytes / copy, narrow)

    def _square(self, side: int, dtype: str) -> Thunk:
        a, b, c = (self.xp.ones((side, side), dtype=dtype) for _ in range(3))
        return partial(self.xp.matmul, a, b, out=c)

    def _least(self, thunk: Thunk) -> float:
        return min(self.seconds([thunk])[0] for _ in range(5))


@dataclass(frozen=True)
class _Binder:
    """Turns kernels into functions over the arrays of one plan."""

    backend: ArrayBackend
    plan: Plan
    memory: Mapping[str, Array]

    def array(self, name: str) -> Array:
        place = self.plan.placements[name]
        return self.backend.view(self.memory[place.buffer], place.dtype, place.layout)

    def store(self, place: Placement) -> Callable[[Array], None]:
        """Writes a value to its place, and zeros around it where it owns them."""
        buffer = self.memory[place.buffer]
        target = self.backend.view(buffer, place.dtype, place.layout)
        if place.padding is None:
            return partial(target.__setitem__, ...)
        whole = self.backend.view(buffer, place.dtype, place.padded_layout())

        def store(value: Array) -> None:
            whole[...] = 0
            target[...] = value

        return store

    def copy(self, source: str, target: Placement) -> Thunk:
        return partial(self.store(target), self.array(source))

    def nodes(self, kernel: Kernel) -> Thunk:
        """All nodes of a kernel in turn, then its outputs to their places."""
        graph, xp = self.plan.graph, self.backend.xp
        given = {name: self.array(name) for name in kernel.inputs}
        steps = [
            (name, partial(OPS[graph[name].op].reference, xp, **graph[name].attrs), args)
            for name in kernel.nodes
            for args in (graph[name].args,)
        ]
        stores = [(name, self.store(self.plan.placements[name])) for name in kernel.outputs]
        if len(steps) == 1:
            ((_, compute, names),) = steps
            ((_, store),) = stores
            return _single(compute, [given[a] for a in names], store)

        def run() -> None:
            values = dict(given)
            for name, compute, args in steps:
                values[name] = compute(*[values[a] for a in args])
            for name, store in stores:
                store(values[name])

        return run


def _single(compute: Any, args: list[Array], store: Callable[[Array], None]) -> Thunk:
    return lambda: store(compute(*args))


def address(buffer: Array) -> int:
    """Where an array begins in memory."""
    data = getattr(buffer, "data", None)
    address = getattr(data, "ptr", None)
    return int(address if address is not None else buffer.__array_interface__["data"][0])


def reference() -> ArrayBackend:
    """The oracle: one operator after the other, as its record defines it."""
    return ArrayBackend("reference", np)


def model() -> ArrayBackend:
    """The reference in the kernels that the engines launch: what they share with it, partition,
    placement and order, is run and measured without them."""
    return ArrayBackend("model", np, FULL_FUSION)

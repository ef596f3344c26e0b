"""The CPU backend: kernels of machine code where there are some, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from netdsl.backends.array_backend import ArrayBackend
from netdsl.backends.base import Backend, ReferenceThunk, RefreshableThunk, Thunk, WinogradThunk
from netdsl.backends.cpu.anchors import anchor_launch
from netdsl.backends.cpu.apart import apart_launch
from netdsl.backends.cpu.ceilings import measured
from netdsl.backends.cpu.expression import Unsupported
from netdsl.backends.cpu.launch import program, threads
from netdsl.backends.cpu.listing import addresses, code
from netdsl.backends.cpu.maps import Launch, Memory, map_launch
from netdsl.backends.cpu.opaque import opaque_launch
from netdsl.backends.cpu.room import fetched
from netdsl.backends.cpu.target import width
from netdsl.backends.roofline import Ceilings
from netdsl.backends.source_listing import CalledFunction, format_listing
from netdsl.plan.fusion import FULL_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.plan import Plan
from netdsl.types import Array

_SLACK = 256
"""Bytes behind every buffer: the last vector that is read may reach beyond the end."""
FUSION = replace(FULL_FUSION, epilogue_reductions=frozenset(("reduce_sum",)))


@dataclass(frozen=True)
class CpuBackend(Backend):
    """Arrays of NumPy, kernels of this package."""

    name: str = "cpu"
    fusion: FusionOptions = FUSION
    plain: ArrayBackend = field(default_factory=lambda: ArrayBackend("cpu", np, FUSION))

    def upload(self, array: Array) -> Array:
        array = np.asarray(array)
        buffer = self.allocate(array.nbytes)
        target = buffer.view(array.dtype).reshape(array.shape)
        target[...] = array
        return target

    def download(self, array: Array) -> Array:
        return array.copy()

    def write(self, target: Array, values: Array) -> None:
        target[...] = values

    def allocate(self, nbytes: int) -> Array:
        return fetched(self.plain.allocate(nbytes + _SLACK)[:nbytes])

    def view(self, buffer: Array, dtype: str, layout: Layout) -> Array:
        return self.plain.view(buffer, dtype, layout)

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        launch = launch_of(plan, kernel, memory)
        if launch is None:
            return ReferenceThunk(self.plain.bind(plan, kernel, memory))
        run = program(launch.stages, (launch.kept, memory))
        if launch.filtered:
            return WinogradThunk(run, program([launch.early]))
        return RefreshableThunk(run, program([launch.early])) if launch.early else run

    def generate_source(self, plan: Plan) -> str:
        memory = addresses(plan)

        def calls(kernel: Kernel) -> tuple[CalledFunction, ...]:
            launch = launch_of(plan, kernel, memory)
            return code(launch) if launch else ()

        return format_listing(plan, calls, ";")

    def measure_ceilings(self) -> Ceilings:
        return measured()


def cpu() -> CpuBackend:
    """The engine. Raises NetError where the environment does not say how it is to run."""
    threads(), width()
    return CpuBackend()


def launch_of(plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Launch | None:
    """The tasks of a kernel; None where the reference has to compute it."""
    try:
        return _launch(Memory(plan, memory), kernel)
    except Unsupported:
        return None


def _launch(memory: Memory, kernel: Kernel) -> Launch:
    if kernel.parts:
        whole = Launch()
        for part in kernel.parts:
            whole.beside(map_launch(memory, part))
        return whole
    if kernel.kind == "map":
        return map_launch(memory, kernel)
    if kernel.kind == "anchor":
        try:
            return anchor_launch(memory, kernel)
        except Unsupported:
            return apart_launch(memory, kernel)
    return opaque_launch(memory, kernel)

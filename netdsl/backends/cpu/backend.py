"""The CPU backend: kernels of machine code where there are some, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from netdsl.backends.array_backend import ArrayBackend
from netdsl.backends.base import (
    AsyncThunk,
    Backend,
    ReferenceThunk,
    RefreshableThunk,
    SequentialThunk,
    Thunk,
    WinogradThunk,
)
from netdsl.backends.cpu.aligned_allocator import prefault_pages
from netdsl.backends.cpu.candidates import CPU_CANDIDATES
from netdsl.backends.cpu.kernel_problem import KernelProblem
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.llvm_listing import list_called_functions, make_placeholder_buffers
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory
from netdsl.backends.cpu.product_candidates import CpuChoice
from netdsl.backends.cpu.roofline_benchmark import measure_cpu_ceilings
from netdsl.backends.cpu.task_program import make_program, merge_programs, thread_count
from netdsl.backends.host_collective import bind_host_collective
from netdsl.backends.roofline import Ceilings
from netdsl.backends.source_listing import CalledFunction, format_listing
from netdsl.lower.candidates import choose
from netdsl.plan.fusion import FULL_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.plan import Plan
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.types import Array

_SLACK_BYTES = 256
"""Bytes behind every buffer: the last vector that is read may reach beyond the end."""
CPU_FUSION = replace(FULL_FUSION, epilogue_reductions=frozenset(("reduce_sum",)))


@dataclass(frozen=True)
class CpuBackend(Backend):
    """Arrays of NumPy, kernels of this package."""

    name: str = "cpu"
    fusion: FusionOptions = CPU_FUSION
    array_backend: ArrayBackend = field(default_factory=lambda: ArrayBackend("cpu", np, CPU_FUSION))
    communicator: Communicator = ONE_RANK

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
        return prefault_pages(self.array_backend.allocate(nbytes + _SLACK_BYTES)[:nbytes])

    def view(self, buffer: Array, dtype: str, layout: Layout) -> Array:
        return self.array_backend.view(buffer, dtype, layout)

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        tasks = make_kernel_tasks(plan, kernel, memory)
        if tasks is None:
            return ReferenceThunk(self.array_backend.bind(plan, kernel, memory))
        run = make_program(tasks.stages, (tasks.keepalive, memory))
        if tasks.is_winograd:
            return WinogradThunk(run, make_program([tasks.refresh_tasks]))
        return (
            RefreshableThunk(run, make_program([tasks.refresh_tasks]))
            if tasks.refresh_tasks
            else run
        )

    def capture(self, thunks: Sequence[Thunk]) -> Thunk:
        return SequentialThunk(
            merge_programs([t.run if isinstance(t, RefreshableThunk) else t for t in thunks])
        )

    def bind_collective(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> AsyncThunk:
        return bind_host_collective(self, plan, kernel, memory)

    def with_communicator(self, communicator: Communicator) -> CpuBackend:
        return replace(self, communicator=communicator)

    def explain_choices(self, plan: Plan) -> tuple[CpuChoice, ...]:
        memory = make_placeholder_buffers(plan)
        return tuple(choose_candidate(plan, kernel, memory)[0] for kernel in plan.kernels)

    def generate_source(self, plan: Plan) -> str:
        memory = make_placeholder_buffers(plan)

        def list_functions(kernel: Kernel) -> tuple[CalledFunction, ...]:
            tasks = make_kernel_tasks(plan, kernel, memory)
            return list_called_functions(tasks) if tasks else ()

        return format_listing(plan, list_functions, ";")

    def measure_ceilings(self) -> Ceilings:
        return measure_cpu_ceilings()


def open_cpu_backend() -> CpuBackend:
    """The engine. Raises NetError where the environment does not say how it is to run."""
    thread_count(), vector_width()
    return CpuBackend()


def choose_candidate(
    plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
) -> tuple[CpuChoice, KernelProblem]:
    """The candidate that computes a kernel, and the problem to launch it with."""
    problem = KernelProblem(PlanMemory(plan, memory), kernel)
    return choose(CPU_CANDIDATES, problem, "cycles"), problem


def make_kernel_tasks(
    plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
) -> KernelTasks | None:
    """The tasks of a kernel; None where the reference has to compute it."""
    choice, problem = choose_candidate(plan, kernel, memory)
    return choice.taken.launch(problem) if choice.taken else None

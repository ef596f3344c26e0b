"""Which functions a kernel's tasks call, in LLVM's language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from netdsl.backends.cpu.llvm_jit import find_function_source
from netdsl.backends.cpu.map_kernels import KernelTasks
from netdsl.backends.cpu.row_kernel import RowKernel
from netdsl.backends.source_listing import CalledFunction
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan

_FIRST_ADDRESS, _BUFFER_ALIGNMENT = 1 << 40, 1 << 12


def make_placeholder_buffers(plan: Plan) -> Mapping[str, Any]:
    """Buffers that have addresses and no memory: enough to bind kernels which never run."""
    found, at = {}, _FIRST_ADDRESS
    for name, size in {ARENA: plan.arena_bytes, **plan.buffers}.items():
        found[name] = SimpleNamespace(ctypes=SimpleNamespace(data=at))
        at += -(-size // _BUFFER_ALIGNMENT + 1) * _BUFFER_ALIGNMENT
    return found


def list_called_functions(kernel_tasks: KernelTasks) -> tuple[CalledFunction, ...]:
    """The functions whose addresses its tasks are, or are given in their records: none of these
    numbers can be anything else."""
    found = dict.fromkeys(_iter_addresses(kernel_tasks))
    sources = (find_function_source(number) for number in found)
    return tuple(CalledFunction(name, write()) for name, write in filter(None, sources))


def _iter_addresses(kernel_tasks: KernelTasks) -> Iterator[int]:
    for tasks in (kernel_tasks.refresh_tasks, *kernel_tasks.stages):
        yield from (task[0] for task in tasks)
    yield from _iter_record_integers(kernel_tasks.keepalive)


def _iter_record_integers(item: Any) -> Iterator[int]:
    """The integers of all records in what a launch keeps."""
    if isinstance(item, list | tuple):
        for inner in item:
            yield from _iter_record_integers(inner)
    elif isinstance(item, RowKernel):
        yield from (item.function, item.prepare)
        yield from _iter_record_integers(item.keepalive)
    elif isinstance(item, np.ndarray) and item.dtype.names:
        for name in item.dtype.names:
            if item.dtype[name] == np.int64:
                yield from map(int, item[name].flat)

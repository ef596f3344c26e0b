"""Which functions a kernel's tasks call, in LLVM's language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from netdsl.backends.cpu.maps import Launch
from netdsl.backends.cpu.rows import Rows
from netdsl.backends.cpu.target import source_at
from netdsl.backends.source_listing import CalledFunction
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan

_FIRST, _APART = 1 << 40, 1 << 12


def addresses(plan: Plan) -> Mapping[str, Any]:
    """Buffers that have addresses and no memory: enough to bind kernels which never run."""
    found, at = {}, _FIRST
    for name, size in {ARENA: plan.arena_bytes, **plan.buffers}.items():
        found[name] = SimpleNamespace(ctypes=SimpleNamespace(data=at))
        at += -(-size // _APART + 1) * _APART
    return found


def code(launch: Launch) -> tuple[CalledFunction, ...]:
    """The functions whose addresses its tasks are, or are given in their records: none of these
    numbers can be anything else."""
    found = dict.fromkeys(_numbers(launch))
    sources = (source_at(number) for number in found)
    return tuple(CalledFunction(name, write()) for name, write in filter(None, sources))


def _numbers(launch: Launch) -> Iterator[int]:
    for tasks in (launch.early, *launch.stages):
        yield from (task[0] for task in tasks)
    yield from _kept(launch.kept)


def _kept(item: Any) -> Iterator[int]:
    """The whole numbers of all records in what a launch keeps."""
    if isinstance(item, list | tuple):
        for inner in item:
            yield from _kept(inner)
    elif isinstance(item, Rows):
        yield from (item.function, item.prepare)
        yield from _kept(item.kept)
    elif isinstance(item, np.ndarray) and item.dtype.names:
        for name in item.dtype.names:
            if item.dtype[name] == np.int64:
                yield from map(int, item[name].flat)

"""Where the time of a step goes: each kernel and each layer, beside what the device can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from netdsl.backends.base import Backend, ReferenceThunk, Thunk, WinogradThunk
from netdsl.backends.roofline import Ceilings
from netdsl.insight.target import Prepared
from netdsl.language.network import node_cost
from netdsl.plan.kernel import Kernel
from netdsl.plan.memory_traffic import count_moved_bytes, find_kernel_label
from netdsl.plan.plan import Plan
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.runtime.step_timing import measure_times
from netdsl.types import FLOAT_DTYPES, ITEMSIZE, Array, Graph, Node

Phase = Literal["forward", "backward", "update"]


@dataclass(frozen=True)
class Work:
    """Seconds, floating-point operations and bytes; `least` are the seconds that it would take at
    the device's ceilings."""

    seconds: float
    flops: int
    bytes: int
    least: float

    @property
    def share(self) -> float:
        """Of what the device can do; above 1 where a convolution needs fewer operations than its
        definition has, and where the device does more than it was seen to do before."""
        return self.least / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, float]:
        seconds = self.seconds or float("nan")
        return {
            "ms": 1e3 * self.seconds,
            "gflops": self.flops / seconds / 1e9,
            "gbytes": self.bytes / seconds / 1e9,
            "share": self.share,
        }


def together(works: Iterable[Work]) -> Work:
    rows = [(w.seconds, w.flops, w.bytes, w.least) for w in works]
    seconds, flops, moved_, least = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Work(sum(seconds), sum(flops), sum(moved_), sum(least))


@dataclass(frozen=True)
class TimedKernel:
    """A kernel's work. It counts for the layer of its main node, whatever else is fused into it.
    Numbers of `itemsize` bytes decide its limit; one that is `filtered` is a convolution by minimal
    filtering, which needs fewer operations than it is counted with."""

    name: str
    kind: str
    layer: str
    phase: Phase
    work: Work
    by_reference: bool
    itemsize: int = 4
    filtered: bool = False

    def within(self, limits: Ceilings) -> TimedKernel:
        """The same, held against other limits."""
        w = self.work
        least = limits.min_seconds(w.flops, w.bytes, self.itemsize)
        return replace(self, work=replace(w, least=least))

    def as_json(self) -> dict[str, Any]:
        names = {"name": self.name, "kind": self.kind, "layer": self.layer, "phase": self.phase}
        told = {"by_reference": self.by_reference, "minimal_filtering": self.filtered}
        return names | self.work.as_json() | told


@dataclass(frozen=True)
class TimedLayer:
    """The kernels of a layer; those of none, such as the loss, go by their node's first word."""

    name: str
    kernels: tuple[TimedKernel, ...]

    @property
    def work(self) -> Work:
        return together(k.work for k in self.kernels)

    def seconds(self, phase: Phase) -> float:
        return sum(k.work.seconds for k in self.kernels if k.phase == phase)

    def as_json(self) -> dict[str, Any]:
        phases: tuple[Phase, ...] = ("forward", "backward", "update")
        own = {f"{phase}_ms": 1e3 * self.seconds(phase) for phase in phases}
        return {"name": self.name} | own | self.work.as_json()


@dataclass(frozen=True)
class Timing:
    """A step on a device; kernels and layers, the slowest first."""

    title: str
    device: str
    batch: int
    seconds: float
    ceilings: Ceilings
    kernels: tuple[TimedKernel, ...]

    @property
    def layers(self) -> tuple[TimedLayer, ...]:
        found: dict[str, list[TimedKernel]] = {}
        for k in self.kernels:
            found.setdefault(k.layer, []).append(k)
        layers = (TimedLayer(name, tuple(ks)) for name, ks in found.items())
        return tuple(sorted(layers, key=lambda x: -x.work.seconds))

    @property
    def work(self) -> Work:
        return together(k.work for k in self.kernels)

    def with_limits_seen(self) -> Timing:
        """The same, with limits that no kernel passes but by minimal filtering: what a kernel was
        seen to do, the device can do."""
        limits = self.ceilings
        for k in self.kernels:
            if k.work.seconds:
                limits = limits.with_bandwidth(k.work.bytes / k.work.seconds, k.work.bytes)
                if not k.filtered:
                    limits = limits.with_flops(k.work.flops / k.work.seconds, k.itemsize)
        kernels = tuple(k.within(limits) for k in self.kernels)
        return replace(self, ceilings=limits, kernels=kernels)

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds

    def as_json(self) -> dict[str, Any]:
        narrow = self.ceilings.flops_16bit
        return {
            "of": self.title,
            "device": self.device,
            "ms_per_step": 1e3 * self.seconds,
            "images_per_second": self.images_per_second,
            "kernels_ms": 1e3 * self.work.seconds,
            "gflops_limit": self.ceilings.flops / 1e9,
            "gflops_limit_16_bits": narrow / 1e9 if narrow else None,
            "gbytes_limit": self.ceilings.bandwidth / 1e9,
            "gbytes_limit_in_caches": self.ceilings.bandwidth_for(0) / 1e9,
            "kernels": [k.as_json() for k in self.kernels],
            "layers": [x.as_json() for x in self.layers],
        }


def timing(found: Prepared, backend: Backend, rounds: int) -> Timing:
    """Runs a prepared net on made-up images with weights as they are drawn, and medians of what
    each kernel takes. The learning rate is zero: the numbers stay what they are."""
    executor = _executor(found, backend)
    executor.run(dict(_inputs(executor.plan.graph)))
    measured = measure_times(executor, rounds)
    ceilings = backend.measure_ceilings()
    layers = tuple(layer.path for layer in found.network.layers)
    named = _Names(executor.plan, layers, ceilings)
    kernels = (
        named.timed(kernel, seconds, thunk)
        for kernel, seconds, thunk in zip(
            executor.plan.kernels, measured.kernels, executor.kernels, strict=True
        )
    )
    slowest = tuple(sorted(kernels, key=lambda k: -k.work.seconds))
    batch = found.network.batch
    return Timing(found.title, backend.name, batch, measured.step, ceilings, slowest)


def _executor(found: Prepared, backend: Backend) -> Executor:
    state = State(backend)
    if found.folded is None:
        state.initialise(found.graph.states, seed=1)
        return Executor(found.graph, backend, state)
    state.initialise(found.network.graph.states, seed=1)
    folded = FoldedExecutor(found.folded, backend, state)
    folded.refresh()
    return folded.main


def _inputs(graph: Graph) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(1)
    for node in graph.inputs:
        yield node.name, _made_up(node, rng)


def _made_up(node: Node, rng: np.random.Generator) -> Array:
    """Images at random, of labels the first, each sample's weight one, scalars zero."""
    kind = node.type
    if kind.rank > 1 and kind.dtype in FLOAT_DTYPES:
        return rng.standard_normal(kind.shape, dtype=np.float32).astype(kind.dtype)
    if kind.rank > 1:
        return rng.integers(0, 256, kind.shape).astype(kind.dtype)
    one = kind.rank == 1 and kind.dtype in FLOAT_DTYPES
    return np.full(kind.shape, float(one)).astype(kind.dtype)


class _Names:
    """Whose kernels a plan's are."""

    def __init__(self, plan: Plan, layers: Sequence[str], ceilings: Ceilings) -> None:
        self.graph = plan.graph
        self.layers = frozenset(layers)
        self.ceilings = ceilings
        self.forward = self.graph.backward_slice(*self.graph.outputs.values())

    def timed(self, kernel: Kernel, seconds: float, thunk: Thunk) -> TimedKernel:
        costs = [node_cost(self.graph, self.graph[n]) for n in kernel.nodes]
        flops = sum(2 * c.macs + c.flops for c in costs)
        size = count_moved_bytes(self.graph, kernel)
        name = self._main(kernel)
        # what a product computes with decides what computes it
        read = [self.graph[a] for a in self.graph[name].args] if kernel.kind == "anchor" else []
        itemsize = max((ITEMSIZE[n.type.dtype] for n in read), default=4)
        work = Work(seconds, flops, size, self.ceilings.min_seconds(flops, size, itemsize))
        return TimedKernel(
            name,
            find_kernel_label(self.graph, kernel),
            name if kernel.parts else self.layer(name),
            self._phase(kernel, name),
            work,
            isinstance(thunk, ReferenceThunk),
            itemsize,
            isinstance(thunk, WinogradThunk),
        )

    def _main(self, kernel: Kernel) -> str:
        """The node that a kernel goes by: its product, else the last one it writes."""
        return kernel.name if kernel.kind == "anchor" or kernel.parts else kernel.outputs[-1]

    def _phase(self, kernel: Kernel, name: str) -> Phase:
        if kernel.parts:
            return "forward" if name == "early" else "update"
        if name.split(".")[0] == "update":
            return "update"
        backward = name not in self.forward and name.startswith("d.")
        return "backward" if backward else "forward"

    def layer(self, name: str) -> str:
        """The layer that a node belongs to, its gradient (`d.`) and its update too."""
        words = name.split(".")
        for first in range(len(words)):
            for last in range(len(words), first, -1):
                if ".".join(words[first:last]) in self.layers:
                    return ".".join(words[first:last])
        return words[1] if words[0] == "d" and len(words) > 1 else words[0]

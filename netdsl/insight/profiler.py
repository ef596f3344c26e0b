"""Where the time of a step goes, by kernel and layer, compared with the device's limits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from netdsl.backends.base import Backend, ReferenceThunk, Thunk, WinogradThunk
from netdsl.backends.roofline import Ceilings
from netdsl.insight.compile_target import PreparedGraph
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
class Measurement:
    """Seconds, floating-point operations and bytes; `roofline_seconds` is the time at the device's
    ceilings."""

    seconds: float
    flops: int
    bytes: int
    roofline_seconds: float

    @property
    def efficiency(self) -> float:
        """The fraction of the device's ceiling that is reached; above 1 if a convolution needs
        fewer operations than its definition has, or if the device exceeds the ceiling measured
        before."""
        return self.roofline_seconds / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, float]:
        seconds = self.seconds or float("nan")
        return {
            "ms": 1e3 * self.seconds,
            "gflops": self.flops / seconds / 1e9,
            "gbytes": self.bytes / seconds / 1e9,
            "share": self.efficiency,
        }


def sum_measurements(measurements: Iterable[Measurement]) -> Measurement:
    rows = [(w.seconds, w.flops, w.bytes, w.roofline_seconds) for w in measurements]
    seconds, flops, moved_, roofline_seconds = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Measurement(sum(seconds), sum(flops), sum(moved_), sum(roofline_seconds))


@dataclass(frozen=True)
class TimedKernel:
    """The measurement of a kernel. It counts towards the layer of its main node, whatever else is
    fused into it. `itemsize`, the bytes per number, selects its ceiling; if `is_filtered`, it is a
    convolution by minimal filtering, which needs fewer operations than are counted for it."""

    name: str
    kind: str
    layer: str
    phase: Phase
    measurement: Measurement
    is_by_reference: bool
    itemsize: int = 4
    is_filtered: bool = False

    def with_ceilings(self, ceilings: Ceilings) -> TimedKernel:
        """The same kernel, compared with other ceilings."""
        w = self.measurement
        roofline_seconds = ceilings.min_seconds(w.flops, w.bytes, self.itemsize)
        return replace(self, measurement=replace(w, roofline_seconds=roofline_seconds))

    def as_json(self) -> dict[str, Any]:
        names = {"name": self.name, "kind": self.kind, "layer": self.layer, "phase": self.phase}
        flags = {"by_reference": self.is_by_reference, "minimal_filtering": self.is_filtered}
        return names | self.measurement.as_json() | flags


@dataclass(frozen=True)
class TimedLayer:
    """The kernels of a layer; those outside any layer, such as the loss, are grouped by the first
    word of their node."""

    name: str
    kernels: tuple[TimedKernel, ...]

    @property
    def measurement(self) -> Measurement:
        return sum_measurements(k.measurement for k in self.kernels)

    def phase_seconds(self, phase: Phase) -> float:
        return sum(k.measurement.seconds for k in self.kernels if k.phase == phase)

    def as_json(self) -> dict[str, Any]:
        phases: tuple[Phase, ...] = ("forward", "backward", "update")
        phase_times = {f"{phase}_ms": 1e3 * self.phase_seconds(phase) for phase in phases}
        return {"name": self.name} | phase_times | self.measurement.as_json()


@dataclass(frozen=True)
class Profile:
    """A step on a device; kernels and layers are sorted, slowest first. `memory` is the bytes of
    its arena and of all that lies outside it: images, weights and what the optimizer keeps."""

    title: str
    device: str
    batch: int
    seconds: float
    ceilings: Ceilings
    kernels: tuple[TimedKernel, ...]
    memory: int = 0

    @property
    def layers(self) -> tuple[TimedLayer, ...]:
        found: dict[str, list[TimedKernel]] = {}
        for k in self.kernels:
            found.setdefault(k.layer, []).append(k)
        layers = (TimedLayer(name, tuple(ks)) for name, ks in found.items())
        return tuple(sorted(layers, key=lambda x: -x.measurement.seconds))

    @property
    def measurement(self) -> Measurement:
        return sum_measurements(k.measurement for k in self.kernels)

    def with_observed_ceilings(self) -> Profile:
        """The same profile, with ceilings that no kernel exceeds except by minimal filtering: the
        device can do what a kernel was measured to do."""
        ceilings = self.ceilings
        for k in self.kernels:
            if k.measurement.seconds:
                ceilings = ceilings.with_bandwidth(
                    k.measurement.bytes / k.measurement.seconds, k.measurement.bytes
                )
                if not k.is_filtered:
                    ceilings = ceilings.with_flops(
                        k.measurement.flops / k.measurement.seconds, k.itemsize
                    )
        kernels = tuple(k.with_ceilings(ceilings) for k in self.kernels)
        return replace(self, ceilings=ceilings, kernels=kernels)

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
            "memory_bytes": self.memory,
            "kernels_ms": 1e3 * self.measurement.seconds,
            "gflops_limit": self.ceilings.flops / 1e9,
            "gflops_limit_16_bits": narrow / 1e9 if narrow else None,
            "gbytes_limit": self.ceilings.bandwidth / 1e9,
            "gbytes_limit_in_caches": self.ceilings.bandwidth_for(0) / 1e9,
            "kernels": [k.as_json() for k in self.kernels],
            "layers": [x.as_json() for x in self.layers],
        }


def profile_step(prepared: PreparedGraph, backend: Backend, rounds: int) -> Profile:
    """Runs a prepared net on random images with initial weights, and takes the median time of each
    kernel. The learning rate is zero, so that the values stay the same."""
    executor = _make_executor(prepared, backend)
    executor.run(dict(_make_inputs(executor.plan.graph)))
    measured = measure_times(executor, rounds)
    ceilings = backend.measure_ceilings()
    layers = tuple(layer.path for layer in prepared.network.layers)
    attribution = _KernelAttribution(executor.plan, layers, ceilings)
    kernels = (
        attribution.make_timed_kernel(kernel, seconds, thunk)
        for kernel, seconds, thunk in zip(
            executor.plan.kernels, measured.kernels, executor.kernels, strict=True
        )
    )
    slowest = tuple(sorted(kernels, key=lambda k: -k.measurement.seconds))
    batch = prepared.network.batch
    memory = executor.plan.arena_bytes + sum(executor.plan.buffers.values())
    return Profile(prepared.title, backend.name, batch, measured.step, ceilings, slowest, memory)


def measure_step(prepared: PreparedGraph, backend: Backend, rounds: int) -> tuple[float, int]:
    """The median seconds of a whole step on random images, and the bytes of its arena."""
    executor = _make_executor(prepared, backend)
    executor.run(dict(_make_inputs(executor.plan.graph)))
    return measure_times(executor, rounds).step, executor.plan.arena_bytes


def _make_executor(prepared: PreparedGraph, backend: Backend) -> Executor:
    state = State(backend)
    if prepared.folded is None:
        state.initialise(prepared.graph.states, seed=1)
        return Executor(prepared.graph, backend, state)
    state.initialise(prepared.network.graph.states, seed=1)
    folded = FoldedExecutor(prepared.folded, backend, state)
    folded.refresh()
    return folded.main


def _make_inputs(graph: Graph) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(1)
    for node in graph.inputs:
        yield node.name, _make_input(node, rng)


def _make_input(node: Node, rng: np.random.Generator) -> Array:
    """Random images, the first label, weight one for each sample, zero for scalars."""
    kind = node.type
    if kind.rank > 1 and kind.dtype in FLOAT_DTYPES:
        return rng.standard_normal(kind.shape, dtype=np.float32).astype(kind.dtype)
    if kind.rank > 1:
        return rng.integers(0, 256, kind.shape).astype(kind.dtype)
    one = kind.rank == 1 and kind.dtype in FLOAT_DTYPES
    return np.full(kind.shape, float(one)).astype(kind.dtype)


@dataclass(frozen=True)
class KernelWork:
    """What a kernel does: its floating-point operations, the bytes that it moves, and the bytes per
    number, which select its ceiling."""

    flops: int
    bytes: int
    itemsize: int

    def min_seconds(self, ceilings: Ceilings) -> float:
        return ceilings.min_seconds(self.flops, self.bytes, self.itemsize)


def count_kernel_work(graph: Graph, kernel: Kernel) -> KernelWork:
    """Counts what the nodes of a kernel cost by the table of operators."""
    costs = [node_cost(graph, graph[n]) for n in kernel.nodes]
    flops = sum(2 * c.macs + c.flops for c in costs)
    # the type of a product's operands decides which unit computes it
    read = [graph[a] for a in graph[kernel.name].args] if kernel.kind == "anchor" else []
    itemsize = max((ITEMSIZE[n.type.dtype] for n in read), default=4)
    return KernelWork(flops, count_moved_bytes(graph, kernel), itemsize)


class _KernelAttribution:
    """Assigns the kernels of a plan to layers and phases."""

    def __init__(self, plan: Plan, layers: Sequence[str], ceilings: Ceilings) -> None:
        self.graph = plan.graph
        self.layers = frozenset(layers)
        self.ceilings = ceilings
        self.forward = self.graph.backward_slice(*self.graph.outputs.values())

    def make_timed_kernel(self, kernel: Kernel, seconds: float, thunk: Thunk) -> TimedKernel:
        work = count_kernel_work(self.graph, kernel)
        name = self._find_main_node(kernel)
        measurement = Measurement(seconds, work.flops, work.bytes, work.min_seconds(self.ceilings))
        return TimedKernel(
            name,
            find_kernel_label(self.graph, kernel),
            name if kernel.parts else find_layer(self.layers, name),
            self._find_phase(kernel, name),
            measurement,
            isinstance(thunk, ReferenceThunk),
            work.itemsize,
            isinstance(thunk, WinogradThunk),
        )

    def _find_main_node(self, kernel: Kernel) -> str:
        """The node that a kernel is named after: its product, else the last one it writes."""
        return kernel.name if kernel.kind == "anchor" or kernel.parts else kernel.outputs[-1]

    def _find_phase(self, kernel: Kernel, name: str) -> Phase:
        if kernel.parts:
            return "forward" if name == "early" else "update"
        if name.split(".")[0] == "update":
            return "update"
        backward = name not in self.forward and name.startswith("d.")
        return "backward" if backward else "forward"


def find_layer(layers: Collection[str], name: str) -> str:
    """The layer that a node belongs to; also for nodes of its gradient (`d.`) and its update."""
    parts = name.split(".")
    for first in range(len(parts)):
        for last in range(len(parts), first, -1):
            if ".".join(parts[first:last]) in layers:
                return ".".join(parts[first:last])
    return parts[1] if parts[0] == "d" and len(parts) > 1 else parts[0]

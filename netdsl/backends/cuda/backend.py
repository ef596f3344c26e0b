"""The CUDA backend: binds every kernel of a plan to launches at fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from netdsl.backends.arrays import ArrayBackend
from netdsl.backends.cuda import convolution, product
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.generate import generated
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import SCRATCH, Address, Launch, Word
from netdsl.plan.fusion import FUSED, Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array

CUDA = replace(
    FUSED,
    epilogue=frozenset(),
    operands=0,
    sums=frozenset(),
    halo=False,
    align=256,
    concat_align=16,
)
"""Products alone, everything around them in generated maps: what was fastest on an H100."""


@dataclass(frozen=True)
class Captured:
    """A thunk that only launches: a graph may hold it."""

    run: Thunk

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class CudaBackend(ArrayBackend):
    """Kernels on one GPU. What has no kernel is computed by the operators' references on CuPy's
    arrays; `fallbacks` says what that was."""

    device: Any = None
    fallbacks: list[str] = field(default_factory=list)

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        thunks = self._bound(plan, kernel, {**memory, SCRATCH: self.device.scratch})
        if thunks is None:
            self.fallbacks.append(f"{kernel.name}: {plan.graph[kernel.nodes[-1]].op}")
            return super().bind(plan, kernel, memory)
        return Captured(_in_turn(thunks))

    def write(self, target: Array, values: Array) -> None:
        if not isinstance(values, np.ndarray):
            target[...] = values
        elif target.flags.c_contiguous and values.dtype == target.dtype:
            target.set(np.asarray(values, order="C"))
        else:
            super().write(target, values)

    def _bound(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> list[Thunk] | None:
        if kernel.kind == "anchor":
            return self._anchor(plan, kernel, memory)
        found = generated(plan, kernel, self.device.multiprocessors)
        return None if found is None else [self._launch(launch, memory) for launch in found]

    def _anchor(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> list[Thunk] | None:
        """A product, then what else its kernel computes."""
        if len(kernel.nodes) > 1:
            return None
        node = plan.graph[kernel.name]
        args, out = [plan.placements[a] for a in node.args], plan.placements[node.name]
        try:
            return [self._product(plan, kernel.name, args, out, memory)]
        except (RuntimeError, Unmappable):
            return None

    def _product(
        self,
        plan: Plan,
        name: str,
        args: Sequence[Placement],
        out: Placement,
        memory: Mapping[str, Array],
    ) -> Thunk:
        node = plan.graph[name]
        if out.geometry is not None:
            raise Unmappable("a value owns zeros around it")
        if node.op == "matmul":
            x, w = args
            pointers = [_pointer(p, memory) for p in (w, x, out)]
            return product.bound(self.device, product.product_of(x, w, out), pointers)
        places = [*args, out]
        if not convolution.supported(places):
            raise Unmappable("cuDNN does not compute with this type")
        pointers = [_pointer(p, memory) for p in places]
        return convolution.bound(self.device, node, places, pointers)

    def _launch(self, launch: Launch, memory: Mapping[str, Array]) -> Thunk:
        """A generated kernel with its arguments; its compilation may still be under way."""
        compiled = self.device.compiled(launch)
        tables = [
            self.xp.asarray(np.array([_value(w, memory) for w in t], dtype=np.int64))
            for t in launch.tables
        ]
        words = [*(t.data.ptr for t in tables), *(_value(w, memory) for w in launch.words)]
        given = tuple(np.int64(w) for w in words)
        grid, block = launch.grid, (launch.threads,)
        kept = tables  # lives as long as the thunk

        def run() -> None:
            compiled.result()(grid, block, given)

        run.kept = kept  # type: ignore[attr-defined]
        return run

    def capture(self, thunks: Sequence[Callable[[], None]]) -> Thunk:
        """All thunks as one function. Its first call runs them one by one; the next one captures
        them as a graph, several where a fallback stands between, and launches that."""
        return _Step(self.device, thunks)


class _Step:
    """A sequence of thunks that becomes graphs when it runs for the second time."""

    def __init__(self, device: Device, thunks: Sequence[Thunk]) -> None:
        self.device = device
        self.thunks = list(thunks)
        self.runs = 0
        self.parts: list[Thunk] = []

    def __call__(self) -> None:
        self.runs += 1
        if self.runs == 2:
            self.parts = list(self._captured())
        for thunk in self.parts or self.thunks:
            thunk()

    def _captured(self) -> Any:
        group: list[Thunk] = []
        for thunk in [*self.thunks, None]:
            if isinstance(thunk, Captured):
                group.append(thunk)
                continue
            if group:
                graph = self.device.captured(_in_turn(group))
                yield lambda graph=graph: graph.launch(self.device.stream)
                group = []
            if thunk is not None:
                yield thunk


def _in_turn(thunks: Sequence[Thunk]) -> Thunk:
    kept = tuple(thunks)

    def run() -> None:
        for thunk in kept:
            thunk()

    return run


def _pointer(place: Placement, memory: Mapping[str, Array]) -> int:
    return int(memory[place.buffer].data.ptr) + place.start


def _value(word: Word, memory: Mapping[str, Array]) -> int:
    if isinstance(word, Address):
        return int(memory[word.buffer].data.ptr) + word.start
    return word


def cuda(fusion: Fusion = CUDA) -> CudaBackend:
    """The first GPU. Raises NetError with what to install, or what is missing."""
    device = Device()
    return CudaBackend("cuda", device.cupy, fusion, device)

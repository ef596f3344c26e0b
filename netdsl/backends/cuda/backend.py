"""The CUDA backend: binds every kernel of a plan to launches at fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from netdsl.backends.array_backend import ArrayBackend, address
from netdsl.backends.base import ReferenceThunk, SequentialThunk
from netdsl.backends.cuda import picking, reading
from netdsl.backends.cuda.anchors import Anchors
from netdsl.backends.cuda.convolution import WORTH_FUSING
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.fallback import foreign, on_the_host
from netdsl.backends.cuda.generate import generated
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import SCRATCH, WORKSPACE, Address, Launch, Word
from netdsl.backends.cuda.listing import source
from netdsl.backends.cuda.upload import Coming
from netdsl.backends.lazy_batch import DeviceImages, LazyBatch, materialize
from netdsl.plan.fusion import FULL_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan
from netdsl.types import Array

_MOST_PINNED = 1 << 20
"""Bytes that are copied through pinned memory, so that nothing waits for them to be read."""
_MOST_HELD = 0.25
"""Of the free memory, what a set of images may take."""
_ONTO = frozenset(("add", "cast"))
CUDA = replace(
    FULL_FUSION,
    epilogue_ops={
        "conv2d": _ONTO | {"relu"},
        "conv2d_dgrad": _ONTO | {"greater", "select"},
        "matmul": _ONTO | {"relu"},
    },
    max_epilogue_operands=2,
    in_place_products=frozenset(("matmul",)),
    min_epilogue_bytes=dict.fromkeys(("conv2d", "conv2d_dgrad"), WORTH_FUSING),
    epilogue_reductions=frozenset(("reduce_sum", "cast")),
    max_early_bytes=4 << 20,
    can_batch_totals=True,
    has_halo=False,
    alignment=256,
    concat_alignment=16,
)
"""What cuBLASLt and cuDNN apply to a product, where that is faster than a generated map after it;
sums are taken by that map. Everything else is generated too."""


@dataclass(frozen=True)
class Captured:
    """A thunk that only launches, so that a graph may hold it; `kept` are the buffers that its
    addresses lie in."""

    run: Thunk
    kept: object

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class CudaBackend(ArrayBackend):
    """Kernels on one GPU. What has no kernel is computed by the operators' references on CuPy's
    arrays; `fallbacks` says what that was."""

    device: Any = None
    fallbacks: list[str] = field(default_factory=list)
    anchors: dict[tuple[int, int], Anchors] = field(default_factory=dict)

    def with_tuning(self, seconds: float) -> CudaBackend:
        """Spends no more than that on timing what could compute the same."""
        return replace(self, device=self.device.tuned(seconds), fallbacks=[], anchors={})

    def as_deterministic(self) -> CudaBackend:
        """Takes only what gives the same bits on every run."""
        return replace(self, device=self.device.repeating(), fallbacks=[], anchors={})

    def free_bytes(self) -> int:
        """What can still be allocated."""
        pool = self.xp.get_default_memory_pool()
        free, _ = self.xp.cuda.runtime.memGetInfo()
        there = int(free) + int(pool.free_bytes())
        limit = int(pool.get_limit())
        return min(there, limit - int(pool.used_bytes())) if limit else there

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        self.device.stream.use()  # CuPy launches and allocates on the stream in use
        own = {SCRATCH: self.device.scratch, WORKSPACE: self.device.workspace}
        thunks = self._bound(plan, kernel, {**memory, **own})
        if thunks is None:
            self.fallbacks.append(f"{kernel.name}: {plan.graph[kernel.nodes[-1]].op}")
            return self._by_reference(plan, kernel, memory)
        return Captured(SequentialThunk(tuple(thunks)), (memory, tuple(self.anchors.values())))

    def _by_reference(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        if foreign(plan, kernel) and kernel.nodes:
            run = on_the_host(self.xp, plan, kernel, memory)
        else:
            run = super().bind(plan, kernel, memory)
        stream = self.device.stream

        def alone() -> None:
            stream.use()
            stream.synchronize()
            run()
            stream.synchronize()

        return ReferenceThunk(alone)

    def generate_source(self, plan: Plan) -> str:
        return source(plan, self.device.multiprocessors)

    def measure_seconds(self, thunks: Sequence[Thunk]) -> list[float]:
        """What a graph may hold is replayed as one, so that its launches cost nothing."""
        device = self.device
        device.stream.use()
        ways = (device.milliseconds if isinstance(t, Captured) else device.elapsed for t in thunks)
        return [way(thunk) / 1e3 for way, thunk in zip(ways, thunks, strict=True)]

    def upload(self, array: Array) -> Array:
        self.device.stream.use()
        # CuPy has no type of its own for bfloat16: kernels read the bits
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        return super().upload(bits)

    def allocate(self, nbytes: int) -> Array:
        self.device.stream.use()
        return super().allocate(nbytes)

    def download(self, array: Array) -> Array:
        self.device.stream.use()
        return super().download(array)

    def cache_images(self, images: Array) -> DeviceImages | None:
        """Puts a set of images on the GPU, so that batches are picked from it there; not where it
        would take much of what is free."""
        if images.nbytes > self.free_bytes() * _MOST_HELD:
            return None
        self.device.stream.use()
        try:
            there = self.xp.empty(images.shape, images.dtype)
        except MemoryError:  # what is free lies in pieces
            return None
        there.set(np.ascontiguousarray(images), self.device.stream)  # without pinning all of it
        return DeviceImages(images, there)

    def start_readback(self, numbers: Mapping[str, Array]) -> reading.Asked:
        """Asks for numbers; it does not wait for them."""
        return self.device.readings.begin(numbers, self.device.stream)

    def start_upload(self, values: Array | LazyBatch) -> Coming:
        """Sends what a later step will be given; it may be written then in place of `values`."""
        if isinstance(values, LazyBatch):
            return self.device.uploads.send(values.to_table(), values)
        return self.device.uploads.send(values)

    def write(self, target: Array, values: Any) -> None:
        self.device.stream.use()
        if isinstance(values, LazyBatch):
            values = self.start_upload(values)
        if isinstance(values, Coming):
            if _alike(target, values.values):
                take = partial(self._taken, values.values, target)
                self.device.uploads.pass_on(values, take, self.device.stream)
                return
            self.device.uploads.pass_on(values, lambda there: None, self.device.stream)
            values = materialize(values.values)
        if not isinstance(values, np.ndarray):
            target[...] = values
        elif _alike(target, values) and values.nbytes <= _MOST_PINNED:
            self.device.uploads.copy(values, target, self.device.stream)
        elif _alike(target, values):
            target.set(np.asarray(values, order="C"), self.device.stream)
        else:
            super().write(target, values)

    def _taken(self, values: Array | LazyBatch, target: Array, there: Array) -> None:
        """Fills `target` with what has come, or by what it is to be picked by."""
        if isinstance(values, LazyBatch):
            at = (address(x) for x in (values.source.device_array, there, target))
            self._launch(picking.launch(values, *at), {})()
        else:
            target.data.copy_from_device_async(there.data, there.nbytes, self.device.stream)

    def _bound(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> list[Thunk] | None:
        if kernel.kind == "anchor":
            return self._anchor(plan, kernel, memory)
        found = generated(plan, kernel, self.device.multiprocessors)
        return None if found is None else [self._launch(launch, memory) for launch in found]

    def _anchor(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> list[Thunk] | None:
        """A product, then what no library computes with it as a generated map."""
        key = (id(plan), address(memory[ARENA]))
        if key not in self.anchors:
            self.anchors.clear()  # one plan is bound after the other
            self.anchors[key] = Anchors(self.device, plan, memory)
        anchors = self.anchors[key]
        try:
            return anchors.bound(kernel, self._launch)
        except Unmappable:
            return None

    def _launch(self, launch: Launch, memory: Mapping[str, Array]) -> Thunk:
        """A generated kernel with its arguments; its compilation may still be under way."""
        compiled = self.device.compiled(launch)
        tables = [
            self.xp.asarray(np.array([_value(w, memory) for w in t], dtype=np.int64))
            for t in launch.tables
        ]
        words = [*(address(t) for t in tables), *(_value(w, memory) for w in launch.words)]
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
        if self.device.tuner.choices:  # everything is bound by now
            self.device.tuner.choices.save()
        return _Step(self.device, thunks)


class _Step:
    """A sequence of thunks that becomes graphs when it runs for the second time."""

    def __init__(self, device: Device, thunks: Sequence[Thunk]) -> None:
        self.device = device
        self.thunks = list(thunks)
        self.runs = 0
        self.parts: list[Thunk] = []

    def __call__(self) -> None:
        self.device.stream.use()
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
                graph = self.device.captured(SequentialThunk(tuple(group)))
                yield lambda graph=graph: graph.launch(self.device.stream)
                group = []
            if thunk is not None:
                yield thunk


def _alike(target: Array, values: Array | LazyBatch) -> bool:
    """Whether one is the other's bytes."""
    return target.flags.c_contiguous and values.dtype == target.dtype


def _value(word: Word, memory: Mapping[str, Array]) -> int:
    if isinstance(word, Address):
        return address(memory[word.buffer]) + word.start
    return word


def cuda(fusion: FusionOptions = CUDA) -> CudaBackend:
    """The first GPU. Raises NetError with what to install, or what is missing."""
    device = Device()
    return CudaBackend("cuda", device.cupy, fusion, device)

"""The CUDA backend: binds every kernel of a plan to launches with fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from netdsl.backends.array_backend import ArrayBackend, address
from netdsl.backends.base import (
    MAX_STEPS_IN_FLIGHT,
    AsyncThunk,
    ReferenceThunk,
    SequentialThunk,
)
from netdsl.backends.cuda import image_gather, readback
from netdsl.backends.cuda.anchor_binder import AnchorBinder
from netdsl.backends.cuda.async_upload import PendingUpload
from netdsl.backends.cuda.captured_step import CapturableThunk, CapturedStep
from netdsl.backends.cuda.choices import explain_choices
from netdsl.backends.cuda.cuda_launch import SCRATCH, WORKSPACE, Address, CudaLaunch, KernelArgument
from netdsl.backends.cuda.cuda_source import generate_cuda_source
from netdsl.backends.cuda.cudnn_convolution import MIN_EPILOGUE_BYTES
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.fallback import bind_on_host, needs_host
from netdsl.backends.cuda.gpu_ranks import GpuRanks, join_ranks
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.backends.cuda.nccl_collective import bind_nccl_collective, place_values
from netdsl.backends.lazy_batch import DeviceImages, LazyBatch, materialize
from netdsl.lower.candidates import CandidateChoice
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.fusion import FULL_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan
from netdsl.ranks.communicator import Communicator
from netdsl.ranks.launcher import find_local_rank
from netdsl.types import Array

_MAX_PINNED_BYTES = 1 << 20
"""Arrays up to this size are copied through pinned memory, so that the host need not wait."""
_MAX_IMAGE_CACHE_FRACTION = 0.25
"""The share of the free memory that a set of images may occupy."""
_COMMON_EPILOGUE_OPS = frozenset(("add", "cast"))
CUDA_FUSION = replace(
    FULL_FUSION,
    epilogue_ops={
        "conv2d": _COMMON_EPILOGUE_OPS | {"relu"},
        "conv2d_dgrad": _COMMON_EPILOGUE_OPS | {"greater", "select"},
        "matmul": _COMMON_EPILOGUE_OPS | {"relu"},
    },
    max_epilogue_operands=2,
    in_place_products=frozenset(("matmul",)),
    min_epilogue_bytes=dict.fromkeys(("conv2d", "conv2d_dgrad"), MIN_EPILOGUE_BYTES),
    epilogue_reductions=frozenset(("reduce_sum", "cast")),
    max_early_bytes=4 << 20,
    can_batch_totals=True,
    has_halo=False,
    alignment=256,
    concat_alignment=16,
)
"""What cuBLASLt and cuDNN apply to a product where that is faster than a generated map after it.
Reductions belong to that map, and everything else is generated as well."""


@dataclass(frozen=True)
class CudaBackend(ArrayBackend):
    """Runs kernels on one GPU. Operators without a kernel run by their references on CuPy arrays
    and are listed in `fallbacks`."""

    device: Device = field(kw_only=True)
    fallbacks: list[str] = field(default_factory=list)
    anchor_binders: dict[tuple[int, int], AnchorBinder] = field(default_factory=dict)
    ranks: GpuRanks | None = None
    """What connects the GPU with those of other ranks, if there are any."""
    steps_in_flight: int = MAX_STEPS_IN_FLIGHT

    def with_communicator(self, communicator: Communicator) -> CudaBackend:
        """Returns the backend as that of one of several ranks. Raises NetError on all of them if
        their GPUs cannot train together."""
        ranks = None if communicator.is_alone else join_ranks(self.device, communicator)
        return replace(
            self, communicator=communicator, ranks=ranks, fallbacks=[], anchor_binders={}
        )

    def with_tuning(self, seconds: float) -> CudaBackend:
        """Returns the backend with this many seconds to time alternatives."""
        return replace(
            self, device=self.device.with_timing_budget(seconds), fallbacks=[], anchor_binders={}
        )

    def as_deterministic(self) -> CudaBackend:
        """Returns the backend restricted to kernels that give the same bits on every run."""
        return replace(self, device=self.device.as_deterministic(), fallbacks=[], anchor_binders={})

    def free_bytes(self) -> int:
        """Returns how much memory can still be allocated."""
        pool = self.xp.get_default_memory_pool()
        free, _ = self.xp.cuda.runtime.memGetInfo()
        available = int(free) + int(pool.free_bytes())
        limit = int(pool.get_limit())
        return min(available, limit - int(pool.used_bytes())) if limit else available

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        self._begin_plan(plan)
        own = {SCRATCH: self.device.scratch, WORKSPACE: self.device.workspace}
        thunks = self._bind_launches(plan, kernel, {**memory, **own})
        if thunks is None:
            self.fallbacks.append(f"{kernel.name}: {plan.graph[kernel.nodes[-1]].op}")
            return self._bind_reference(plan, kernel, memory)
        return CapturableThunk(
            SequentialThunk(tuple(thunks)), (memory, tuple(self.anchor_binders.values()))
        )

    def _begin_plan(self, plan: Plan) -> None:
        """Before a kernel of a plan is bound."""
        self.device.stream.use()  # CuPy launches and allocates on the current stream
        if self.ranks is not None:
            self.ranks.begin_plan(self.device, plan)

    def bind_collective(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> AsyncThunk:
        self._begin_plan(plan)
        values = place_values(plan, kernel)
        staging = {name: self.allocate(size) for name, size in values.staging_sizes().items()}
        nccl = self.ranks.open_nccl(self.device.deterministic) if self.ranks else None
        return bind_nccl_collective(
            self.device, nccl, values, {**memory, **staging}, self._bind_launch
        )

    def _bind_reference(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
        if needs_host(plan, kernel) and kernel.nodes:
            run = bind_on_host(self.xp, plan, kernel, memory)
        else:
            run = super().bind(plan, kernel, memory)
        stream = self.device.stream

        def run_synchronized() -> None:
            stream.use()
            stream.synchronize()
            run()
            stream.synchronize()

        return ReferenceThunk(run_synchronized)

    def explain_choices(self, plan: Plan) -> tuple[CandidateChoice[Any, Any], ...]:
        return explain_choices(plan, self.device.multiprocessors)

    def generate_source(self, plan: Plan) -> str:
        return generate_cuda_source(plan, self.device.multiprocessors)

    def measure_seconds(self, thunks: Sequence[Thunk]) -> list[float]:
        """Times capturable thunks by replaying a CUDA graph, so that launches cost nothing."""
        device = self.device
        device.stream.use()
        timers = (
            device.measure_milliseconds
            if isinstance(t, CapturableThunk)
            else device.elapsed_milliseconds
            for t in thunks
        )
        return [timer(thunk) / 1e3 for timer, thunk in zip(timers, thunks, strict=True)]

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
        """Copies a set of images to the GPU, so that batches can be gathered from it there; returns
        None if it would occupy too much of the free memory."""
        if images.nbytes > self.free_bytes() * _MAX_IMAGE_CACHE_FRACTION:
            return None
        self.device.stream.use()
        try:
            device_array = self.xp.empty(images.shape, images.dtype)
        except MemoryError:  # the free memory is fragmented
            return None
        contiguous = np.ascontiguousarray(images)
        device_array.set(contiguous, self.device.stream)  # without pinning all of it
        return DeviceImages(images, device_array)

    def start_readback(self, outputs: Mapping[str, Array]) -> readback.PendingReadback:
        """Starts to copy outputs to the host and does not wait for them."""
        self.device.stream.use()
        dense = {
            name: x if x.flags.c_contiguous else self.xp.array(x, order="C")
            for name, x in outputs.items()
        }
        return self.device.readbacks.start(dense, self.device.stream)

    def start_upload(self, values: Array | LazyBatch) -> PendingUpload:
        """Starts to upload an input of a later step; `write` takes the result in place of `values`."""
        if isinstance(values, LazyBatch):
            return self.device.uploader.send(values.to_table(), values)
        return self.device.uploader.send(values)

    def write(self, target: Array, values: Any) -> None:
        self.device.stream.use()
        if isinstance(values, LazyBatch):
            values = self.start_upload(values)
        if isinstance(values, PendingUpload):
            if _can_copy_bytes(target, values.values):
                consume = partial(self._consume_upload, values.values, target)
                self.device.uploader.consume(values, consume, self.device.stream)
                return
            self.device.uploader.consume(values, lambda device_array: None, self.device.stream)
            values = materialize(values.values)
        if not isinstance(values, np.ndarray):
            target[...] = values
        elif _can_copy_bytes(target, values) and values.nbytes <= _MAX_PINNED_BYTES:
            self.device.uploader.copy(values, target, self.device.stream)
        elif _can_copy_bytes(target, values):
            target.set(np.asarray(values, order="C"), self.device.stream)
        else:
            super().write(target, values)

    def _consume_upload(self, values: Array | LazyBatch, target: Array, uploaded: Array) -> None:
        """Fills `target` with the uploaded array, or with the batch that the table describes."""
        if isinstance(values, LazyBatch):
            addresses = (address(x) for x in (values.source.device_array, uploaded, target))
            self._bind_launch(image_gather.gather_launch(values, *addresses), {})()
        else:
            target.data.copy_from_device_async(uploaded.data, uploaded.nbytes, self.device.stream)

    def _bind_launches(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> list[Thunk] | None:
        if kernel.kind == "anchor":
            return self._bind_anchor(plan, kernel, memory)
        found = generate_launches(plan, kernel, self.device.multiprocessors)
        return None if found is None else [self._bind_launch(launch, memory) for launch in found]

    def _bind_anchor(
        self, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]
    ) -> list[Thunk] | None:
        """Binds a product and the generated map for what its implementation does not compute."""
        key = (id(plan), address(memory[ARENA]))
        if key not in self.anchor_binders:
            self.anchor_binders.clear()  # plans are bound one after the other
            self.anchor_binders[key] = AnchorBinder(self.device, plan, memory)
        binder = self.anchor_binders[key]
        try:
            return binder.bind(kernel, self._bind_launch)
        except UnsupportedKernelError:
            return None

    def _bind_launch(self, launch: CudaLaunch, memory: Mapping[str, Array]) -> Thunk:
        """Returns a generated kernel with its arguments, possibly before it is compiled."""
        compiled = self.device.compile_async(launch)
        tables = [
            self.xp.asarray(np.array([_resolve_argument(w, memory) for w in t], dtype=np.int64))
            for t in launch.tables
        ]
        values = [
            *(address(t) for t in tables),
            *(_resolve_argument(w, memory) for w in launch.arguments),
        ]
        arguments = tuple(np.int64(w) for w in values)
        grid, block = launch.grid, (launch.threads,)
        kept = tables  # their addresses are arguments: they live as long as the thunk

        def run() -> None:
            compiled.result()(grid, block, arguments)

        run.kept = kept  # type: ignore[attr-defined]
        return run

    def capture(self, thunks: Sequence[Callable[[], None]]) -> Thunk:
        """Returns all thunks as one function. Its first call runs them one by one; the second one
        captures them as a CUDA graph (as several, if fallbacks come between) and launches it."""
        if self.device.tuner.cache:  # everything is bound by now
            self.device.tuner.cache.save()
        if self.ranks is not None:
            self.ranks.end_plan(self.device)
        return CapturedStep(self.device, thunks)


def _can_copy_bytes(target: Array, values: Array | LazyBatch) -> bool:
    """Returns whether copying the bytes of `values` to `target` is enough."""
    return target.flags.c_contiguous and values.dtype == target.dtype


def _resolve_argument(word: KernelArgument, memory: Mapping[str, Array]) -> int:
    if isinstance(word, Address):
        return address(memory[word.buffer]) + word.start
    return word


def cuda_backend(fusion: FusionOptions = CUDA_FUSION) -> CudaBackend:
    """Opens the GPU of this process, the first one if there are no ranks. Raises NetError that says
    what is missing or what to install."""
    device = Device(find_local_rank())
    return CudaBackend("cuda", device.cupy, fusion, device=device)

"""The device: its stream, its shared buffers, its compiled kernels and its timers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from netdsl.backends.cuda import nvrtc
from netdsl.backends.cuda.async_upload import Uploader
from netdsl.backends.cuda.cuda_launch import SCRATCH_BYTES, WORKSPACE_BYTES, CudaLaunch
from netdsl.backends.cuda.libraries import cublaslt_version, load_cudnn, load_cupy
from netdsl.backends.cuda.readback import ReadbackPool
from netdsl.backends.cuda.tuning import CudnnPlanCache, Tuner, TuningCache

Thunk = Callable[[], None]


class Device:
    """One GPU and what all kernels on it share. All work but collectives runs in order on one
    stream. Among those that are visible it is the one whose number is that of this process among
    the ranks of its host; if there are fewer, they begin anew."""

    def __init__(self, local_rank: int = 0) -> None:
        self.cupy = load_cupy()
        self.visible_gpus: int = self.cupy.cuda.runtime.getDeviceCount()
        self.gpu = self.cupy.cuda.Device(local_rank % self.visible_gpus)
        self.gpu.use()
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.stream.use()
        self.multiprocessors: int = self.gpu.attributes["MultiProcessorCount"]
        self.architecture = nvrtc.target_architecture(self.gpu.compute_capability)
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.gpu.id)
        self.name: str = properties["name"].decode()
        self.scratch = self.cupy.zeros(SCRATCH_BYTES, dtype="uint8")
        self.workspace = self.cupy.empty(WORKSPACE_BYTES, dtype="uint8")
        self.handle = load_cudnn().create_handle()
        load_cudnn().set_stream(handle=self.handle, stream=self.stream.ptr)
        self.graph_settings = {"handle": self.handle}
        self.chosen_plans: dict[object, Any] = {}
        """The fastest plan or algorithm, by operator, shapes and strides."""
        self.tuner = Tuner(self._load_tuning_cache())
        self.plan_cache = CudnnPlanCache(self._cache_identity())
        self.deterministic = False
        self.uploader = Uploader(self.cupy.cuda, self.cupy.empty)
        self.readbacks = ReadbackPool(self.cupy.cuda)
        self._compile_pool = ThreadPoolExecutor(16)
        self._kernels: dict[str, Future[Any]] = {}

    def _load_tuning_cache(self) -> TuningCache:
        """Loads the choices that were fastest on GPUs of this name with these libraries."""
        return TuningCache(*self._cache_identity())

    def _cache_identity(self) -> tuple[object, ...]:
        driver = self.cupy.cuda.runtime.driverGetVersion()
        libraries = load_cudnn().__version__, load_cudnn().backend_version(), cublaslt_version()
        return (self.name, self.multiprocessors, *libraries, driver)

    def with_tuner(self, tuner: Tuner, deterministic: bool) -> Device:
        """Returns the same GPU with another tuner and no choices yet."""
        other = copy.copy(self)
        other.tuner, other.deterministic, other.chosen_plans = tuner, deterministic, {}
        return other

    def with_timing_budget(self, seconds: float) -> Device:
        """Returns the same GPU with this many seconds for all timing."""
        return self.with_tuner(
            Tuner(self._load_tuning_cache(), seconds, compile_seconds=seconds), self.deterministic
        )

    def as_deterministic(self) -> Device:
        """Returns the same GPU without timing and with only those plans that give the same bits on
        every run: the most promising one, which is the same wherever GPU and libraries are."""
        return self.with_tuner(Tuner(None, 0.0, compile_seconds=0.0), True)

    def compile_async(self, launch: CudaLaunch) -> Future[Any]:
        """Starts to compile a kernel, and returns its future; each source is compiled once."""
        if launch.source not in self._kernels:
            self._kernels[launch.source] = self._compile_pool.submit(self._load_kernel, launch)
        return self._kernels[launch.source]

    def _load_kernel(self, launch: CudaLaunch) -> Any:
        self.gpu.use()
        module = self.cupy.cuda.function.Module()
        module.load(nvrtc.compile_cached(launch.source, self.architecture))
        return module.get_function(launch.name)

    def finish_compiling(self) -> None:
        """Waits until all kernels are compiled. An error shows when its kernel runs."""
        wait(list(self._kernels.values()))

    def capture_graph(self, run: Thunk) -> Any:
        """Captures what `run` launches as a CUDA graph, without running it."""
        self.stream.begin_capture()
        try:
            run()
        finally:
            graph = self.stream.end_capture()
            self.stream.use()  # CuPy has gone back to the default stream
        return graph

    def measure_milliseconds(self, run: Thunk, repeats: int = 3) -> float:
        """Returns the time of one run without launches: the better of two replays of a graph."""
        run()

        def run_repeatedly() -> None:
            for _ in range(repeats):
                run()

        graph = self.capture_graph(run_repeatedly)
        graph.launch(self.stream)
        best = min(self.elapsed_milliseconds(lambda: graph.launch(self.stream)) for _ in range(2))
        return best / repeats

    def elapsed_milliseconds(self, run: Thunk) -> float:
        """Returns how long the stream takes for one run, launches included."""
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record(self.stream)
        run()
        stop.record(self.stream)
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop))

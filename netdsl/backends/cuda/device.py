"""The device: a stream, a workspace, compiled kernels, and how long something takes on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from netdsl.backends.cuda import nvrtc
from netdsl.backends.cuda.launch import SCRATCH_BYTES, WORKSPACE_BYTES, Launch
from netdsl.backends.cuda.libraries import cublaslt_version, cudnn, cupy_with_gpu
from netdsl.backends.cuda.reading import Readings
from netdsl.backends.cuda.tuning import Choices, Plans, Tuner
from netdsl.backends.cuda.upload import Uploads

Thunk = Callable[[], None]


class Device:
    """One GPU and what every kernel on it shares. All work goes to one stream, in order."""

    def __init__(self) -> None:
        self.cupy = cupy_with_gpu()
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.stream.use()
        gpu = self.cupy.cuda.Device()
        self.multiprocessors: int = gpu.attributes["MultiProcessorCount"]
        self.architecture = nvrtc.target(gpu.compute_capability)
        self.scratch = self.cupy.zeros(SCRATCH_BYTES, dtype="uint8")
        self.workspace = self.cupy.empty(WORKSPACE_BYTES, dtype="uint8")
        self.handle = cudnn().create_handle()
        cudnn().set_stream(handle=self.handle, stream=self.stream.ptr)
        self.planned_for = {"handle": self.handle}
        self.chosen: dict[object, Any] = {}
        """What was found to be fastest, by operator, shapes and strides."""
        self.tuner = Tuner(self._choices())
        self.plans = Plans(self._identity())
        self.repeatable = False
        self.uploads = Uploads(self.cupy.cuda, self.cupy.empty)
        self.readings = Readings(self.cupy.cuda)
        self._pool = ThreadPoolExecutor(16)
        self._compiled: dict[str, Future[Any]] = {}

    def _choices(self) -> Choices:
        """What was fastest on GPUs of this name, with these libraries."""
        return Choices(*self._identity())

    def _identity(self) -> tuple[object, ...]:
        runtime = self.cupy.cuda.runtime
        name = runtime.getDeviceProperties(self.cupy.cuda.Device().id)["name"]
        libraries = cudnn().__version__, cudnn().backend_version(), cublaslt_version()
        versions = (*libraries, runtime.driverGetVersion())
        return (name, self.multiprocessors, *versions)

    def with_tuner(self, tuner: Tuner, repeatable: bool) -> Device:
        """The same GPU, with choices of its own."""
        other = copy.copy(self)
        other.tuner, other.repeatable, other.chosen = tuner, repeatable, {}
        return other

    def tuned(self, seconds: float) -> Device:
        """Times no longer than that in all."""
        return self.with_tuner(Tuner(self._choices(), seconds, compiling=seconds), self.repeatable)

    def repeating(self) -> Device:
        """Times nothing and takes only what gives the same bits on every run: the likeliest way,
        which is the same one wherever GPU and libraries are."""
        return self.with_tuner(Tuner(None, 0.0, compiling=0.0), True)

    def compiled(self, launch: Launch) -> Future[Any]:
        """The module of a source, on its way; each source is compiled once."""
        if launch.source not in self._compiled:
            self._compiled[launch.source] = self._pool.submit(self._compile, launch)
        return self._compiled[launch.source]

    def _compile(self, launch: Launch) -> Any:
        self.cupy.cuda.Device(0).use()
        module = self.cupy.cuda.function.Module()
        module.load(nvrtc.compiled(launch.source, self.architecture))
        return module.get_function(launch.name)

    def captured(self, run: Thunk) -> Any:
        """What `run` launches, as a graph; nothing runs yet."""
        self.stream.begin_capture()
        try:
            run()
        finally:
            graph = self.stream.end_capture()
            self.stream.use()  # CuPy goes back to the default stream
        return graph

    def milliseconds(self, run: Thunk, times: int = 3) -> float:
        """How long one run takes, launches apart: the best of two replays of a graph."""
        run()

        def several() -> None:
            for _ in range(times):
                run()

        graph = self.captured(several)
        graph.launch(self.stream)
        return min(self.elapsed(lambda: graph.launch(self.stream)) for _ in range(2)) / times

    def elapsed(self, run: Thunk) -> float:
        """Milliseconds between what is before it in the stream and what comes behind."""
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record(self.stream)
        run()
        stop.record(self.stream)
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop))

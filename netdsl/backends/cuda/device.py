"""The device: a stream, a workspace, compiled kernels, and how long something takes on it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from netdsl.backends.cuda.launch import SCRATCH_BYTES, WORKSPACE_BYTES, Launch
from netdsl.backends.cuda.libraries import cudnn, cupy_with_gpu

Thunk = Callable[[], None]


class Device:
    """One GPU and what every kernel on it shares. All work goes to one stream, in order."""

    def __init__(self) -> None:
        self.cupy = cupy_with_gpu()
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.stream.use()
        attributes = self.cupy.cuda.Device().attributes
        self.multiprocessors: int = attributes["MultiProcessorCount"]
        self.scratch = self.cupy.zeros(SCRATCH_BYTES, dtype="uint8")
        self.workspace = self.cupy.empty(WORKSPACE_BYTES, dtype="uint8")
        self.handle = cudnn().create_handle()
        cudnn().set_stream(handle=self.handle, stream=self.stream.ptr)
        self.chosen: dict[tuple[object, ...], Any] = {}
        """What timing found to be fastest, by operator, shapes and strides."""
        self._pool = ThreadPoolExecutor(16)
        self._compiled: dict[str, Future[Any]] = {}

    def compiled(self, launch: Launch) -> Future[Any]:
        """The module of a source, on its way; each source is compiled once."""
        if launch.source not in self._compiled:
            self._compiled[launch.source] = self._pool.submit(self._compile, launch)
        return self._compiled[launch.source]

    def _compile(self, launch: Launch) -> Any:
        self.cupy.cuda.Device(0).use()
        module = self.cupy.RawModule(code=launch.source, options=("--std=c++17",))
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

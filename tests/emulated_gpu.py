"""An emulated GPU: the part of CuPy that the backend uses, strict about what a real GPU forbids.

Generated kernels run as C++ (tests/cuda_on_cpu.py), library calls in NumPy. Launches and arrays
need a stream of the backend's own; work that a stream captures runs when its graph is launched.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from netdsl.backends.cuda import (
    cublaslt_gemm,
    cudnn_convolution,
    device,
    gpu_ranks,
    libraries,
    nvrtc,
)
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from tests.cuda_on_cpu import MULTIPROCESSORS, bind_convolution, bind_product, compile_library
from tests.emulated_streams import EmulatedEvent, EmulatedGraph, EmulatedStream, Operation


class DevicePointer:
    """The `data` attribute of CuPy's arrays."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.ptr = array.host.ctypes.data

    def copy_from_device_async(
        self, source: DevicePointer, nbytes: int, stream: EmulatedStream
    ) -> None:
        assert nbytes <= source.array.nbytes
        stream.do(lambda: _copy(self.ptr, source.ptr, nbytes))

    def copy_from_host_async(self, source: int, nbytes: int, stream: EmulatedStream) -> None:
        assert nbytes == self.array.nbytes
        assert not stream.is_capturing
        stream.do(lambda: _copy(self.ptr, source, nbytes))

    def copy_to_host_async(self, target: int, nbytes: int, stream: EmulatedStream) -> None:
        stream.do(lambda: _copy(target, self.ptr, nbytes))


def _copy(target: int, source: int, nbytes: int) -> None:
    ctypes.memmove(target, source, nbytes)


class DeviceArray:
    """An array on the device, which NumPy cannot read."""

    def __init__(self, gpu: EmulatedGpu, host: Any) -> None:
        assert host.dtype.name != "bfloat16", "CuPy has no such type"
        self.gpu, self.host = gpu, host

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    size = property(lambda self: self.host.size)
    ndim = property(lambda self: self.host.ndim)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    flags = property(lambda self: self.host.flags)
    data = property(lambda self: DevicePointer(self))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __len__(self) -> int:
        return len(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __getitem__(self, index: Any) -> DeviceArray:
        return DeviceArray(self.gpu, self.host[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        assert isinstance(value, DeviceArray | int | float | np.generic), (
            "a NumPy array is to be `set`"
        )
        plain = value.host if isinstance(value, DeviceArray) else value
        self.gpu.stream().do(lambda: self.host.__setitem__(index, plain))

    def reshape(self, *shape: Any) -> DeviceArray:
        return DeviceArray(self.gpu, self.host.reshape(*shape))

    def view(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.gpu, self.host.view(dtype))

    def set(self, values: Any, stream: EmulatedStream) -> None:
        assert isinstance(values, np.ndarray)
        assert not stream.is_capturing
        assert values.flags.c_contiguous
        assert self.flags.c_contiguous
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        self.host[...] = values


_COMPILATION = Lock()
"""GPUs with the same kernels compile them once."""


class EmulatedGpu:
    """The emulated GPU: the current stream, and all sources with their compiled functions. As many
    are `visible` as to this process, of which it is the one with that `number`."""

    def __init__(self, folder: Path, number: int = 0, visible: int = 1) -> None:
        self.number, self.visible = number, visible
        self.current: EmulatedStream | None = None
        self.streams: dict[int, EmulatedStream] = {}
        self.graphs: list[EmulatedGraph] = []
        """All graphs that were captured."""
        self.taken: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._folder = folder
        self._asked: dict[str, CudaLaunch] = {}
        self._made: dict[str, Any] = {}

    def stream(self) -> EmulatedStream:
        assert self.current is not None, "the engine has streams of its own"
        return self.current

    def make_stream(self, non_blocking: bool, priority: int = 0) -> EmulatedStream:
        stream = EmulatedStream(self, non_blocking, priority)
        self.streams[stream.ptr] = stream
        return stream

    # kernels

    def load(self, source: str) -> None:
        (name, given), *_ = re.findall(r"__global__ void (\w+)\(([^)]*)\)", source)[-1:]
        tables = given.count("*")
        words = len(given.split(",")) - tables
        self._asked.setdefault(
            source, CudaLaunch(source, name, (1, 1), 1, (0,) * words, ((),) * tables)
        )

    def run(self, source: str, grid: Any, block: Any, words: Sequence[Any]) -> None:
        assert all(isinstance(w, np.int64) for w in words)
        assert len(words) == len(self._asked[source].arguments) + len(self._asked[source].tables)
        given = np.array(words, dtype=np.int64)
        name = self._asked[source].name
        self.stream().do(lambda: self._call(source, grid, block, given), name)

    def _call(self, source: str, grid: Any, block: Any, given: Any) -> None:
        with _COMPILATION:
            if source not in self._made:
                new = [s for s in self._asked if s not in self._made]
                loaded = compile_library([self._asked[s] for s in new], self._folder)
                self._made |= {s: getattr(loaded, f"call_{i}") for i, s in enumerate(new)}
        self.launches[self._asked[source].name] += 1
        self._made[source](given.ctypes.data_as(ctypes.c_void_p), *grid, *block)

    def module(self) -> Any:
        found = SimpleNamespace()

        def load(code: bytes) -> None:
            found.source = code.decode()
            self.load(found.source)

        def function(name: str) -> Any:
            assert name == self._asked[found.source].name
            return lambda grid, block, words: self.run(found.source, grid, block, words)

        return SimpleNamespace(load=load, get_function=function)

    # arrays

    def made(self, host: Any) -> DeviceArray:
        assert not self.stream().is_capturing, "nothing is allocated while a stream captures"
        return DeviceArray(self, host)

    def array(self, values: Any, order: str = "K") -> DeviceArray:
        plain = values.host if isinstance(values, DeviceArray) else values
        return self.made(np.array(plain, order="C", copy=True))

    def as_strided(self, x: DeviceArray, shape: Any, strides: Any) -> DeviceArray:
        return DeviceArray(self, np.lib.stride_tricks.as_strided(x.host, shape, strides))

    def find_device(self, number: int) -> Any:
        assert number == self.number, "the GPU of another rank"
        return SimpleNamespace(
            id=number,
            attributes={"MultiProcessorCount": MULTIPROCESSORS},
            compute_capability="90",
            pci_bus_id=f"0000:{number:02X}:00.0",
            use=lambda: None,
        )

    def cupy(self) -> Any:
        """The cupy module."""
        found: Any = ModuleType("cupy")
        found.gpu = self
        found.array, found.asarray = self.array, self.array
        found.asnumpy = lambda x: x.host.copy()
        found.zeros = lambda shape, dtype: self.made(np.zeros(shape, dtype))
        # uninitialised memory contains arbitrary values
        found.empty = lambda shape, dtype: self.made(np.full(shape, 85, np.dtype(dtype)))
        found.lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=self.as_strided))
        pool = {"free_bytes": lambda: 0, "used_bytes": lambda: 0, "get_limit": lambda: 0}
        found.get_default_memory_pool = lambda: SimpleNamespace(**pool)
        found.cuda = SimpleNamespace(
            Stream=self.make_stream,
            Event=EmulatedEvent,
            Device=self.find_device,
            alloc_pinned_memory=bytearray,
            get_elapsed_time=lambda start, stop: float(start.timed and stop.timed),
            function=SimpleNamespace(Module=self.module),
            runtime=SimpleNamespace(
                CUDARuntimeError=RuntimeError,
                getDeviceCount=lambda: self.visible,
                getDeviceProperties=lambda number: {"name": b"emulated"},
                driverGetVersion=lambda: 13000,
                memGetInfo=lambda: (8 << 30, 8 << 30),
            ),
        )
        return found


def _make_cudnn_module() -> Any:
    found: Any = ModuleType("cudnn")
    found.__version__ = "0"
    found.create_handle = lambda: "handle"
    found.set_stream = lambda handle, stream: None
    found.backend_version = lambda: 0
    return found


def install_emulated_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> EmulatedGpu:
    """Makes `open_backend("cuda")` find an emulated GPU."""
    gpu = EmulatedGpu(folder)
    monkeypatch.setitem(sys.modules, "cupy", gpu.cupy())
    install_emulated_libraries(monkeypatch, folder)
    return gpu


def install_emulated_libraries(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Replaces NVIDIA's libraries on emulated GPUs. Kernels are compiled in `folder`."""
    monkeypatch.setenv("NETDSL_CACHE", str(folder))
    for module in (device, gpu_ranks, libraries):
        monkeypatch.setattr(module, "load_cudnn", _make_cudnn_module)
    for module in (device, gpu_ranks):
        monkeypatch.setattr(module, "cublaslt_version", lambda: 0)
    monkeypatch.setattr(nvrtc, "target_architecture", lambda capability: f"sm_{capability}")
    monkeypatch.setattr(nvrtc, "compile_cached", lambda source, target: source.encode())

    def bound(compute: Any, label: str) -> Any:
        def bind(own: Any, *given: Any) -> Operation:
            run = compute(own.cupy.gpu, *given)
            return lambda: own.stream.do(run, label)

        return bind

    monkeypatch.setattr(cublaslt_gemm, "bind", bound(bind_product, "product"))
    monkeypatch.setattr(cudnn_convolution, "bind", bound(bind_convolution, "convolution"))

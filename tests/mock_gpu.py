"""A mock GPU, known only by its properties: everything in the CUDA backend but its launches."""

from __future__ import annotations

import ctypes
import subprocess
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from netdsl.backends.cuda import cublaslt_gemm, cudnn_convolution
from netdsl.backends.cuda.backend import CUDA_FUSION, CudaBackend
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.libraries import load_cudnn
from netdsl.backends.cuda.tuning import Tuner
from tests.conftest import ROOT
from tests.cuda_on_cpu import GPP, SynchronousStream

H100 = ROOT / "tests" / "h100.json"
"""The properties of an NVIDIA H100, as written by cuDNN's frontend."""


def why_cudnn_is_missing() -> str | None:
    """The reason why cuDNN cannot plan here, or None."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cudnn")
        load_cudnn()
    except (Exception, SystemExit) as e:
        return f"cuDNN is not installed (pip install -e '.[plan]'): {str(e)[:80]}"
    return None


_DRIVER_FUNCTIONS = """
cuCtxGetCurrent cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuDeviceGet
cuGetErrorName cuGetErrorString cuInit cuKernelGetAttribute cuKernelSetAttribute
cuLaunchCooperativeKernel cuLaunchKernel cuLaunchKernelEx cuLibraryGetKernel cuLibraryLoadData
cuLibraryLoadFromFile cuLibraryUnload cuLinkAddData cuLinkComplete cuLinkCreate cuLinkDestroy
cuOccupancyMaxPotentialClusterSize cuStreamGetCtx
"""
"""Driver functions that cuDNN's compiler looks up but need not call."""
_NO_DEVICE = 100


@cache
def load_driver() -> bool:
    """Whether a driver can be loaded: cuDNN compiles plans with an epilogue only if it finds one.
    If there is none, builds a library of its name that reports no device."""
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        return True
    if GPP is None:
        return False
    folder = Path(mkdtemp())
    source, target = folder / "driver.cpp", folder / "libcuda.so.1"
    functions = (
        f'extern "C" int {f}() {{ return {_NO_DEVICE}; }}' for f in _DRIVER_FUNCTIONS.split()
    )
    version, count = (
        f'extern "C" int {f}(int* n) {{ *n = {n}; return 0; }}'
        for f, n in (("cuDriverGetVersion", 13000), ("cuDeviceGetCount", 0))
    )
    source.write_text("\n".join((*functions, version, count)))
    named = f"-Wl,-soname,{target.name}"
    command = [GPP, "-shared", "-fPIC", named, source, "-o", target]
    subprocess.run(command, check=True, timeout=280)
    ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
    return True


class MockDevice:
    """Replaces `Device`: cuDNN plans for an H100 from its properties; sources are collected."""

    def __init__(self, graph_settings: dict[str, Any], compile_seconds: float) -> None:
        self.cupy = np
        self.multiprocessors = 132
        self.scratch = self.workspace = np.zeros(1, np.uint8)
        self.handle, self.stream = None, SynchronousStream()
        self.chosen_plans: dict[object, Any] = {}
        self.tuner = Tuner(None, 0.0, compile_seconds=compile_seconds)
        self.deterministic = False
        self.graph_settings = graph_settings
        self.sources: set[str] = set()

    def compile_async(self, launch: CudaLaunch) -> Future[Any]:
        self.sources.add(launch.source)
        return Future()


def open_mock_backend(monkeypatch: pytest.MonkeyPatch, compile_seconds: float = 0.0) -> CudaBackend:
    """Opens the CUDA backend on the mock device. Products are only laid out, since cuBLASLt
    suggests nothing without a driver; so are convolutions without cuDNN. At most `compile_seconds`
    seconds are spent on compiling epilogues of convolutions."""
    no_launch = lambda *given: lambda: None
    monkeypatch.setattr(cublaslt_gemm, "bind", no_launch)
    graph_settings = {}
    if why_cudnn_is_missing():
        monkeypatch.setattr(cudnn_convolution, "bind", no_launch)
    else:
        graph_settings["device_property"] = load_cudnn().create_device_properties(H100.read_text())
    monkeypatch.setattr(CudaBackend, "capture", no_launch)
    device = MockDevice(graph_settings, compile_seconds)
    return CudaBackend("described", np, CUDA_FUSION, device=device)


def find_conv_plans(backend: CudaBackend) -> dict[Any, str]:
    """The name of the plan chosen for each convolution."""
    chosen = backend.device.chosen_plans.items()
    return {key: graph.get_plan_name_at_index(index) for key, (graph, _, index) in chosen}

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

from netdsl.backends.cuda import convolution, product
from netdsl.backends.cuda.backend import CUDA, CudaBackend
from netdsl.backends.cuda.launch import Launch
from netdsl.backends.cuda.libraries import cudnn
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
        cudnn()
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

    def __init__(self, planned_for: dict[str, Any], compiling: float) -> None:
        self.cupy = np
        self.multiprocessors = 132
        self.scratch = self.workspace = np.zeros(1, np.uint8)
        self.handle, self.stream = None, SynchronousStream()
        self.chosen: dict[object, Any] = {}
        self.tuner = Tuner(None, 0.0, compiling=compiling)
        self.repeatable = False
        self.planned_for = planned_for
        self.sources: set[str] = set()

    def compiled(self, launch: Launch) -> Future[Any]:
        self.sources.add(launch.source)
        return Future()


def open_mock_backend(monkeypatch: pytest.MonkeyPatch, compiling: float = 0.0) -> CudaBackend:
    """Opens the CUDA backend on the mock device. Products are only laid out, since cuBLASLt
    suggests nothing without a driver; so are convolutions without cuDNN. At most `compiling`
    seconds are spent on compiling epilogues of convolutions."""
    no_launch = lambda *given: lambda: None
    monkeypatch.setattr(product, "bound", no_launch)
    planned_for = {}
    if why_cudnn_is_missing():
        monkeypatch.setattr(convolution, "bound", no_launch)
    else:
        planned_for["device_property"] = cudnn().create_device_properties(H100.read_text())
    monkeypatch.setattr(CudaBackend, "capture", no_launch)
    return CudaBackend("described", np, CUDA, MockDevice(planned_for, compiling))


def find_conv_plans(backend: CudaBackend) -> dict[Any, str]:
    """The name of the plan chosen for each convolution."""
    chosen = backend.device.chosen.items()
    return {key: graph.get_plan_name_at_index(index) for key, (graph, _, index) in chosen}

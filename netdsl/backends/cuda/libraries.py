"""CuPy, cuDNN's frontend and cuBLASLt: found once, or told what to install."""

from __future__ import annotations

import ctypes
import importlib
from contextlib import suppress
from functools import cache
from typing import Any

from netdsl.errors import fail
from netdsl.optional_imports import import_optional

INSTALL = "pip install 'netdsl[cuda13]' (or 'netdsl[cuda12]' for a CUDA 12 driver)"


def cupy_with_gpu() -> Any:
    """CuPy, where it sees a GPU. Raises NetError with what is missing."""
    cupy = import_optional("cupy", "`--device cuda` needs CuPy", INSTALL)
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise fail(f"CuPy finds no GPU to use: {e}", help="look at `nvidia-smi`") from None
    if not found:
        raise fail("there is no GPU in this machine", help="leave `--device` out to use the CPU")
    return cupy


@cache
def cudnn() -> Any:
    """cuDNN's frontend. Raises NetError where it is not installed."""
    with suppress(Exception):  # plans are read back by it; without it they are built anew
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cudart")
    return import_optional("cudnn", "`--device cuda` needs cuDNN's frontend", INSTALL)


@cache
def cublaslt() -> ctypes.CDLL:
    """The library of matrix products. Raises NetError where it is not to be had."""
    return nvidia_library("cublasLt")


def nvidia_library(name: str) -> ctypes.CDLL:
    """A library of CUDA's. Raises NetError where it is not to be had."""
    pathfinder = import_optional(
        "cuda.pathfinder", f"{name} is found by `cuda.pathfinder`", INSTALL
    )
    try:
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib(name).abs_path)
    except (RuntimeError, OSError) as e:
        raise fail(f"the library {name} cannot be loaded: {e}", help=INSTALL) from None


def cublaslt_version() -> int:
    lib = cublaslt()
    lib.cublasLtGetVersion.restype = ctypes.c_size_t
    return int(lib.cublasLtGetVersion())

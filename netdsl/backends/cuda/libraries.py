"""Loads CuPy, cuDNN's frontend and NVIDIA's libraries, or says what to install."""

from __future__ import annotations

import ctypes
import importlib
from contextlib import suppress
from functools import cache
from typing import Any

from netdsl.errors import fail
from netdsl.optional_imports import import_optional

INSTALL_COMMAND = "pip install 'netdsl[cuda13]' (or 'netdsl[cuda12]' for a CUDA 12 driver)"


def load_cupy() -> Any:
    """Returns CuPy. Raises NetError if it is not installed or finds no GPU."""
    cupy = import_optional("cupy", "`--device cuda` needs CuPy", INSTALL_COMMAND)
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise fail(f"CuPy finds no GPU to use: {e}", help="look at `nvidia-smi`") from None
    if not found:
        raise fail("there is no GPU in this machine", help="leave `--device` out to use the CPU")
    return cupy


@cache
def load_cudnn() -> Any:
    """Returns cuDNN's frontend. Raises NetError if it is not installed."""
    with suppress(Exception):  # needed to deserialise plans; without it they are built again
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cudart")
    return import_optional("cudnn", "`--device cuda` needs cuDNN's frontend", INSTALL_COMMAND)


@cache
def load_cublaslt() -> ctypes.CDLL:
    """Returns cuBLASLt. Raises NetError if it is not installed."""
    return load_nvidia_library("cublasLt")


def load_nvidia_library(name: str) -> ctypes.CDLL:
    """Returns one of NVIDIA's libraries. Raises NetError if it cannot be loaded."""
    pathfinder = import_optional(
        "cuda.pathfinder", f"{name} is found by `cuda.pathfinder`", INSTALL_COMMAND
    )
    try:
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib(name).abs_path)
    except (RuntimeError, OSError) as e:
        raise fail(f"the library {name} cannot be loaded: {e}", help=INSTALL_COMMAND) from None


def cublaslt_version() -> int:
    lib = load_cublaslt()
    lib.cublasLtGetVersion.restype = ctypes.c_size_t
    return int(lib.cublasLtGetVersion())

"""Loads CuPy, cuDNN's frontend and NVIDIA's libraries, or says what to install."""

from __future__ import annotations

import ctypes
import importlib
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

from netdsl.errors import fail
from netdsl.optional_imports import import_optional

INSTALL_COMMAND = "pip install 'netdsl[cuda13]' (or 'netdsl[cuda12]' for a CUDA 12 driver)"

NCCL_INSTALL_COMMAND = "pip install 'netdsl[nccl13]' (or 'netdsl[nccl12]' for a CUDA 12 driver)"
MIN_NCCL_VERSION = 22707
"""2.27.7, the oldest one that the extras install."""


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


def load_nccl() -> Any | None:
    """Returns CuPy's binding of NCCL, or None if there is no NCCL that it can load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns of a missing one
        nccl = importlib.import_module("cupy.cuda.nccl")
    return nccl if nccl.available else None


def format_nccl_version(number: int) -> str:
    """Formats a version as NCCL numbers it; those before 2.9 have one digit less."""
    major, rest = divmod(number, 10_000 if number >= 10_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"

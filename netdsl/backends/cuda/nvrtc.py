"""Compiles generated CUDA source by NVRTC, which needs no GPU, with a cache on disk."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from netdsl import disk_cache
from netdsl.backends.cuda.libraries import load_nvidia_library
from netdsl.errors import fail

_OPTIONS = ("--std=c++17", "--fmad=false")
"""Without contraction, a value has the same bits in every kernel that computes it. Kernels that
need the speed call `fmaf`."""


@cache
def load_library() -> ctypes.CDLL:
    """Returns NVRTC. Raises NetError if it cannot be loaded."""
    return load_nvidia_library("nvrtc")


@cache
def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    load_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def target_architecture(capability: str) -> str:
    """Returns the target for a GPU: its own architecture, or PTX for the last one before it if
    NVRTC does not know it yet."""
    count = ctypes.c_int()
    load_library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    load_library().nvrtcGetSupportedArchs(numbers)
    wanted = int(capability)
    if wanted in numbers:
        return f"sm_{wanted}"
    older = [n for n in numbers if n < wanted]
    if not older:
        raise fail(f"NVRTC {version()} does not support GPUs of compute capability {capability}")
    return f"compute_{max(older)}"


def compile_cached(source: str, architecture: str) -> bytes:
    """Returns machine code for a target like `sm_90`, or PTX for one like `compute_90`."""
    key = disk_cache.make_key("kernel", version(), architecture, _OPTIONS, source)
    found = disk_cache.CUDA_CACHE.load(key)
    if found is None:
        found = compile_source(source, architecture)
        disk_cache.CUDA_CACHE.store(key, found)
    return found


def compile_source(source: str, architecture: str, *more_options: str) -> bytes:
    """Compiles as `compile_cached` does, without the cache."""
    lib, program = load_library(), ctypes.c_void_p()
    text = source.encode()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), text, b"kernel.cu", 0, None, None))
    try:
        texts = (*_OPTIONS, f"--gpu-architecture={architecture}", *more_options)
        options = [text.encode() for text in texts]
        option_array = (ctypes.c_char_p * len(options))(*options)
        if lib.nvrtcCompileProgram(program, len(options), option_array):
            log = _read_output(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"NVRTC refuses a generated kernel:\n{log}")
        return _read_output(
            program, "nvrtcGetCUBIN" if architecture.startswith("sm") else "nvrtcGetPTX"
        )
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _read_output(program: ctypes.c_void_p, getter: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(load_library(), f"{getter}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(load_library(), getter)(program, buffer))
    return buffer.raw


def _check(status: Any) -> None:
    if status:
        raise RuntimeError(f"NVRTC fails with status {status}")

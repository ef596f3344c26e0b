"""Machine code of generated CUDA source: from NVRTC, without a GPU, or from the disk."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from netdsl import disk_cache
from netdsl.backends.cuda.libraries import nvidia_library
from netdsl.errors import fail

_OPTIONS = ("--std=c++17", "--fmad=false")
"""Without contraction a value has the same bits in every kernel that computes it; where sums of
products are what takes the time, kernels say `fmaf`."""


@cache
def library() -> ctypes.CDLL:
    """NVRTC. Raises NetError where it is not to be had."""
    return nvidia_library("nvrtc")


@cache
def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def target(capability: str) -> str:
    """What to compile for: the GPU itself, or where NVRTC does not know it yet, the last one
    before it in the language that its driver translates."""
    count = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    library().nvrtcGetSupportedArchs(numbers)
    wanted = int(capability)
    if wanted in numbers:
        return f"sm_{wanted}"
    older = [n for n in numbers if n < wanted]
    if not older:
        raise fail(f"NVRTC {version()} compiles for no GPU of compute capability {capability}")
    return f"compute_{max(older)}"


def compiled(source: str, architecture: str) -> bytes:
    """The machine code of a source for `sm_90`, or its PTX for `compute_90`."""
    key = disk_cache.make_key("kernel", version(), architecture, _OPTIONS, source)
    found = disk_cache.CUDA_CACHE.load(key)
    if found is None:
        found = assembled(source, architecture)
        disk_cache.CUDA_CACHE.store(key, found)
    return found


def assembled(source: str, architecture: str) -> bytes:
    """As `compiled`, always by NVRTC."""
    lib, program = library(), ctypes.c_void_p()
    text = source.encode()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), text, b"kernel.cu", 0, None, None))
    try:
        options = [o.encode() for o in (*_OPTIONS, f"--gpu-architecture={architecture}")]
        given = (ctypes.c_char_p * len(options))(*options)
        if lib.nvrtcCompileProgram(program, len(options), given):
            log = _text(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"NVRTC refuses a generated kernel:\n{log}")
        return _text(program, "nvrtcGetCUBIN" if architecture.startswith("sm") else "nvrtcGetPTX")
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, getter: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library(), f"{getter}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), getter)(program, buffer))
    return buffer.raw


def _check(status: Any) -> None:
    if status:
        raise RuntimeError(f"NVRTC fails with status {status}")

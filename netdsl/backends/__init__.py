"""Where graphs run: arrays and kernels, nothing else."""

from __future__ import annotations

from netdsl.backends.arrays import model, reference
from netdsl.backends.base import Backend
from netdsl.errors import NetError, fail, nearest

DEVICES = ("auto", "cuda", "cpu", "reference", "model")


def open_backend(device: str = "auto") -> Backend:
    """The backend for a device name; `auto` is CUDA where there is a GPU, else the CPU engine.

    Raises NetError with what to install where the device is not to be had.
    """
    known = {"reference": reference, "model": model, "cuda": _cuda, "cpu": _cpu, "auto": _automatic}
    if device in known:
        return known[device]()
    help = nearest(device, DEVICES, "devices are")
    raise fail(f"there is no device `{device}`", help=help)


def _cuda() -> Backend:
    from netdsl.backends.cuda.backend import cuda  # its libraries are looked for when asked for

    return cuda()


def _automatic() -> Backend:
    try:
        return _cuda()
    except NetError:
        return _processor()


def _processor() -> Backend:
    try:
        return _cpu()
    except NetError:
        return reference()


def _cpu() -> Backend:
    try:
        from netdsl.backends.cpu.backend import CpuBackend  # half a second for Numba and LLVM
    except ImportError:
        raise fail(
            "`--device cpu` needs Numba, which is not installed",
            help="pip install numba, or use `--device reference`",
        ) from None
    return CpuBackend()

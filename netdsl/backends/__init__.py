"""Where graphs run: arrays and kernels, nothing else."""

from __future__ import annotations

from netdsl.backends.arrays import ArrayBackend, model, reference
from netdsl.errors import NetError, fail, nearest
from netdsl.plan.backend import Backend

DEVICES = ("auto", "cuda", "reference", "model")


def open_backend(device: str = "auto") -> Backend:
    """The backend for a device name; `auto` is CUDA where there is a GPU, else the reference.

    Raises NetError with what to install where the device is not to be had.
    """
    known = {"reference": reference, "model": model, "cuda": _cuda, "auto": _automatic}
    if device in known:
        return known[device]()
    help = nearest(device, DEVICES, "devices are")
    raise fail(f"there is no device `{device}`", help=help)


def _cuda() -> ArrayBackend:
    from netdsl.backends.cuda.backend import (
        cuda,
    )  # its libraries are looked for only when asked for

    return cuda()


def _automatic() -> ArrayBackend:
    try:
        return _cuda()
    except NetError:
        return reference()

"""Where graphs run: arrays and kernels, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from netdsl.backends.arrays import model, reference
from netdsl.backends.picked import Held
from netdsl.errors import NetError, fail, nearest
from netdsl.optional import NotInstalled, import_optional
from netdsl.plan.backend import Backend
from netdsl.types import Array

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


def repeatable(backend: Backend) -> Backend:
    """The backend restricted to what gives the same bits on every run; most do so anyway."""
    restricted = getattr(backend, "repeatable", None)
    return restricted() if restricted else backend


def room(backend: Backend) -> int | None:
    """The bytes that can still be allocated there, where that is known."""
    free_bytes = getattr(backend, "free_bytes", None)
    return free_bytes() if free_bytes else None


def ahead(backend: Backend, values: Array) -> Array:
    """What may be written in place of `values`: where the backend can, they are on their way."""
    send = getattr(backend, "ahead", None)
    return send(values) if send else values


def held(backend: Backend, images: Array) -> Held | None:
    """A set of images that lies on the device as well, where the backend can pick batches from it
    and there is room."""
    hold = getattr(backend, "hold", None)
    return hold(images) if hold else None


UNDER_WAY = 4
"""Steps that may be under way before the numbers of the first one are waited for."""


class Reading(Protocol):
    """Numbers that were asked for."""

    def ready(self) -> bool:
        """Whether they can be had without waiting."""
        ...

    def numbers(self) -> Mapping[str, float]:
        """The numbers by name; to be called once."""
        ...


def reading(backend: Backend, numbers: Mapping[str, Array]) -> Reading:
    """Asks for what a step gave out, before the next one writes it over. A device may go on
    meanwhile."""
    begin = getattr(backend, "reading", None)
    return begin(numbers) if begin else _Read({k: float(v) for k, v in numbers.items()})


@dataclass(frozen=True)
class _Read:
    """Numbers that are there."""

    found: Mapping[str, float]

    def ready(self) -> bool:
        return True

    def numbers(self) -> Mapping[str, float]:
        return self.found


def tuned(backend: Backend, seconds: float) -> Backend:
    """The backend with that long to time what could compute the same. Raises NetError where it has
    no such choice."""
    with_budget = getattr(backend, "tuned", None)
    if with_budget is None:
        help = "leave it out, or use `--device cuda`"
        raise fail(f"`--tune` times plans on a GPU; `{backend.name}` has none to choose", help=help)
    found: Backend = with_budget(seconds)
    return found


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
    except NotInstalled:
        return reference()


def _cpu() -> Backend:
    for module in ("llvmlite.binding", "numba"):
        need = f"`--device cpu` needs {module.partition('.')[0]}"
        import_optional(module, need, "pip install numba, or use `--device reference`")
    from netdsl.backends.cpu.backend import cpu  # half a second for Numba and LLVM

    return cpu()

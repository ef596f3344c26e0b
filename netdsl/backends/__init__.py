"""Backends, which run graphs: arrays and kernels, nothing else."""

from __future__ import annotations

from typing import Any

from netdsl.backends.array_backend import model_backend, reference_backend
from netdsl.backends.base import Backend
from netdsl.errors import NetError, fail, suggest_name
from netdsl.lower.candidates import CandidateChoice
from netdsl.optional_imports import NotInstalledError, import_optional
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.plan import Plan

_DEFAULT_ARCHITECTURE = "sm_90"
DEVICES = ("auto", "cuda", "cpu", "reference", "model")


def open_backend(device: str = "auto") -> Backend:
    """Opens the backend for a device name; `auto` is CUDA if there is a GPU, else the CPU engine.

    Raises NetError with what to install if the device is not available.
    """
    check_device(device)
    openers = {
        "reference": reference_backend,
        "model": model_backend,
        "cuda": _open_cuda,
        "cpu": _open_cpu,
        "auto": _open_auto,
    }
    return openers[device]()


def check_device(device: str) -> None:
    """Raises NetError if there is no device of that name."""
    if device not in DEVICES:
        help = suggest_name(device if isinstance(device, str) else "", DEVICES, "devices")
        raise fail(f"there is no device `{device}`", help=help)


def fusion_of(device: str) -> FusionOptions:
    """Returns the fusion options of a device. Planning for a GPU does not need one."""
    if device == "cuda":
        from netdsl.backends.cuda.backend import CUDA_FUSION

        return CUDA_FUSION
    return open_backend(device).fusion


def explain_choices(device: str, plan: Plan) -> tuple[CandidateChoice[Any, Any], ...]:
    """Returns for each kernel of a plan how a device would choose what computes it; for CUDA,
    without needing a GPU."""
    if device != "cuda":
        return open_backend(device).explain_choices(plan)
    from netdsl.backends.cuda.choices import explain_choices as explain_cuda_choices
    from netdsl.backends.cuda.cuda_source import MULTIPROCESSORS

    return explain_cuda_choices(plan, MULTIPROCESSORS[_DEFAULT_ARCHITECTURE])


def generate_source(device: str, plan: Plan, architecture: str | None) -> str:
    """Returns the code that a device generates for a plan; for CUDA, that of an architecture,
    without needing a GPU. Raises NetError if it generates none."""
    if device != "cuda":
        if architecture is not None:
            raise fail("`--arch` names a GPU", help="use it with `--device cuda`")
        backend = open_backend(device)
        if backend.name != "cuda":
            return _generate_backend_source(backend, plan)
    from netdsl.backends.cuda.cuda_source import MULTIPROCESSORS, generate_cuda_source

    target = architecture or _DEFAULT_ARCHITECTURE
    if target not in MULTIPROCESSORS:
        help = suggest_name(target, MULTIPROCESSORS, "known architectures")
        raise fail(f"unknown GPU architecture `--arch {target}`", help=help)
    return generate_cuda_source(plan, MULTIPROCESSORS[target])


def _generate_backend_source(backend: Backend, plan: Plan) -> str:
    found = backend.generate_source(plan)
    if not found:
        message = (
            f"`{backend.name}` does not generate code: it runs the reference "
            f"implementations of the operators"
        )
        raise fail(message, help="use `--device cpu` or `--device cuda`")
    return found


def _open_cuda() -> Backend:
    from netdsl.backends.cuda.backend import cuda_backend  # loads its libraries only on demand

    return cuda_backend()


def _open_auto() -> Backend:
    try:
        return _open_cuda()
    except NetError:
        return _open_cpu_or_reference()


def _open_cpu_or_reference() -> Backend:
    try:
        return _open_cpu()
    except NotInstalledError:
        return reference_backend()


def _open_cpu() -> Backend:
    for module in ("llvmlite.binding", "numba"):
        need = f"`--device cpu` needs {module.partition('.')[0]}"
        import_optional(module, need, "pip install numba, or use `--device reference`")
    from netdsl.backends.cpu.backend import open_cpu_backend  # takes 0.5 s to import Numba and LLVM

    return open_cpu_backend()

"""The GPUs of all ranks: each has its own, of one kind, and all run the same kernels."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from netdsl.backends.cuda.device import Device
from netdsl.backends.cuda.libraries import (
    MIN_NCCL_VERSION,
    NCCL_INSTALL_COMMAND,
    cublaslt_version,
    format_nccl_version,
    load_cudnn,
    load_nccl,
)
from netdsl.backends.cuda.nccl_communicator import NcclCommunicator
from netdsl.errors import fail
from netdsl.plan.plan import Plan
from netdsl.ranks.communicator import Communicator

Description = Mapping[str, Any]
_COMPARED = ("architecture", "multiprocessors", "cuDNN", "cuBLASLt", "NCCL")
"""What kernels and the libraries' algorithms depend on."""


class GpuRanks:
    """What connects the GPU of this rank with the others.

    All ranks run the same kernels in each plan with collectives, so that they compute the same
    states from the same sums: rank 0 binds such a plan first, and the others take its choices. The
    first rank of each other host binds next, the rest of a host then finds compiled kernels on the
    disk. Plans without collectives, such as those that evaluate, are bound by each rank on its own.
    """

    def __init__(self, communicator: Communicator, device: Device) -> None:
        self._communicator, self._device = communicator, device
        self._nccl: NcclCommunicator | None = None
        self._plan: Plan | None = None

    def open_nccl(self, deterministic: bool) -> NcclCommunicator:
        """Returns NCCL's communicator; all ranks make it together."""
        if self._nccl is None or (deterministic and self._nccl.has_nvls):
            nccl, cuda = load_nccl(), self._device.cupy.cuda
            self._nccl = NcclCommunicator(nccl, cuda, self._communicator, deterministic)
        return self._nccl

    def begin_plan(self, device: Device, plan: Plan) -> None:
        """Before the first kernel of a plan is bound: if it has collectives, waits for the ranks
        that bind it before this one."""
        if plan is self._plan or not any(k.kind == "collective" for k in plan.kernels):
            return
        self._plan = plan
        self.open_nccl(device.deterministic)
        device.chosen_plans.clear()
        device.tuner.chosen.clear()
        if self._communicator.is_root:
            return
        _take_choices(device, json.loads(self._communicator.broadcast(b"")))
        if not self._communicator.is_first_on_host:
            self._communicator.all_gather(b"")

    def end_plan(self, device: Device) -> None:
        """After all kernels of a plan are bound."""
        if self._plan is None:
            return
        self._plan = None
        if self._communicator.is_first_on_host:
            device.finish_compiling()
        if self._communicator.is_root:
            self._communicator.broadcast(json.dumps(_export_choices(device)).encode())
        else:
            _check_choices(device, self._communicator)
        if self._communicator.is_first_on_host:
            self._communicator.all_gather(b"")


def _export_choices(device: Device) -> dict[str, dict[str, str]]:
    plans = {key: base64.b64encode(plan).decode() for key, plan in device.plan_cache.used.items()}
    return {"choices": device.tuner.chosen, "plans": plans}


def _take_choices(device: Device, found: Mapping[str, Mapping[str, str]]) -> None:
    device.tuner.prescribed = found["choices"]
    device.plan_cache.used.clear()
    device.plan_cache.used.update(
        {key: base64.b64decode(plan) for key, plan in found["plans"].items()}
    )


def _check_choices(device: Device, communicator: Communicator) -> None:
    """Raises NetError if this rank could not take a choice of rank 0."""
    tuner = device.tuner
    for key, name in tuner.chosen.items():
        if tuner.prescribed.get(key) != name and key not in device.plan_cache.used:
            rank = communicator.rank
            raise fail(
                f"rank {rank} ({communicator.hosts[rank]}) computes a product by `{name}`, "
                f"rank 0 by `{tuner.prescribed.get(key)}`: their weights would differ",
                help="start the run on GPUs of one kind, with as much free memory on each",
            )


def join_ranks(device: Device, communicator: Communicator) -> GpuRanks:
    """Connects the GPUs of all ranks. Raises NetError on all of them if two ranks would share one,
    if they differ in kind or libraries, or if NCCL is missing somewhere."""
    own = json.dumps(_describe(device)).encode()
    check_gpus(communicator.hosts, [json.loads(d) for d in communicator.all_gather(own)])
    return GpuRanks(communicator, device)


def _describe(device: Device) -> Description:
    nccl = load_nccl()
    return {
        "gpu": device.gpu.pci_bus_id,
        "name": device.name,
        "visible": device.visible_gpus,
        "architecture": device.architecture,
        "multiprocessors": device.multiprocessors,
        "cuDNN": load_cudnn().backend_version(),
        "cuBLASLt": cublaslt_version(),
        "NCCL": 0 if nccl is None else nccl.get_version(),
    }


def check_gpus(hosts: Sequence[str], found: Sequence[Description]) -> None:
    """Raises NetError if ranks on these hosts cannot train together on these GPUs."""
    _check_nccl(hosts, found)
    first: dict[tuple[str, str], int] = {}
    for rank, (host, d) in enumerate(zip(hosts, found, strict=True)):
        other = first.setdefault((host, d["gpu"]), rank)
        if other != rank:
            raise fail(
                f"ranks {other} and {rank} would share a GPU of {host} ({d['gpu']}): rank {rank} "
                f"sees {d['visible']}",
                help="start as many ranks on each host as it has GPUs, or use `--device cpu`",
            )
        for what in _COMPARED:
            if d[what] != found[0][what]:
                raise fail(
                    f"the GPUs differ: {what} is {found[0][what]} on rank 0 ({found[0]['name']}, "
                    f"{hosts[0]}), but {d[what]} on rank {rank} ({d['name']}, {host})",
                    help="start a run on GPUs of one kind, with the same versions of libraries",
                )


def _check_nccl(hosts: Sequence[str], found: Sequence[Description]) -> None:
    for rank, (host, d) in enumerate(zip(hosts, found, strict=True)):
        if d["NCCL"] < MIN_NCCL_VERSION:
            least = format_nccl_version(MIN_NCCL_VERSION)
            has = f"has {format_nccl_version(d['NCCL'])}" if d["NCCL"] else "finds none"
            raise fail(
                f"several GPUs need NCCL {least} or later; rank {rank} ({host}) {has}",
                help=NCCL_INSTALL_COMMAND,
            )

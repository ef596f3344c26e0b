"""Ranks with an emulated GPU each, as threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from netdsl.backends.cuda import device, gpu_ranks, nccl_communicator
from netdsl.backends.cuda.backend import CUDA_FUSION, CudaBackend
from netdsl.backends.cuda.device import Device
from netdsl.ranks.communicator import Communicator
from tests.emulated_gpu import EmulatedGpu, install_emulated_libraries
from tests.fake_nccl import FakeNccl
from tests.thread_ranks import run_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class GpuRank:
    """What one rank has."""

    backend: CudaBackend
    gpu: EmulatedGpu
    nccl: FakeNccl


@dataclass
class GpuRanksWorld:
    """Runs ranks, on GPUs of one host by default."""

    folder: Path
    hosts: Callable[[int], str] = lambda rank: "node1"
    visible: int = 8
    deterministic: bool = False
    versions: dict[int, int] = field(default_factory=dict)
    """NCCL's version where it is another one."""
    here: threading.local = field(default_factory=threading.local)
    """The GPU and the NCCL of the current thread's rank."""

    def run(self, size: int, work: Callable[[GpuRank], T]) -> list[T]:
        return run_ranks(size, lambda communicator: work(self.open(communicator)))

    def open(self, communicator: Communicator) -> GpuRank:
        communicator.hosts = tuple(self.hosts(rank) for rank in range(communicator.size))
        rank = communicator.rank
        number = communicator.hosts[:rank].count(communicator.hosts[rank]) % self.visible
        gpu = self.here.gpu = EmulatedGpu(self.folder, number, self.visible)
        nccl = self.here.nccl = FakeNccl(communicator, gpu.streams)
        nccl.version = self.versions.get(rank, nccl.version)
        nccl.available = nccl.version > 0
        own = Device(number)
        backend = CudaBackend("cuda", own.cupy, CUDA_FUSION, device=own)
        if self.deterministic:
            backend = backend.as_deterministic()
        return GpuRank(backend.with_communicator(communicator), gpu, nccl)


def install_gpu_ranks(monkeypatch: pytest.MonkeyPatch, folder: Path) -> GpuRanksWorld:
    install_emulated_libraries(monkeypatch, folder)
    world = GpuRanksWorld(folder)

    def load_nccl() -> Any:
        return world.here.nccl if world.here.nccl.available else None

    monkeypatch.setattr(device, "load_cupy", lambda: world.here.gpu.cupy())
    monkeypatch.setattr(gpu_ranks, "load_nccl", load_nccl)
    monkeypatch.setattr(nccl_communicator, "_made_with_nvls", [])
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    monkeypatch.setattr(device, "WORKSPACE_BYTES", 1 << 20)  # it is filled, once for each rank
    return world

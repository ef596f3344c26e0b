"""A training step on several GPUs: rows of the GPU benchmark, and the program of their ranks.

    mpiexec -n 8 python benchmarks/gpu_ranks.py resnet50 cuda bfloat16 FOLDER

times a step, each rank on a batch of its own, and checks that all have the same states afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_rows import BenchContext, GpuRow, train_row
from benchmarks.workloads import ROOT
from netdsl.runtime.executor import Executor

COUNTS = (1, 2, 4, 8)
SECONDS = 600


def count_ranks(device: str) -> tuple[int, ...]:
    """The numbers of ranks that there are GPUs for; two share the processor of a rehearsal."""
    if device == "cpu":
        return COUNTS[:2]
    import cupy

    return tuple(n for n in COUNTS if n <= cupy.cuda.runtime.getDeviceCount())


def find_mpiexec() -> str | None:
    """The program that launches ranks: of this environment, else of the system."""
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}") or (
        shutil.which("mpiexec")
    )


def ranks_lines(bench: BenchContext, net: str) -> Iterator[GpuRow | str]:
    """A row for each number of ranks, with the efficiency against one of them."""
    mpiexec, one = find_mpiexec(), 0.0
    if mpiexec is None:
        yield "left out, there is no mpiexec (pip install mpich): several GPUs"
        return
    for ranks in count_ranks(bench.device):
        row = launch_ranks(mpiexec, bench, net, ranks)
        one = one or row.milliseconds
        yield replace(row, note=f"{one / row.milliseconds:.1%} of linear, {row.note}")


def launch_ranks(mpiexec: str, bench: BenchContext, net: str, ranks: int) -> GpuRow:
    """Times the step of several ranks. Raises RuntimeError if one fails."""
    command = [mpiexec, "-n", str(ranks), sys.executable, str(Path(__file__).resolve()), net]
    command += [bench.device, bench.low or "", str(bench.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return GpuRow(**json.loads(done.stdout.splitlines()[-1]))


def hash_states(executor: Executor) -> bytes:
    """A digest of all states of a rank."""
    digest = hashlib.sha256()
    for name in sorted(executor.state.arrays):
        digest.update(executor.backend.download(executor.state.arrays[name]).tobytes())
    return digest.digest()


def main() -> None:
    from mpi4py import MPI

    from netdsl.ranks.mpi import MpiCommunicator

    net, device, low, folder = sys.argv[1:]
    communicator = MpiCommunicator(MPI)
    try:
        bench = BenchContext(device, low or None, Path(folder), communicator)
        row, executor = train_row(bench, net)
        if len(set(communicator.all_gather(hash_states(executor)))) > 1:
            raise RuntimeError("the states of the ranks differ")
    except BaseException as e:
        print(f"rank {communicator.rank}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)
    if communicator.is_root:
        size = communicator.size
        row = replace(row, batch=row.batch * size, side=f"{row.side} x{size}")
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()

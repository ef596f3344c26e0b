"""A training step on several GPUs: rows of the GPU benchmark, and the program of their ranks.

    mpiexec -n 8 python benchmarks/gpu_ranks.py resnet50 cuda bfloat16 FOLDER

times a step, each rank on a batch of its own, checks that all have the same states afterwards, and
prints a row as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_rows import BenchContext, GpuRow, train_row
from benchmarks.workloads import ROOT

COUNTS = (1, 2, 4, 8)
SECONDS = 600


def count_ranks(device: str) -> tuple[int, ...]:
    """The numbers of ranks to compare, as far as there are GPUs for them. A rehearsal has two."""
    if device == "cpu":
        return COUNTS[:2]
    import cupy

    return tuple(n for n in COUNTS if n <= cupy.cuda.runtime.getDeviceCount())


def find_mpiexec() -> str | None:
    """MPI's launcher: of this environment, else of the system."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{path}")


def ranks_row(bench: BenchContext, net: str, ranks: int) -> GpuRow | str:
    """The training step of several ranks. Raises RuntimeError if one of them fails."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        return f"left out, there is no mpiexec (pip install mpich): {net} on {ranks}"
    command = [mpiexec, "-n", str(ranks), sys.executable, str(Path(__file__).resolve()), net]
    command += [bench.device, bench.low or "", str(bench.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return GpuRow(**json.loads(done.stdout.splitlines()[-1]))


def format_efficiency(rows: Sequence[GpuRow]) -> Iterator[str]:
    """The step of one rank relative to those of several, by net."""
    alone = {r.net: r for r in rows if r.side.endswith(" x1")}
    for row in rows:
        _, _, ranks = row.side.rpartition(" x")
        if ranks.isdecimal() and ranks != "1" and row.net in alone:
            ratio = alone[row.net].milliseconds / row.milliseconds
            yield f"train {row.net:10} {ratio:6.1%} of linear on {ranks}"


def main() -> None:
    from mpi4py import MPI

    from netdsl.ranks.mpi import MpiCommunicator

    net, device, low, folder = sys.argv[1:]
    communicator = MpiCommunicator(MPI)
    try:
        row, _ = train_row(BenchContext(device, low or None, Path(folder), communicator), net)
    except BaseException as e:
        print(f"rank {communicator.rank}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)
    if communicator.is_root:
        size = communicator.size
        row = replace(row, batch=row.batch * size, side=f"{row.side} x{size}")
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()

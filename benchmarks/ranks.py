"""Data-parallel training on this machine: what the ranks reduce a second, and what overlap saves.

    python -m benchmarks.ranks [--ranks 2] [--rounds 7] [--net resnet20] [--batch 128] [--save]

Starts itself under mpiexec. First the gradients of ResNet-50, reduced bucket by bucket through the
communicator and by MPI alone, on equal arrays, alternating; then steps of a net whose collectives
overlap with the backward pass, the same steps with each collective awaited at once, and what the
parts take: a step without collectives and the collectives without a step. Medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import ROOT, WORKLOADS
from netdsl.ranks.communicator import ONE_RANK, Buffer, Communicator
from netdsl.ranks.launcher import find_launch
from netdsl.ranks.mpi import MpiCommunicator

RESULTS = Path(__file__).parent / "results"


class BlockingCommunicator(Communicator):
    """Awaits each collective where it starts, so that nothing overlaps with it."""

    def __init__(self, inner: Communicator) -> None:
        self.rank, self.hosts, self._inner = inner.rank, inner.hosts, inner

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        done = self._inner.start_all_reduce(arrays)
        done.result()
        return done

    def all_gather(self, data: bytes) -> list[bytes]:
        return self._inner.all_gather(data)

    def broadcast(self, data: bytes) -> bytes:
        return self._inner.broadcast(data)

    def broadcast_array(self, array: Buffer) -> None:
        self._inner.broadcast_array(array)


class Step:
    """A training step of a net on this rank, with its part of a batch."""

    def __init__(self, name: str, communicator: Communicator, ranks: int) -> None:
        from netdsl.backends import open_backend
        from netdsl.language.elaborate import Settings, elaborate
        from netdsl.language.program import load_program
        from netdsl.runtime.executor import Executor
        from netdsl.runtime.state import State
        from netdsl.training.recipe.recipe import default_recipe
        from netdsl.training.step.compile import compile_step
        from netdsl.training.step.rank_reduction import SIGNAL_VALUES, SIGNALS

        work = next(w for w in WORKLOADS.values() if w.training and w.peer == name)
        path, net = work.net.split(":")
        share = work.batch // communicator.size
        settings = Settings(batch=share, training=True, ranks=ranks)
        network = elaborate(load_program(str(ROOT / path)), net, settings)
        backend = open_backend("cpu").with_communicator(communicator)
        graph = compile_step(network, default_recipe(net))
        state = State(backend)
        state.initialise(graph.states, seed=1)
        self.executor = Executor(graph, backend, state)
        images, labels = work.data()
        scalars = {"step": np.int32(0), "seed": np.int32(0), "rank": np.int32(communicator.rank)}
        self.given: dict[str, Any] = {
            "input": images[:share],
            "labels": labels[:share],
            "weights": np.ones(share, np.float32),
            "lr": np.float32(0.01),
            SIGNAL_VALUES: np.zeros(len(SIGNALS), np.float32),
            **scalars,
        }

    def __call__(self) -> None:
        self.executor.run(self.given)

    def reduce(self) -> None:
        """Runs the collectives of the step alone."""
        for kernel, thunk in zip(self.executor.plan.kernels, self.executor.kernels, strict=True):
            if kernel.kind == "collective":
                thunk()


def measure(
    sides: dict[str, Callable[[], None]], communicator: Communicator, rounds: int
) -> dict[str, float]:
    """Median seconds of each side, which alternate; a round takes as long as its slowest rank."""
    for side in sides.values():
        side()
        side()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            communicator.any(False)
            start = time.perf_counter()
            side()
            own = np.array([time.perf_counter() - start])
            slowest = max(np.frombuffer(x)[0] for x in communicator.all_gather(own.tobytes()))
            found[name].append(float(slowest))
    return {name: statistics.median(times) for name, times in found.items()}


def resnet50_buckets() -> list[list[int]]:
    """The sizes of the gradients of ResNet-50 by bucket, in values, largest bucket number first."""
    from netdsl.language.elaborate import Settings, elaborate
    from netdsl.language.program import load_program
    from netdsl.training.recipe.recipe import default_recipe
    from netdsl.training.step.graphs import training_graph

    settings = Settings(batch=1, training=True, ranks=2)
    network = elaborate(load_program(str(ROOT / "models/resnet.net")), "resnet50", settings)
    graph = training_graph(network, default_recipe("resnet50"))
    buckets: dict[int, list[int]] = {}
    for node in graph.find_by_op("all_reduce"):
        if node.name.startswith("reduce.") and node.type.rank:
            buckets.setdefault(node.attrs["bucket"], []).append(node.type.size)
    return [buckets[number] for number in sorted(buckets, reverse=True)]


def measure_bandwidth(mpi: Any, communicator: Communicator, rounds: int) -> list[str]:
    buckets = [[np.ones(n, np.float32) for n in sizes] for sizes in resnet50_buckets()]
    joined = [np.ones(sum(a.size for a in bucket), np.float32) for bucket in buckets]
    total = sum(a.nbytes for a in joined)

    def by_communicator() -> None:
        for pending in [communicator.start_all_reduce(bucket) for bucket in buckets]:
            pending.result()

    def by_mpi() -> None:
        for array in joined:
            mpi.COMM_WORLD.Allreduce(mpi.IN_PLACE, array)

    found = measure({"netdsl": by_communicator, "MPI alone": by_mpi}, communicator, rounds)
    for array in (*joined, *(a for bucket in buckets for a in bucket)):
        array[...] = 1
    lines = [f"gradients of ResNet-50: {total / 1e6:.1f} MB in {len(buckets)} buckets"]
    lines += [
        f"  {name:<24}{1e3 * s:8.1f} ms  {total / s / 1e9:5.2f} GB/s" for name, s in found.items()
    ]
    ratio = found["MPI alone"] / found["netdsl"]
    return [*lines, f"  netdsl reaches {ratio:.2f} of MPI alone"]


def measure_overlap(name: str, communicator: Communicator, rounds: int) -> list[str]:
    overlapped = Step(name, communicator, communicator.size)
    blocking = Step(name, BlockingCommunicator(communicator), communicator.size)
    alone = Step(name, _Solo(communicator), 1)
    sides: dict[str, Callable[[], None]] = {
        "step with overlap": overlapped,
        "step without": blocking,
        "step, no collectives": alone,
        "collectives alone": overlapped.reduce,
    }
    found = measure(sides, communicator, rounds)
    parts = found["step, no collectives"] + found["collectives alone"]
    lines = [f"{name}: {len(overlapped.executor.plan.kernels)} kernels"]
    lines += [f"  {label:<24}{1e3 * s:8.1f} ms" for label, s in found.items()]
    return [
        *lines,
        f"  sum of the parts {1e3 * parts:.1f} ms; overlap takes "
        f"{found['step with overlap'] / found['step without']:.2f} of the time without",
    ]


class _Solo(BlockingCommunicator):
    """The rank and the hosts of a run, for the part of a batch, without collectives."""

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        return ONE_RANK.start_all_reduce(arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if find_launch() is None:
        threads = max(1, len(os.sched_getaffinity(0)) // options.ranks)
        environment = {**os.environ, "NETDSL_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        mpiexec = Path(sys.executable).with_name("mpiexec")
        command = [str(mpiexec), "-n", str(options.ranks), sys.executable, "-m", "benchmarks.ranks"]
        sys.exit(subprocess.run([*command, *sys.argv[1:]], env=environment, check=False).returncode)
    from mpi4py import MPI

    from netdsl.insight.report.versions import describe_machine

    communicator = MpiCommunicator(MPI)
    library = MPI.Get_library_version().splitlines()[0].strip()
    lines = [
        f"{date.today()}, {communicator.size} ranks with {os.environ['NETDSL_THREADS']} threads, "
        f"{describe_machine()}, {library}",
        *measure_bandwidth(MPI, communicator, options.rounds),
        *measure_overlap(options.net, communicator, options.rounds),
    ]
    if communicator.is_root:
        print("\n".join(lines), flush=True)
        if options.save:
            (RESULTS / f"{date.today()}-ranks.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

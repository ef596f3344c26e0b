"""netdsl against PyTorch and onnxruntime on this machine's CPU, in turns, two threads each.

    python benchmarks/cpu.py [--only lenet-train-64 ...] [--rounds 5] [--no-compile] [--save]

Runs training and inference of the nets in workloads.py. Every side runs in its own process and
waits while another one is timed. All sides use netdsl's weights; their parameter counts, and their
losses (of two steps) or scores, must match, or nothing is printed. `--save` writes the table to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workloads import ROOT, WORKLOADS, Workload

TORCH_SIDES = ("eager", "channels_last", "compile")


class SideProcess:
    """A side in its own process; `seconds` passed from its start until it had run twice."""

    def __init__(self, side: str, work: Workload, folder: Path, caches: Path, still: bool) -> None:
        self.side, self.work = side, work
        command = [sys.executable, "-m", "benchmarks.cpu_side", side, work.name, str(folder)]
        environment = {
            **os.environ,
            "NETDSL_THREADS": "2",
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "1",
            "NETDSL_CACHE": str(caches / "netdsl"),
            "NUMBA_CACHE_DIR": str(caches / "numba"),
            "PYTHONPATH": str(ROOT),
        }
        started = time.time()
        self.process = subprocess.Popen(
            command + ["--still"] * still,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            cwd=ROOT,
        )
        told = self._answer()
        self.seconds = told["ready"] - started
        self.parameters = told["parameters"]
        self.note = told["note"]
        with np.load(folder / f"{side}.npz") as found:
            self.results = [found[k] for k in found.files]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(f"{self.side} of {self.work.name} ended with exit code {code}")
        return json.loads(line)

    def ask(self, what: object) -> Any:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def open_side(
    side: str, work: Workload, folder: Path, caches: Path, still: bool = False
) -> Iterator[SideProcess]:
    found = SideProcess(side, work, folder, caches, still)
    try:
        yield found
    finally:
        found.close()


@dataclass(frozen=True)
class CpuRow:
    """One row of the table: milliseconds and peak bytes by side, seconds until the second step is
    done."""

    work: Workload
    parameters: int
    milliseconds: Mapping[str, float]
    memory: Mapping[str, int]
    cold: float
    warm: float
    note: str

    @property
    def ratio(self) -> float:
        """The time of the fastest rival divided by ours."""
        return min(v for k, v in self.milliseconds.items() if k != "netdsl") / self.ours

    @property
    def ours(self) -> float:
        return self.milliseconds["netdsl"]

    def cells(self, sides: tuple[str, ...]) -> list[str]:
        times = [f"{self.milliseconds[s]:.2f}" if s in self.milliseconds else "" for s in sides]
        torch = min(v for k, v in self.memory.items() if k in TORCH_SIDES)
        memory = [f"{n / 2**20:,.0f}" for n in (self.memory["netdsl"], torch)]
        first = [f"{self.cold:.1f}", f"{self.warm:.1f}"]
        return [self.work.name, self.work.net, *times, f"{self.ratio:.2f}", *first, *memory]


def compare_sides(work: Workload, rounds: int, seconds: float, compiled: bool) -> CpuRow:
    """Runs one workload on all sides."""
    with TemporaryDirectory() as folder_, TemporaryDirectory() as caches_, ExitStack() as stack:
        folder, caches = Path(folder_), Path(caches_)
        with open_side("netdsl", work, folder, caches, still=True) as first:
            cold = first.seconds
        sides = [s for s in TORCH_SIDES if compiled or s != "compile"]
        with open_side("eager", work, folder, caches, still=True) as rival:
            _check_same_results(work, first, rival)
        if not work.training:
            command = [sys.executable, "-m", "benchmarks.cpu_side", "export", work.name, folder_]
            subprocess.run(command, check=True, cwd=ROOT)
            sides.append("onnxruntime")
        running = {
            side: stack.enter_context(open_side(side, work, folder, caches))
            for side in ("netdsl", *sides)
        }
        for other in running.values():
            if not work.drops:
                _check_same_results(work, first, other)
        times: dict[str, list[float]] = {side: [] for side in running}
        for _ in range(rounds):
            for side, one in running.items():
                times[side].append(statistics.median(one.ask(seconds)))
        ours = running["netdsl"]
        return CpuRow(
            work,
            ours.parameters,
            {side: statistics.median(found) for side, found in times.items()},
            {side: one.ask("memory") for side, one in running.items()},
            cold,
            ours.seconds,
            ours.note,
        )


def _check_same_results(work: Workload, a: SideProcess, b: SideProcess) -> None:
    """Raises AssertionError if two sides compute different results."""
    assert a.parameters == b.parameters, (work.name, a.parameters, b.parameters)
    for i, (x, z) in enumerate(zip(a.results, b.results, strict=True)):
        scale = max(1e-6, float(np.abs(z).max()))
        error = float(np.abs(x - z).max()) / scale
        assert error < (1e-2 if i and work.training else 1e-3), (work.name, i, x, z)


def format_table(rows: list[CpuRow]) -> list[str]:
    sides = ("netdsl", *TORCH_SIDES, "onnxruntime")
    sides = tuple(s for s in sides if any(s in row.milliseconds for row in rows))
    headings = ["work", "net", *sides, "ratio", "cold s", "warm s", "MiB", "torch MiB"]
    lines = [headings, *(row.cells(sides) for row in rows)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(x, wide)))  # noqa: B905
        for x in lines
    ] + [f"{row.work.name}: {row.note}" for row in rows if row.note]


def describe_conditions(options: argparse.Namespace) -> str:
    packages = ("torch", "onnxruntime", "numpy", "numba")
    versions = ", ".join(f"{p} {version(p)}" for p in packages)
    return (
        f"{datetime.date.today()}  netdsl {version('netdsl')}, Python {platform.python_version()}, "
        f"{versions}; {_processor_name()}, {os.cpu_count()} cores, 2 threads each side\n"
        f"float32; milliseconds of a step, medians of {options.rounds} rounds of "
        f"{options.seconds} s, sides in turns; ratio: best rival over netdsl\n"
        "cold and warm: seconds from the process's start until two steps are done, caches empty "
        "and filled; MiB: the most that a step holds beyond what is imported"
    )


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="Of each side in a round.")
    parser.add_argument("--no-compile", action="store_true", help="Without torch.compile.")
    parser.add_argument("--save", action="store_true", help="Keeps the table.")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        rows.append(
            compare_sides(WORKLOADS[name], options.rounds, options.seconds, not options.no_compile)
        )
        print(format_table(rows[-1:])[-1], file=sys.stderr, flush=True)
    text = "\n".join([describe_conditions(options), "", *format_table(rows)]) + "\n"
    print(text, end="")
    if options.save:
        path = ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-cpu.txt"
        path.write_text(text)


if __name__ == "__main__":
    main()

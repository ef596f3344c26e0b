"""Ranks as processes that MPI's launcher starts, for tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from netdsl.ranks.local_launch import find_local_launcher
from tests.conftest import ROOT

MAX_SECONDS = 100


@dataclass(frozen=True)
class FinishedRanks:
    """How a run of several processes ended."""

    exit_code: int
    out: str
    err: str
    seconds: float


def require_mpi() -> Path:
    """MPI's launcher; the test is skipped without it or mpi4py."""
    launcher = find_local_launcher()
    if launcher is None or find_spec("mpi4py") is None:
        pytest.skip("no mpi4py or no mpiexec; `pip install mpi4py mpich` to run this")
    return launcher


def make_environment(**variables: str) -> dict[str, str]:
    """The environment of a rank, without what a launcher of this test run would have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "OMPI_", "SLURM_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **variables}


def run_command(command: list[str], folder: Path, **variables: str) -> FinishedRanks:
    """Runs a command in a folder. It fails if it takes long: ranks must not hang."""
    start = time.monotonic()
    found = subprocess.run(
        command,
        cwd=folder,
        env=make_environment(**variables),
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    seconds = time.monotonic() - start
    return FinishedRanks(found.returncode, found.stdout, found.stderr, seconds)


def run_each(folder: Path, *commands: list[str]) -> FinishedRanks:
    """Runs one rank for each command line of netdsl."""
    parts: list[str] = []
    for command in commands:
        parts += [":"] * bool(parts) + ["-n", "1", sys.executable, "-m", "netdsl", *command]
    return run_command([str(require_mpi()), *parts], folder)


def run_with_fault(
    folder: Path,
    size: int,
    action: str,
    rank: int,
    update: int,
    *arguments: str,
    **variables: str,
) -> FinishedRanks:
    """Runs `netdsl ARGUMENTS` on ranks, one of which acts just before an update."""
    driver = [sys.executable, "-m", "tests.rank_driver", action, str(rank), str(update)]
    launcher = [str(require_mpi()), "-n", str(size)]
    return run_command([*launcher, *driver, *arguments], folder, **variables)

"""The launcher of a run: which one started this process, and as which of how many ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """A launcher that sets variables for the ranks that it starts."""

    name: str
    rank_variable: str
    size_variable: str


OPEN_MPI_LAUNCHER, SLURM_LAUNCHER = "Open MPI's mpirun", "srun"
LAUNCHERS = (
    Launcher(OPEN_MPI_LAUNCHER, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    Launcher("MPICH's mpiexec", "PMI_RANK", "PMI_SIZE"),
    Launcher(SLURM_LAUNCHER, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
"""The first whose variables are both set has started the process. In a batch script itself, Slurm
sets no variable of a step."""

LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""The number among the ranks of a host, from Open MPI, MPICH and Slurm. Under an mpiexec inside of
an allocation, the last one is set as well, and says nothing of its ranks."""


@dataclass(frozen=True)
class LauncherRank:
    """What a launcher says of this process."""

    launcher: Launcher
    rank: int
    size: int


def find_launch(environment: Mapping[str, str] = os.environ) -> LauncherRank | None:
    """Returns what the launcher says, or None for a process that was started by itself."""
    for launcher in LAUNCHERS:
        rank = environment.get(launcher.rank_variable, "")
        size = environment.get(launcher.size_variable, "")
        if rank.isdecimal() and size.isdecimal():
            return LauncherRank(launcher, int(rank), int(size))
    return None


def find_local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Returns the number of this process among the ranks of its host, 0 without a launcher. One
    that does not say it is taken to fill one host after the other."""
    launch = find_launch(environment)
    if launch is None:
        return 0
    values = (environment.get(name, "") for name in LOCAL_RANK_VARIABLES)
    return next((int(v) for v in values if v.isdecimal()), launch.rank)

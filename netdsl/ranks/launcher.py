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


LAUNCHERS = (
    Launcher("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    Launcher("MPICH's mpiexec", "PMI_RANK", "PMI_SIZE"),
    Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
"""The first whose variables are both set has started the process. In a batch script itself, Slurm
sets no variable of a step."""


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

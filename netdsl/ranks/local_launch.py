"""The launch of several ranks on this machine: the same command again, under MPI's launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from netdsl.errors import Diagnostic, fail
from netdsl.optional_imports import NotInstalledError
from netdsl.ranks.launcher import find_launch

MAX_LOCAL_RANKS = 256
_LAUNCHER_NAMES = ("mpiexec", "mpirun")
_ROOT_VARIABLES = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
_VERSION_SECONDS = 20


def find_local_launcher() -> Path | None:
    """Returns MPI's launcher: the one beside this interpreter, else the first on the PATH."""
    folder = Path(sys.executable).parent
    beside = (folder / name for name in _LAUNCHER_NAMES)
    on_path = (Path(p) for name in _LAUNCHER_NAMES if (p := shutil.which(name)))
    return next((p for p in (*beside, *on_path) if os.access(p, os.X_OK)), None)


def check_ranks(count: int) -> bool:
    """Returns whether this command is still to be started on `count` ranks. Raises NetError if a
    launcher has started it on another number of them."""
    launch = find_launch()
    if launch is None:
        return count > 1
    if launch.size != count:
        raise fail(
            f"`--ranks {count:,}`, but {launch.launcher.name} has started {launch.size:,}",
            help="leave out `--ranks`: the launcher decides",
        )
    return False


def make_command(count: int) -> list[str]:
    """Returns the command that starts this one, word for word, on several ranks. Raises NetError
    if there is no launcher, or one that would refuse."""
    if find_spec("mpi4py") is None:
        message = "several ranks need mpi4py, which is not installed"
        raise NotInstalledError(Diagnostic(message, help="pip install 'netdsl[ranks]'"))
    launcher = find_local_launcher()
    if launcher is None:
        raise fail(
            "`--ranks` needs the launcher of an MPI: there is no mpiexec or mpirun",
            help="`pip install mpich`, or load the cluster's MPI (`module load ...`)",
        )
    _check_root(launcher)
    return [str(launcher), "-n", str(count), sys.executable, *sys.orig_argv[1:]]


def _check_root(launcher: Path) -> None:
    """Raises NetError if this is the root user, whom Open MPI's launcher refuses."""
    is_root = sys.platform != "win32" and os.geteuid() == 0
    if not is_root or all(os.environ.get(name) == "1" for name in _ROOT_VARIABLES):
        return
    if "Open MPI" in _read_version(launcher):
        settings = " ".join(f"{name}=1" for name in _ROOT_VARIABLES)
        raise fail(
            f"{launcher} starts nothing for the root user",
            help=f"use another user or, in a container, set {settings}",
        )


def _read_version(launcher: Path) -> str:
    try:
        found = subprocess.run(
            [launcher, "--version"], capture_output=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise fail(f"{launcher} cannot be started: {e}", help="is it the mpiexec of an MPI?") from e
    return found.stdout.decode(errors="replace")


def replace_process(command: list[str]) -> int:
    """Runs a command in place of this process, so that it gets its signals and returns its exit
    code; on Windows, as a child, whose exit code is returned."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    return subprocess.run(command, check=False).returncode

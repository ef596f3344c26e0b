"""The world: the ranks of one run, and how this process joins them, fails and leaves."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.interrupt import defer_interrupts, keep_interrupts
from netdsl.optional_imports import import_optional
from netdsl.ranks.abandoned_launch import DELIVERY, limit_start
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.ranks.cores import share_cores
from netdsl.ranks.launcher import OPEN_MPI_LAUNCHER, SLURM_LAUNCHER, Launcher, LauncherRank
from netdsl.ranks.monitor import Monitor
from netdsl.ranks.mpi import MpiCommunicator, MpiMailbox
from netdsl.ranks.rank_names import name_ranks
from netdsl.ranks.watchdog import Patience, read_patience
from netdsl.text_escaping import escape_text

_REACTION = 8.0
"""Seconds within which rank 0 ends the run of a rank that has failed; it may be in a long call."""


class World:
    """The run of a single process."""

    communicator: Communicator = ONE_RANK

    @contextmanager
    def defer_interrupts(self) -> Iterator[Callable[[], bool]]:
        """Inside the block, signals set the flag that the yielded function returns."""
        with defer_interrupts() as is_received:
            yield is_received


class MpiWorld(World):
    """The run of several processes, on `mpi`, the module mpi4py.MPI."""

    def __init__(self, mpi: Any, patience: Patience) -> None:
        self._mpi = mpi
        self._stderr = sys.stderr
        self.communicator = communicator = MpiCommunicator(mpi)
        self._monitor = Monitor(
            communicator.rank,
            communicator.hosts,
            communicator.activity,
            MpiMailbox(mpi),
            patience,
            self._show,
            self._abort,
        )
        self._is_received: Callable[[], bool] | None = None
        share_cores(communicator)
        self._monitor.start()

    @contextmanager
    def defer_interrupts(self) -> Iterator[Callable[[], bool]]:
        """As alone, but handlers stay when the block ends: a launcher passes a signal on to one
        rank after the other, and the last one may get it when the run has stopped already."""
        if self._is_received is None:
            self._is_received = keep_interrupts(self._monitor.note_stop)
        yield self._is_received

    def fail(self, text: str, code: int) -> int:
        """Has rank 0 print the text and end all ranks. Returns only if all of them have failed."""
        self._monitor.report_fault(text, code)
        end_code = self._monitor.wait_for_end(_REACTION)
        if end_code is None:  # rank 0 is stuck in a call
            rank = self.communicator.rank
            self._show(f"{name_ranks(self.communicator.hosts, [rank])}: {text}")
            self._abort(code)
        return self.leave(code if end_code is None else end_code)

    def leave(self, code: int) -> int:
        """Waits for all ranks before MPI ends: a rank that ends alone is taken for a dead one."""
        code = int(self.communicator.share(lambda: str(code).encode()))
        self._monitor.stop()
        self.communicator.share(lambda: b"")  # no monitor sends any more
        self._monitor.drain()
        self._mpi.Finalize()
        return code

    def _show(self, text: str) -> None:
        print(escape_text(text), file=self._stderr, flush=True)

    def _abort(self, code: int) -> None:
        sys.stdout.flush()
        self._stderr.flush()
        time.sleep(DELIVERY)
        self._mpi.COMM_WORLD.Abort(code)


_current = World()


def current_world() -> World:
    """Returns the world that this process has joined, or that of a single process."""
    return _current


def join_world(launch: LauncherRank) -> MpiWorld:
    """Joins the ranks that a launcher has started; MPI is loaded for nothing else. Raises NetError
    if they cannot be joined."""
    global _current
    patience = read_patience()
    mpi = _load_mpi()
    if launch.launcher.name == OPEN_MPI_LAUNCHER and mpi.get_vendor()[0] != _OPEN_MPI:
        raise _world_error(launch, mpi, "cannot be started by it")  # MPICH ends the process
    _start_mpi(launch, mpi, patience)
    _current = world = MpiWorld(mpi, patience)
    return world


_OPEN_MPI = "Open MPI"


def _load_mpi() -> Any:
    requirement, help = "several ranks need mpi4py", "pip install 'netdsl[ranks]'"
    package = import_optional("mpi4py", requirement, help)
    package.rc.initialize = package.rc.finalize = False
    try:
        return import_optional("mpi4py.MPI", requirement, help)
    except RuntimeError as e:
        raise fail(
            f"mpi4py finds no MPI: {e}",
            help="load the cluster's MPI (`module load ...`), set MPI4PY_LIBMPI to its libmpi.so, "
            "or `pip install mpich`",
        ) from None


def _start_mpi(launch: LauncherRank, mpi: Any, patience: Patience) -> None:
    """Raises NetError if MPI does not see the ranks that the launcher has started, or allows calls
    from one thread only."""
    with limit_start(patience.limit), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mpi4py's own, about a launcher that is not MPI's
        level = mpi.Init_thread(mpi.THREAD_MULTIPLE)
    size = int(mpi.COMM_WORLD.Get_size())
    error: NetError | None = None
    if size != launch.size:
        error = _world_error(launch, mpi, f"sees {size:,}")
    elif level < mpi.THREAD_MULTIPLE:
        error = fail(
            f"this build of {mpi.get_vendor()[0]} does not allow calls from several threads",
            help="set MPI4PY_LIBMPI to the libmpi.so of one with MPI_THREAD_MULTIPLE",
        )
    if error is not None:
        mpi.Finalize()
        raise error


def _world_error(launch: LauncherRank, mpi: Any, problem: str) -> NetError:
    """The error for a launcher that is not one of the MPI that is loaded."""
    vendor, started = mpi.get_vendor()[0], f"{launch.launcher.name} has started {launch.size:,}"
    return fail(
        f"{started} ranks, but {vendor}, which mpi4py has loaded, {problem}",
        help=_advise(launch.launcher, vendor),
    )


def _advise(launcher: Launcher, vendor: str) -> str:
    if launcher.name == SLURM_LAUNCHER:
        return (
            "let srun speak the language of this MPI: `srun --mpi=pmix` or `--mpi=pmi2`; "
            "`srun --mpi=list` shows what it speaks"
        )
    return (
        f"start with the `mpiexec` of {vendor}, or set MPI4PY_LIBMPI to the libmpi.so that belongs "
        f"to {launcher.name}"
    )

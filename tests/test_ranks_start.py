"""How ranks start: launchers and their variables, cores, one directory and one lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.language.program import parse_file
from netdsl.ranks import abandoned_launch, cores, local_launch
from netdsl.ranks.communicator import ONE_RANK, Communicator, share_path
from netdsl.ranks.launcher import LAUNCHERS, LauncherRank, find_launch
from netdsl.ranks.world import current_world, join_world
from netdsl.training.run.launch import launch_or_continue
from netdsl.training.store import checkpoint, run_directory
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.lock import lock_directories
from netdsl.training.store.shared_checkpoint import share_checkpoint
from tests.rank_processes import make_environment, require_mpi, run_command
from tests.thread_ranks import run_ranks

NET = """
net small { input(8x8x1) -> flatten -> fc(10) }
data { source = digits, batch = 128, limit = 256 }
train { epochs = 3, optimizer = sgd(lr=0.1, momentum=0.9) }
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for launcher in LAUNCHERS:
        monkeypatch.delenv(launcher.rank_variable, raising=False)
        monkeypatch.delenv(launcher.size_variable, raising=False)


# ---- launchers


@given(st.sets(st.sampled_from(LAUNCHERS)), st.integers(0, 9), st.integers(1, 9))
def test_a_launcher_is_found_by_both_of_its_variables(set_: Any, rank: int, size: int) -> None:
    variables = {x.rank_variable: str(rank) for x in set_}
    assert find_launch(variables) is None
    variables |= {x.size_variable: str(size) for x in set_}
    found = find_launch(variables)
    first = next((x for x in LAUNCHERS if x in set_), None)
    assert found == (None if first is None else LauncherRank(first, rank, size))


def test_a_plain_run_loads_no_mpi(tmp_path: Path) -> None:
    (tmp_path / "small.net").write_text(NET)
    code = (
        "import sys; from netdsl import cli\n"
        "sys.argv = ['netdsl', 'train', 'small.net', '-o', 'run', '--device', 'reference']\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'mpi4py']\n"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=make_environment(), check=True, capture_output=True)
    assert current_world().communicator is ONE_RANK


def refuse_to_launch(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records the commands that would replace this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess("", 0, b"MPICH")
    )
    return commands


def make_launcher(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    place = folder / name
    place.write_text("")
    place.chmod(0o755)
    return place


def test_ranks_are_started_by_the_launcher_beside_the_interpreter_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netdsl: Any
) -> None:
    commands = refuse_to_launch(monkeypatch)
    monkeypatch.setattr(local_launch, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "netdsl", "train", "a b.net", "--x=*"])
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    code, _, err = netdsl("train", "a.net", "--ranks", "2")
    assert (code, "there is no mpiexec or mpirun" in err) == (2, True)
    for folder, name in (("path", "mpirun"), ("path", "mpiexec"), ("bin", "mpiexec")):
        launcher = make_launcher(tmp_path / folder, name)
        netdsl("train", "a.net", "--ranks", "2")
        arguments = ["-m", "netdsl", "train", "a b.net", "--x=*"]
        assert commands.pop() == [str(launcher), "-n", "2", sys.executable, *arguments]
    monkeypatch.setattr(local_launch, "find_spec", lambda name: None)
    code, _, err = netdsl("train", "a.net", "--ranks", "2")
    assert (code, "pip install 'netdsl[ranks]'" in err) == (2, True)


def test_one_rank_and_the_number_that_a_launcher_has_started_start_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert local_launch.check_ranks(2)
    assert not local_launch.check_ranks(1)
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert not local_launch.check_ranks(3)
    with pytest.raises(NetError, match=r"`--ranks 2`, but MPICH's mpiexec has started 3"):
        local_launch.check_ranks(2)


@pytest.mark.parametrize("number", ["0", "-1", "257", "x"])
def test_a_number_of_ranks_has_limits(netdsl: Any, number: str) -> None:
    assert netdsl("train", "a.net", "--ranks", number)[0] == 2


def test_root_is_told_what_open_mpi_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = make_launcher(tmp_path, "mpiexec")
    monkeypatch.setattr(local_launch, "find_local_launcher", lambda: launcher)
    monkeypatch.setattr(local_launch, "find_spec", lambda name: name)
    monkeypatch.setattr(local_launch, "_read_version", lambda launcher: "mpirun (Open MPI) 5.0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        with pytest.raises(NetError, match=rf"{name}=1"):
            local_launch.make_command(2)
        monkeypatch.setenv(name, "1")
    assert local_launch.make_command(2)[:3] == [str(launcher), "-n", "2"]


class FakeMpi:
    """The module mpi4py.MPI in a process that its launcher has nothing to do with."""

    THREAD_MULTIPLE = 3

    def __init__(self, vendor: str, level: int = 3, size: int = 1) -> None:
        self.vendor, self.level, self.size = vendor, level, size
        self.is_finalized = self.is_started = False
        self.COMM_WORLD = self

    def get_vendor(self) -> tuple[str, tuple[int, ...]]:
        return self.vendor, (1,)

    def Init_thread(self, level: int) -> int:
        self.is_started = True
        return self.level

    def Get_size(self) -> int:
        return self.size

    def Finalize(self) -> None:
        self.is_finalized = True


@pytest.mark.parametrize(
    ("launcher", "vendor", "advice"),
    [
        ("Open MPI's mpirun", "MPICH", "start with the `mpiexec` of MPICH"),
        ("MPICH's mpiexec", "Open MPI", "start with the `mpiexec` of Open MPI"),
        ("srun", "Open MPI", "--mpi=pmix"),
    ],
)
def test_a_launcher_of_another_mpi_is_refused(
    monkeypatch: pytest.MonkeyPatch, launcher: str, vendor: str, advice: str
) -> None:
    mpi = FakeMpi(vendor)
    monkeypatch.setattr("netdsl.ranks.world._load_mpi", lambda: mpi)
    (chosen,) = (x for x in LAUNCHERS if x.name == launcher)
    with pytest.raises(NetError) as e:
        join_world(LauncherRank(chosen, 0, 4))
    assert f"{launcher} has started 4 ranks, but {vendor}" in str(e.value)
    assert advice in str(e.value)
    assert mpi.is_started == mpi.is_finalized


def test_an_mpi_without_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = FakeMpi("MPICH", level=1, size=4)
    monkeypatch.setattr("netdsl.ranks.world._load_mpi", lambda: mpi)
    with pytest.raises(NetError, match="does not allow calls from several threads"):
        join_world(LauncherRank(LAUNCHERS[1], 0, 4))
    assert mpi.is_finalized


@pytest.mark.slow
def test_other_commands_run_as_if_alone(tmp_path: Path) -> None:
    (tmp_path / "small.net").write_text(NET)
    command = [str(require_mpi()), "-n", "2", sys.executable, "-m", "netdsl", "check", "small.net"]
    found = subprocess.run(
        command, cwd=tmp_path, env=make_environment(), capture_output=True, text=True, check=True
    )
    assert found.stderr.count("no warnings") == 2


def test_a_launch_is_abandoned_before_mpi_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def abandon(code: int, command: str = "train", size: str = "2", has_begun: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["netdsl", command])
        monkeypatch.setenv("PMI_SIZE", size)
        monkeypatch.setattr(abandoned_launch, "_has_begun", has_begun)
        abandoned_launch.abandon_launch(code)
        try:
            return os.read(reader, 99).decode()
        except BlockingIOError:
            return ""

    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_FD", str(writer))
    assert abandon(130) == "cmd=abort exitcode=130\n"
    assert abandon(0) == abandon(2, command="check") == abandon(2, size="1") == ""
    assert abandon(2, has_begun=True) == ""
    monkeypatch.delenv("PMI_FD")
    assert abandon(2) == ""
    os.close(reader)
    os.close(writer)


@pytest.mark.slow
def test_a_rank_that_cannot_join_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "small.net").write_text(NET)
    command = [sys.executable, "-m", "netdsl", "train", "small.net"]
    bad = ["-n", "1", "-env", "NETDSL_RANK_TIMEOUT", "x", *command]
    found = run_command([str(require_mpi()), "-n", "2", *command, ":", *bad], tmp_path)
    assert found.exit_code == 2
    assert found.err.startswith("rank 2 on ")
    assert "NETDSL_RANK_TIMEOUT=x is not a number of seconds" in found.err


# ---- cores


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sets(st.integers(0, 5), min_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_ranks_share_the_cores_that_they_may_run_on(ranks: list[tuple[str, set[int]]]) -> None:
    def count(communicator: Communicator) -> int:
        communicator.hosts = tuple(host for host, _ in ranks)
        own = sorted(ranks[communicator.rank][1])
        return cores.count_sharers(communicator, own)

    for rank, found in enumerate(run_ranks(len(ranks), count)):
        host, own = ranks[rank]
        assert found == sum(h == host and bool(own & others) for h, others in ranks)


def test_threads_are_those_of_the_shared_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_find_affinity", lambda: list(range(6)))
    for sharers, expected in ((1, 6), (2, 3), (4, 1), (8, 1)):
        monkeypatch.setattr(cores, "_sharers", sharers)
        assert cores.count_cores() == expected


# ---- directories and checkpoints


def test_rank_0_alone_locks_and_creates(tmp_path: Path) -> None:
    def start(communicator: Communicator) -> Path:
        folder = share_path(communicator, lambda: run_directory.create_numbered(tmp_path, "a.net"))
        with lock_directories(folder, communicator=communicator):
            communicator.any(False)
            return folder

    assert set(run_ranks(3, start)) == {tmp_path / "a-1"}
    assert [p.name for p in tmp_path.iterdir()] == ["a-1"]


@settings(max_examples=25)
@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 3), max_size=3), max_size=3),
    st.lists(st.text(max_size=4), max_size=3),
    st.booleans(),
)
def test_a_checkpoint_of_rank_0_reaches_all(
    shapes: dict[str, list[int]], classes: list[str], is_there: bool
) -> None:
    rng = np.random.default_rng(len(shapes))
    states = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    saved = Checkpoint(states, "net", tuple(classes), {"a": 1.5, "b": None}, {"seen": 3}, "here", 1)

    def share(communicator: Communicator) -> Checkpoint | None:
        def load() -> Checkpoint | None:
            assert communicator.is_root
            return saved if is_there else None

        return share_checkpoint(communicator, load)

    for found in run_ranks(2, share):
        if found is None:
            assert not is_there
            continue
        assert is_there
        assert {k: v for k, v in vars(found).items() if k != "states"} == {
            k: v for k, v in vars(saved).items() if k != "states"
        }
        assert list(found.states) == list(states)
        for name, values in states.items():
            np.testing.assert_array_equal(found.states[name], values)


# ---- --requeue


@pytest.fixture
def queued(netdsl: Any, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs the command that a queue runs again and again."""
    (tmp_path / "small.net").write_text(NET)
    command = ("train", "small.net", "-o", "run", "--device", "reference", "--requeue")
    return lambda *more: netdsl(*command, *more)


def test_a_queued_command_continues_its_run(
    queued: Callable[..., tuple[int, str, str]],
    netdsl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = run_directory.RunDirectory.save_epoch

    def save_and_interrupt(self: run_directory.RunDirectory, *args: Any) -> bool:
        original(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(run_directory.RunDirectory, "save_epoch", save_and_interrupt)
        for epoch in (1, 2):
            assert queued()[0] == 130
            last = checkpoint.load(tmp_path / "run" / "last.safetensors")
            assert last.progress["epoch"] == epoch
    code, out, _ = queued("--json")
    assert (code, '"epochs": 3' in out) == (0, True)
    assert netdsl("train", "small.net", "-o", "whole", "--device", "reference")[0] == 0
    content, other = (
        (tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "whole")
    )
    assert content == other
    code, _, err = queued()
    assert (code, "the run is complete" in err) == (0, True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == content


def test_a_queued_command_continues_no_other_run(
    queued: Callable[..., tuple[int, str, str]], netdsl: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    assert queued("--set", "train.epochs=1")[0] == 0
    code, _, err = queued()
    assert code == 2
    assert "run contains a run of another recipe: `train.epochs` is 1 there, but 3 now" in err


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("--requeue",), "name the directory of the run with `--out DIR`"),
        (("--requeue", "--resume", "run"), "`netdsl train FILE --out DIR --requeue` starts"),
        (("--requeue", "-o", "run", "--dry-run"), "leave it out"),
        (("--requeue", "-o", "run", "--overfit"), "leave it out"),
    ],
)
def test_requeue_needs_a_run_that_it_can_find_again(
    netdsl: Any, options: tuple[str, ...], advice: str
) -> None:
    code, _, err = netdsl("train", "small.net", *options)
    assert (code, advice in err) == (2, True)


def test_all_ranks_continue_where_rank_0_finds_the_run(
    queued: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    assert queued()[0] == 0

    def start(communicator: Communicator) -> tuple[bool, int]:
        out = tmp_path / ("run" if communicator.is_root else "not here")
        file = str(tmp_path / "small.net")
        with launch_or_continue(file, out, (), None, parse_file, communicator) as found:
            assert found.saved is not None
            return found.is_new, found.saved.progress["epoch"]

    assert run_ranks(2, start) == [(False, 3)] * 2

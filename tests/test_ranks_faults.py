"""Monitors of ranks on a clock of the test: who reports a fault, and whom the watchdog names."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.interrupt import STOP_MESSAGE
from netdsl.ranks.activity import Activity
from netdsl.ranks.communicator import Communicator
from netdsl.ranks.faults import GRACE, FaultCollector, RankFault
from netdsl.ranks.monitor import Monitor
from netdsl.ranks.rank_names import name_ranks
from netdsl.ranks.same_start import check_same
from netdsl.ranks.watchdog import make_patience, read_patience
from tests.thread_ranks import run_ranks

TICK = 0.25
LIMIT = 1800.0


@dataclass
class PostOffice:
    """The mailbox of one rank, beside those of the others."""

    rank: int
    boxes: list[deque[tuple[int, bytes]]]

    def send(self, rank: int, data: bytes) -> None:
        self.boxes[rank].append((self.rank, data))

    def receive(self) -> tuple[int, bytes] | None:
        return self.boxes[self.rank].popleft() if self.boxes[self.rank] else None


@dataclass
class Ring:
    """Monitors of several ranks; `stuck` ones handle nothing."""

    size: int
    limit: float = LIMIT
    now: float = 0.0
    stuck: set[int] = field(default_factory=set)
    shown: list[tuple[int, float, str]] = field(default_factory=list)
    """The rank that printed, when, and what."""
    aborts: list[tuple[int, float, int]] = field(default_factory=list)
    """The rank that ended the run, when, and the exit code."""

    def __post_init__(self) -> None:
        hosts = tuple(f"host{r}" for r in range(self.size))
        boxes: list[deque[tuple[int, bytes]]] = [deque() for _ in range(self.size)]
        self.activities = [Activity(lambda: self.now) for _ in range(self.size)]
        self.monitors = [
            Monitor(
                rank,
                hosts,
                self.activities[rank],
                PostOffice(rank, boxes),
                make_patience(self.limit),
                lambda text, rank=rank: self.shown.append((rank, self.now, text)),  # type: ignore[misc]
                lambda code, rank=rank: self.aborts.append((rank, self.now, code)),  # type: ignore[misc]
                lambda: self.now,
            )
            for rank in range(self.size)
        ]

    def run(self, seconds: float) -> None:
        """Lets time pass, until somebody ends the run."""
        end = self.now + seconds
        while self.now < end and not self.aborts:
            for rank, monitor in enumerate(self.monitors):
                if rank not in self.stuck:
                    monitor.step()
            self.now += TICK

    def texts(self) -> list[str]:
        return [text for _, _, text in self.shown]

    def end_codes(self) -> set[int | None]:
        return {m.wait_for_end(0) for m in self.monitors}


RANKS = st.integers(1, 5)


@given(st.data(), RANKS)
def test_a_fault_of_some_ranks_ends_all_with_their_names(data: st.DataObject, size: int) -> None:
    ring = Ring(size)
    failing = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=max(1, size - 1)))
    for rank in failing:
        ring.monitors[rank].report_fault(f"error: {rank % 2}", 2)
    ring.run(30)
    if len(failing) == size:  # a single rank
        assert ring.texts() == ["error: 0"]
        return
    assert [(rank, code) for rank, _, code in ring.aborts] == [(0, 2)]
    assert ring.aborts[0][1] <= GRACE + 3 * TICK
    (text,) = ring.texts()
    for rank in range(size):
        assert (f"rank {rank} on host{rank}" in text) == (rank in failing)
    assert text.count("error:") == len({rank % 2 for rank in failing})


@given(RANKS, st.sampled_from([2, 70, 130]))
def test_an_error_of_all_ranks_is_printed_once_and_ends_them_in_order(size: int, code: int) -> None:
    ring = Ring(size)
    for rank, monitor in enumerate(ring.monitors):
        monitor.report_fault("error: the file is empty", code)
        if rank % 2:
            ring.run(GRACE / 4)
    ring.run(3)
    assert [(rank, text) for rank, _, text in ring.shown] == [(0, "error: the file is empty")]
    assert not ring.aborts
    assert ring.end_codes() == {code}


def test_ranks_in_a_collective_are_aborted() -> None:
    ring = Ring(2)
    with ring.activities[1].collective():
        for monitor in ring.monitors:
            monitor.report_fault("error: no", 2)
    ring.run(3)
    assert (ring.texts(), len(ring.aborts)) == (["error: no"], 1)


@given(st.lists(st.sampled_from([2, 70, 130]), min_size=1, max_size=4))
def test_the_worst_fault_gives_the_exit_code(codes: list[int]) -> None:
    found = FaultCollector([""] * len(codes))
    for rank, code in enumerate(codes):
        found.add(rank, RankFault("", code, True), 0.0)
    assert found.code == (70 if 70 in codes else 2 if 2 in codes else 130)


@settings(max_examples=30)
@given(st.data(), st.integers(2, 5))
def test_the_watchdog_names_who_has_not_joined(data: st.DataObject, size: int) -> None:
    ring = Ring(size)
    late = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1))
    ring.stuck = data.draw(st.sets(st.sampled_from(sorted(late))))
    with ExitStack() as waits:
        for rank, activity in enumerate(ring.activities):
            activity.phase = f"in phase {rank}"
            if rank not in late:
                waits.enter_context(activity.collective())
        ring.run(50)
        assert not ring.shown
        ring.run(45)
        assert len(ring.shown) == 1
        ring.run(300)
    assert 4 <= len(ring.shown) <= 7
    assert not ring.aborts
    for printer, _, text in ring.shown:
        assert printer == (0 if 0 not in ring.stuck else min(set(range(size)) - late))
        for rank in range(size):
            assert (f"rank {rank} on host{rank}" in text) == (rank in late)
            assert (f"in phase {rank}" in text) == (rank in late - ring.stuck)
        assert ("without an answer" in text) == bool(ring.stuck)


@settings(max_examples=30)
@given(st.data(), st.integers(2, 4), st.sampled_from([6.0, 60.0, LIMIT]))
def test_a_wait_that_is_too_long_ends_the_run(data: st.DataObject, size: int, limit: float) -> None:
    ring = Ring(size, limit)
    late = data.draw(st.integers(0, size - 1))
    ring.stuck = {late} if data.draw(st.booleans()) else set()
    with ExitStack() as waits:
        for rank, activity in enumerate(ring.activities):
            if rank != late:
                waits.enter_context(activity.collective())
        ring.run(2 * limit)
    ((_, when, code),) = ring.aborts
    patience = make_patience(limit)
    assert code == 2
    assert limit <= when <= limit + patience.report + (size + 1) * patience.answer
    ring.aborts.clear()
    ring.run(1)
    assert f"rank {late} on host{late}" in ring.texts()[-1]
    assert "NETDSL_RANK_TIMEOUT" in ring.texts()[-1]


def test_ranks_that_wait_for_a_short_time_say_nothing() -> None:
    ring = Ring(3)
    for _ in range(20):
        with ring.activities[0].collective(), ring.activities[1].collective():
            ring.run(50)
        with ring.activities[2].collective():
            ring.run(1)
    assert not ring.shown


def test_a_signal_is_announced_once(capfd: pytest.CaptureFixture[str]) -> None:
    ring = Ring(4)
    for rank in (2, 3):
        ring.monitors[rank].note_stop()
    ring.run(2)
    ring.monitors[0].note_stop()
    ring.run(2)
    assert capfd.readouterr().err.count(STOP_MESSAGE) == 1


def test_the_limit_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETDSL_RANK_TIMEOUT", raising=False)
    assert (read_patience().limit, read_patience().report) == (1800, 60)
    monkeypatch.setenv("NETDSL_RANK_TIMEOUT", "30")
    assert (read_patience().limit, read_patience().report) == (30, 10)


@given(st.integers(0, 300))
def test_many_ranks_are_not_all_named(count: int) -> None:
    text = name_ranks([f"h{r}" for r in range(count)], range(count))
    assert text.count("rank ") == min(count, 8)
    assert (f"{count - 8} more" in text) == (count > 8)


@settings(max_examples=40)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.text(max_size=80), min_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_what_differs_between_ranks_is_found_on_all(given: list[dict[str, str]]) -> None:
    def check(communicator: Communicator) -> str:
        try:
            check_same(communicator, given[communicator.rank])
        except Exception as e:
            return str(e)
        return ""

    (text,) = set(run_ranks(len(given), check))
    differing = [k for k in "abc" if len({values[k] for values in given}) > 1]
    assert bool(text) == bool(differing)
    for rank in range(len(given) if differing else 0):
        assert f"rank {rank} on host{rank}" in text
    for name in differing:
        assert f"{name} is " in text

"""The communicator's operations, on threads as ranks and alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.ranks.communicator import ONE_RANK, Communicator
from tests.thread_ranks import run_ranks


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4))
def test_bytes_of_any_length_are_exchanged(values: list[bytes]) -> None:
    def work(communicator: Communicator) -> tuple[list[bytes], bytes, bytes]:
        own = values[communicator.rank]
        shared = communicator.share(lambda: b"made on " + str(communicator.rank).encode())
        return communicator.all_gather(own), communicator.broadcast(own), shared

    assert run_ranks(len(values), work) == [(values, values[0], b"made on 0")] * len(values)


@given(st.lists(st.booleans(), min_size=1, max_size=4))
def test_a_flag_of_any_rank_reaches_all(flags: list[bool]) -> None:
    found = run_ranks(len(flags), lambda c: c.any(flags[c.rank]))
    assert found == [any(flags)] * len(flags)


def test_sums_have_the_same_bits_on_all_ranks() -> None:
    def work(communicator: Communicator) -> bytes:
        rng = np.random.default_rng(communicator.rank)
        a = rng.normal(size=(3, 5)).astype(np.float32)
        b = rng.normal(size=7).astype(np.float64)
        communicator.start_all_reduce([a, b]).result()
        return a.tobytes() + b.tobytes()

    assert len(set(run_ranks(3, work))) == 1


def test_an_array_is_filled_with_the_values_of_rank_0() -> None:
    def work(communicator: Communicator) -> list[float]:
        array = np.full(3, communicator.rank, np.float32)
        communicator.broadcast_array(array)
        return list(array)

    assert run_ranks(2, work) == [[0, 0, 0]] * 2


def test_different_collectives_and_errors_end_the_ranks() -> None:
    with pytest.raises(AssertionError, match="different collectives"):
        run_ranks(2, lambda c: c.any(True) if c.is_root else c.broadcast(b""))

    def work(communicator: Communicator) -> None:
        if communicator.rank == 1:
            raise ValueError("broken")
        communicator.any(False)

    with pytest.raises(ValueError, match="broken"):
        run_ranks(3, work)


def test_a_single_process_is_alone() -> None:
    assert ONE_RANK.is_alone
    assert ONE_RANK.is_root
    assert ONE_RANK.size == 1
    assert ONE_RANK.all_gather(b"x") == [b"x"]
    assert ONE_RANK.share(lambda: b"y") == b"y"
    assert ONE_RANK.any(True)
    assert not ONE_RANK.any(False)

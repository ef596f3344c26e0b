"""Collectives in plans: buckets, what is reduced in place, and what waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends.array_backend import model_backend, reference_backend
from netdsl.backends.base import Backend
from netdsl.backends.cpu.backend import CpuBackend
from netdsl.ir.builder import Builder
from netdsl.plan.fusion import FULL_FUSION, NO_FUSION, FusionOptions
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.ranks.communicator import Buffer, OneRank
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.step.buckets import (
    BUCKET_BYTES,
    TAIL_BUCKET_BYTES,
    TAIL_BYTES,
    partition_buckets,
)
from netdsl.types import Array, Graph, TensorType


class Doubling(OneRank):
    """Two ranks with the same values."""

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        for a in arrays:
            a *= 2
        return super().start_all_reduce(arrays)


def chain_graph(is_read_later: bool) -> Graph:
    """Two values in a bucket, of which the first is also read afterwards or not."""
    b = Builder()
    x = b.input("x", TensorType((2, 3)))
    first, second = b.tanh(x), b.exp(x)
    total = b.all_reduce(first, bucket=1)
    other = b.all_reduce(b.reshape(second, shape=(6, 1)), bucket=1)
    result = b.add(total, b.reshape(other, shape=(2, 3)))
    if is_read_later:
        result = b.mul(result, first)
    return b.build({"result": result, "total": total})


def is_in_place(plan: Plan, name: str) -> bool:
    own, given_ = plan.placements[name], plan.placements[plan.graph[name].args[0]]
    return own.start == given_.start and own.buffer == given_.buffer


@pytest.mark.parametrize("is_read_later", [False, True])
@pytest.mark.parametrize("fusion", [NO_FUSION, FULL_FUSION], ids=["nothing", "all"])
def test_a_bucket_is_one_kernel_and_in_place_where_nothing_reads_its_operand_later(
    fusion: FusionOptions, is_read_later: bool
) -> None:
    plan = verify_plan(make_plan(chain_graph(is_read_later), fusion))
    (number,) = (i for i, k in enumerate(plan.kernels) if k.kind == "collective")
    bucket = plan.kernels[number]
    assert len(bucket.outputs) == 2
    first, second = bucket.outputs
    assert is_in_place(plan, second)  # through a view of another shape
    assert is_in_place(plan, first) == (not is_read_later)
    (reader,) = plan.waits
    assert plan.waits[reader] == (number,)
    assert set(bucket.outputs) & {plan.flow.base[i] for i in plan.kernels[reader].inputs}


@pytest.mark.parametrize("is_read_later", [False, True])
@pytest.mark.parametrize(
    "backend", [CpuBackend(), reference_backend(), model_backend()], ids=lambda b: b.name
)
def test_engines_reduce_what_the_formula_says(backend: Backend, is_read_later: bool) -> None:
    own = backend.with_communicator(Doubling())
    executor = Executor(chain_graph(is_read_later), own, State(own))
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    for step in range(3):
        given_x = x + np.float32(step)
        out = executor.run({"x": given_x})
        total = 2 * np.tanh(given_x)
        expected: Array = total + 2 * np.exp(given_x)
        if is_read_later:
            expected = expected * np.tanh(given_x)
        np.testing.assert_allclose(out["result"], expected, rtol=1e-5)
        np.testing.assert_allclose(out["total"], total, rtol=1e-5)


@given(st.lists(st.integers(1, 40_000_000), min_size=1, max_size=40))
def test_buckets_hold_all_gradients_in_order_within_their_sizes(sizes: list[int]) -> None:
    buckets = partition_buckets(sizes)
    assert [i for bucket in buckets for i in bucket] == list(range(len(sizes)))
    behind = 0
    for bucket in reversed(buckets):
        total = sum(sizes[i] for i in bucket)
        is_tail = behind + total <= TAIL_BYTES
        assert len(bucket) == 1 or total <= (TAIL_BUCKET_BYTES if is_tail else BUCKET_BYTES)
        behind += total

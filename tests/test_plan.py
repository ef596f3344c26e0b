"""The partition, the memory plan and the executor, on drawn graphs and on every block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.backends.arrays import ArrayBackend
from netdsl.ir.evaluate import results
from netdsl.passes.lower import lower
from netdsl.passes.simplify import simplify
from netdsl.plan.fusion import ALONE, FUSED, Fusion
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.verify import verify_plan
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import Graph
from tests.conftest import HypothesisDraw
from tests.dataflow import Dataflow
from tests.graphs import BLOCK_NETS, block_step, drawn_step, values_for

FUSIONS = (
    FUSED,
    ALONE,
    replace(FUSED, halo=False, channels=4, batch=False),
    replace(FUSED, epilogue=frozenset(), sums=frozenset()),
    replace(FUSED, operands=0, concat_align=32, channels=8),
)


def same_as_the_interpreter(graph: Graph, fusion: Fusion, steps: int = 2) -> None:
    """Several steps of the executor against the interpreter, outputs and states."""
    values = values_for(graph)
    backend = ArrayBackend("test", np, fusion)
    state = State(backend)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    for _ in range(steps):
        expected = results(graph, values)
        found = dict(executor.run(values))
        for label in graph.outputs:
            close(found[label], expected[label], label)
        for name in graph.updates:
            values[name] = expected[f"update {name}"]
            close(state.arrays[name], values[name], name)


def close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * scale, err_msg=what)


def sound(graph: Graph, fusion: Fusion) -> Plan:
    plan = verify_plan(make_plan(graph, fusion))
    Dataflow(plan).run()
    return plan


@settings(max_examples=120)
@given(st.data())
def test_drawn_graphs_fused_and_unfused(data: st.DataObject) -> None:
    draw = HypothesisDraw(data)
    graph = drawn_step(draw)
    if draw.pick((True, False)):
        graph = simplify(lower(graph))
    fusion = draw.pick(FUSIONS)
    sound(graph, fusion)
    same_as_the_interpreter(graph, fusion)


@pytest.mark.parametrize("net", BLOCK_NETS)
def test_blocks_fused_and_unfused(net: str) -> None:
    graph = simplify(lower(block_step(net)))
    for fusion in FUSIONS:
        sound(graph, fusion)
        same_as_the_interpreter(graph, fusion)

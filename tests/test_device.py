"""The CUDA engine on a GPU, held against the interpreter; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.ir.evaluate import results
from netdsl.passes.lower import lower
from netdsl.passes.precision import mixed
from netdsl.passes.simplify import simplify
from netdsl.plan.fusion import FUSED
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import Graph
from tests.graphs import BLOCK_NETS, BLOCKS, step_of, values_for


@pytest.fixture(scope="module")
def backend() -> Any:
    try:
        return open_backend("cuda")
    except NetError as e:
        pytest.skip(str(e))


def compared(graph: Graph, backend: Any, steps: int = 3) -> dict[str, float]:
    """Largest relative error of outputs and states over some steps: run, captured, replayed."""
    values = values_for(graph)
    state = State(backend)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    worst: dict[str, float] = {}

    def note(name: str, found: Any, expected: Any) -> None:
        found = backend.download(found).astype("float64")
        expected = np.asarray(expected, dtype="float64")
        error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-2)
        worst[name] = max(worst.get(name, 0.0), float(error))

    for _ in range(steps):
        expected = results(graph, values)
        found = dict(executor.run(values))
        for label in graph.outputs:
            note(label, found[label], expected[label])
        for name in graph.updates:
            note(name, state.arrays[name], expected[f"update {name}"])
            values[name] = backend.download(state.arrays[name])
    return worst


@pytest.mark.parametrize("net", BLOCK_NETS)
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-10), ("float32", 2e-4)])
def test_blocks(net: str, dtype: str, most: float, backend: Any) -> None:
    graph = simplify(lower(step_of(BLOCKS, net, batch=2, dtype=dtype)))
    worst = compared(graph, backend)
    name = max(worst, key=worst.__getitem__)
    assert worst[name] < most, (name, worst[name])


@pytest.mark.parametrize("net", ["residual", "googlenet", "plain"])
def test_kernels_of_any_partition_bind(net: str, backend: Any) -> None:
    """Products with epilogues and sums, as another partition makes them."""
    graph = simplify(lower(step_of(BLOCKS, net, batch=2)))
    worst = compared(graph, replace(backend, fusion=replace(FUSED, halo=False, align=256)))
    name = max(worst, key=worst.__getitem__)
    assert worst[name] < 2e-4, (name, worst[name])


@pytest.mark.parametrize("net", BLOCK_NETS)
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_mixed_blocks_stay_close(net: str, low: str, backend: Any) -> None:
    """In 16 bits each step stays near the interpreter's own 16-bit step."""
    network = step_of(BLOCKS, net, batch=2)
    worst = compared(simplify(mixed(simplify(lower(network)), low)), backend, steps=2)
    assert np.isfinite(list(worst.values())).all()
    assert worst["loss"] < 0.05, worst["loss"]

"""Operators where their formulas have an edge: ties, zeros, large scores, sums of many values."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.backends.cpu.task_program import split_range
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.ops import OPS
from netdsl.ops.special import erf
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import TensorType
from tests.conftest import ROOT
from tests.processes import run_process

DEVICES = ("reference", "cpu")


def computed(op: str, *arrays: Any, device: str = "reference", **attrs: Any) -> Any:
    """What an operator gives for float32 arrays and integers."""
    given = {
        f"x{i}": np.asarray(a, np.int32 if np.asarray(a).dtype.kind == "i" else np.float32)
        for i, a in enumerate(arrays)
    }
    b = Builder()
    inputs = [b.input(name, TensorType(a.shape, str(a.dtype))) for name, a in given.items()]
    graph = b.build({"y": b.emit(op, *inputs, **attrs)})
    backend = open_backend(device)
    return np.array(backend.download(Executor(graph, backend, State(backend)).run(given)["y"]))


@pytest.mark.parametrize(("op", "x", "z"), [("maximum", 2.0, 1.0), ("minimum", 1.0, 2.0)])
def test_equal_values_pass_the_gradient_to_the_second(op: str, x: float, z: float) -> None:
    b = Builder(dtype="float64")
    first, second = (b.input(n, TensorType((3,), "float64")) for n in "xz")
    gradients = grad(b, b.reduce_sum(b.emit(op, first, second), axes=(0,)), [first, second])
    values = {"x": np.array([x, z, 1.5]), "z": np.array([z, x, 1.5])}
    out = evaluate_results(b.build({n: gradients[n] for n in "xz"}), values)
    assert out["x"].tolist() == [1, 0, 0]
    assert out["z"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("w", "g", "ratio"),
    [
        ([3.0, 4.0], [0.6, 0.8], 0.1 * 5 / (1 + 0.5 * 5 + 0.25)),
        ([0.0, 0.0], [0.6, 0.8], 1.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 1.0),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_ratio_of_nothing_is_one(
    w: list[float], g: list[float], ratio: float, device: str
) -> None:
    """You et al. 2017, where weights or gradients are zero."""
    attrs = {"trust": 0.1, "weight_decay": 0.5, "eps": 0.25}
    assert computed("trust_ratio", w, g, device=device, **attrs) == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0, 1e38])
def test_scores_may_be_of_any_size(device: str, shift: float) -> None:
    """Softmax depends on differences alone."""
    scores = np.array([[0.0, 1.0, 2.0]]) + (shift if abs(shift) < 1e9 else 0)
    if abs(shift) > 1e9:
        scores = np.array([[0.0, shift, -shift]])
    powers = np.exp(scores - scores.max())
    expected = powers / powers.sum()
    found = computed("softmax", scores, device=device)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    logs = computed("log_softmax", scores, device=device)
    np.testing.assert_allclose(logs, scores - scores.max() - np.log(powers.sum()), rtol=1e-3)
    loss = computed("cross_entropy", scores, np.array([1]), smoothing=0.0, device=device)
    np.testing.assert_allclose(loss, -logs[:, 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("op", ["reduce_sum", "reduce_mean"])
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_the_error_of_a_sum_does_not_grow_with_its_length(
    op: str, axes: tuple[int, ...], device: str
) -> None:
    """Of 200,000 rows, which one after the other in 32 bits would be off by a thousandth."""
    x = np.full((200_000, 3), 0.1, np.float32)
    found = computed(op, x, axes=axes, keepdims=False, device=device)
    exact = (
        x.astype(np.float64).sum(axes) if op == "reduce_sum" else x.astype(np.float64).mean(axes)
    )
    np.testing.assert_allclose(found, exact, rtol=2e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 0.0])
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_finite(value: float, device: str) -> None:
    b = Builder()
    x = b.input("x", TensorType((2,), "float32"))
    y = b.select(b.is_finite(x), b.const(1.0), b.const(0.0))
    backend = open_backend(device)
    executor = Executor(b.build({"y": y}), backend, State(backend))
    out = executor.run({"x": np.array([value, 1.0], np.float32)})["y"]
    assert backend.download(out).tolist() == [float(np.isfinite(value)), 1.0]


@pytest.mark.parametrize(
    ("approximate", "values"),
    [
        (None, (0.0, 0.8413447, -0.1586553, 1.9544997, -0.0040497)),
        ("tanh", (0.0, 0.8411920, -0.1588080, 1.9545977, -0.0036374)),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_gelu_has_its_values(
    approximate: str | None, values: tuple[float, ...], device: str
) -> None:
    """As PyTorch's gelu gives them."""
    found = computed("gelu", [0.0, 1.0, -1.0, 2.0, -3.0], device=device, approximate=approximate)
    np.testing.assert_allclose(found, values, rtol=0, atol=2e-6)


ACTIVATIONS = [
    *((n, {}) for n, record in OPS.items() if "activation" in record.traits),
    ("gelu", {"approximate": "tanh"}),
]
LARGE = np.array([s * v for v in (5, 7.95, 9, 10, 20, 88, 1e3, 1e9, 1e30) for s in (1, -1)])
"""Drawn examples are of the size of 1; here activations are at their limits."""


def with_defaults(op: str, attrs: dict[str, Any]) -> dict[str, Any]:
    return {p.name: p.default for p in OPS[op].attrs} | attrs


@pytest.mark.parametrize(("op", "attrs"), ACTIVATIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_activations_of_large_numbers(op: str, attrs: dict[str, Any], device: str) -> None:
    full = with_defaults(op, attrs)
    expected = OPS[op].reference(np, LARGE, **full)
    found = computed(op, LARGE, device=device, **full)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("op", "attrs"), ACTIVATIONS)
def test_gradients_of_activations_at_large_numbers(op: str, attrs: dict[str, Any]) -> None:
    b = Builder()
    x = b.input("x", TensorType(LARGE.shape))
    gradient = grad(b, b.reduce_sum(b.emit(op, x, **attrs), axes=(0,)), [x])["x"]
    found = evaluate_results(b.build({"y": gradient}), {"x": LARGE.astype(np.float32)})["y"]
    step, full = 1e-5 * np.abs(LARGE), with_defaults(op, attrs)
    above, below = (OPS[op].reference(np, LARGE + s, **full) for s in (step, -step))
    np.testing.assert_allclose(found, (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


def test_the_error_function_is_that_of_the_standard_library() -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), np.logspace(-300, 300, 601), [np.inf, -np.inf]])
    np.testing.assert_allclose(erf(np, x), np.vectorize(math.erf)(x), rtol=1e-15)
    assert np.isnan(erf(np, np.array([np.nan])))[0]


def test_relu6_is_a_clamp() -> None:
    graph = elaborate(build_program(parse("net n { input(3) -> relu6 }"))).graph
    node = graph[graph.outputs["main"]]
    assert (node.op, dict(node.attrs)) == ("clamp", {"low": 0.0, "high": 6.0})


PRIMITIVES = {"erf": np.vectorize(math.erf), "log1p": np.log1p}
"""Functions that the CPU engine computes by formulas of its own, in float64."""


@pytest.mark.parametrize("name", PRIMITIVES)
def test_functions_of_the_cpu_engine_are_exact_to_a_few_units(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all magnitudes of float32, and where the functions have no value."""
    record = replace(OPS["tanh"], reference=lambda xp, x: getattr(xp, name)(x))
    monkeypatch.setitem(OPS, "tanh", record)
    magnitudes = np.arange(0, 0x7F800000, 65_537, dtype=np.uint32).view(np.float32)
    special = np.array([0, 1, 2, np.inf, np.nan, 1e-40], np.float32)
    x = np.concatenate([magnitudes, special, -magnitudes, -special])
    with np.errstate(all="ignore"):
        expected = PRIMITIVES[name](x.astype(np.float64))
    found = computed("tanh", x, device="cpu").astype(np.float64)
    is_finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~is_finite], expected[~is_finite])
    found, expected = found[is_finite], expected[is_finite]
    assert np.max(np.abs(found - expected) / np.spacing(np.abs(expected).astype(np.float32))) < 5


def test_a_class_that_is_impossible_costs_nothing() -> None:
    scores, labels = [[0.0, -np.inf, 0.0]], np.array([0], np.int32)
    for device in DEVICES:
        loss = computed("cross_entropy", scores, labels, device=device, smoothing=0.0)
        assert loss[0] == pytest.approx(np.log(2))


@given(count=st.integers(0, 3000), most=st.integers(1, 100))
def test_tasks_share_out_all_there_is(count: int, most: int) -> None:
    """Each of it once, in no more parts than asked for, as even as can be."""
    parts = split_range(count, most)
    assert [i for first, last in parts for i in range(first, last)] == list(range(count))
    assert len(parts) <= max(1, most)
    sizes = [last - first for first, last in parts]
    assert max(sizes) - min(sizes) <= 1


_SUMS = """
import hashlib
import numpy as np
from tests.test_op_edges import computed
x = np.random.default_rng(0).standard_normal((4, 256, 512, 3)).astype(np.float32)
for op in ("reduce_sum", "reduce_mean"):
    y = computed(op, x, axes=(0, 1, 2), keepdims=False, device="cpu")
    print(hashlib.sha256(y.tobytes()).hexdigest())
print(hashlib.sha256(computed("moments", x, axes=(0, 1, 2), device="cpu").tobytes()).hexdigest())
"""


def test_large_sums_do_not_depend_on_the_number_of_threads() -> None:
    """Of 1.5 million elements, which are worth more tasks than the parts that are added up."""
    found = {
        threads: run_process(
            *(sys.executable, "-c", _SUMS),
            env={**os.environ, "PYTHONPATH": str(ROOT), "NETDSL_THREADS": threads},
            text=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert found["1"] == found["3"]
    assert len(found["1"].splitlines()) == 3

"""Optimizers over 50 steps against their published formulas, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netdsl.globs import matches_glob
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.training.recipe.optimizers import OPTIMIZERS, Update, emit_update
from netdsl.types import Graph, TensorType
from netdsl.values import Argument

STEPS = 50
KIND = TensorType((3, 2), "float64")


def graph(name: str, **arguments: Any) -> tuple[Graph, float]:
    """One update of the state `w` by the gradient that is given as the input `g`."""
    from netdsl.signature import BoundCall

    record = OPTIMIZERS[name]
    bound = record.signature.bind([Argument(k, v) for k, v in arguments.items()], None)
    b = Builder(dtype="float64")
    w = b.state("w", KIND, ("normal", 1.0))
    part = Update(b, w, b.input("g", KIND), {})
    new = emit_update(part, BoundCall(name, record, bound))
    return b.build({"w": new}, {"w": new, **part.updates}), bound["lr"]


def run(name: str, **arguments: Any) -> list[np.ndarray]:
    """The weights after each of 50 steps with seeded gradients."""
    step, lr = graph(name, **arguments)
    rng = np.random.default_rng(0)
    state = {n.name: np.zeros(n.type.shape) for n in step.states}
    state["w"] = rng.standard_normal(KIND.shape)
    history = [state["w"]]
    for t in range(STEPS):
        given = {"g": rng.standard_normal(KIND.shape), "lr": np.float64(lr), "step": np.int32(t)}
        out = evaluate_results(step, {**state, **given})
        state = {name: out[f"update {name}"] for name in state}
        history.append(state["w"])
    return history


def follow(formula: Callable[..., np.ndarray], **constants: float) -> list[np.ndarray]:
    """The same 50 steps by a formula of (w, g, t, memory)."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(KIND.shape)
    memory: dict[str, Any] = {"m": 0.0, "v": 0.0}
    history = [w]
    for t in range(1, STEPS + 1):
        w = formula(w, rng.standard_normal(KIND.shape), t, memory, **constants)
        history.append(w)
    return history


def sgd(w: Any, g: Any, t: int, s: Any, lr: float, m: float, wd: float, nesterov: bool) -> Any:
    g = g + wd * w
    s["m"] = m * s["m"] + g
    return w - lr * (g + m * s["m"] if nesterov else s["m"])


def adam(w: Any, g: Any, t: int, s: Any, lr: float, wd: float, decoupled: bool) -> Any:
    b1, b2, eps = 0.9, 0.999, 1e-8
    g = g if decoupled else g + wd * w
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g * g
    direction = (s["m"] / (1 - b1**t)) / (np.sqrt(s["v"] / (1 - b2**t)) + eps)
    return w - lr * (direction + (wd * w if decoupled else 0))


def rmsprop(w: Any, g: Any, t: int, s: Any, lr: float, decay: float) -> Any:
    s["v"] = decay * s["v"] + (1 - decay) * g * g
    return w - lr * g / (np.sqrt(s["v"]) + 1e-8)


def lars(w: Any, g: Any, t: int, s: Any, lr: float, m: float, wd: float) -> Any:
    ratio = 0.001 * np.linalg.norm(w) / (np.linalg.norm(g) + wd * np.linalg.norm(w) + 1e-9)
    s["m"] = m * s["m"] + lr * ratio * (g + wd * w)
    return w - s["m"]


CASES: list[tuple[str, dict[str, Any], Callable[..., Any], dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}, sgd, {"lr": 0.1, "m": 0.0, "wd": 0.0, "nesterov": False}),
    (
        "sgd",
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        sgd,
        {"lr": 0.1, "m": 0.9, "wd": 0.01, "nesterov": False},
    ),
    (
        "sgd",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        sgd,
        {"lr": 0.1, "m": 0.9, "wd": 0.0, "nesterov": True},
    ),
    ("adam", {"weight_decay": 0.1}, adam, {"lr": 0.001, "wd": 0.1, "decoupled": False}),
    ("adamw", {"lr": 0.01}, adam, {"lr": 0.01, "wd": 0.01, "decoupled": True}),
    ("rmsprop", {"lr": 0.01, "decay": 0.99}, rmsprop, {"lr": 0.01, "decay": 0.99}),
    ("lars", {"weight_decay": 0.01}, lars, {"lr": 0.1, "m": 0.9, "wd": 0.01}),
]


@pytest.mark.parametrize(("name", "given", "formula", "constants"), CASES)
def test_follows_its_formula(
    name: str, given: dict[str, Any], formula: Callable[..., Any], constants: dict[str, Any]
) -> None:
    expected = follow(formula, **constants)
    for found, right in zip(run(name, **given), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-12)


def test_no_decay_leaves_parameters_out() -> None:
    plain = run("sgd", lr=0.1)
    left_out = run("sgd", lr=0.1, weight_decay=0.5, no_decay=("*",))
    np.testing.assert_array_equal(plain[-1], left_out[-1])


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("s3.bottleneck1.conv1.weight", "s3.*", True),
        ("head.fc1.bias", "*.bias", True),
        ("s3.batchnorm1.gamma", "*.batchnorm*.*", True),
        ("s3.conv1.weight", "S3.*", False),
    ],
)
def test_globs_cross_dots(path: str, pattern: str, fits: bool) -> None:
    assert matches_glob(path, pattern) is fits

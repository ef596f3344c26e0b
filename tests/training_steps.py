"""Training steps of a net on a backend, each starting from the interpreter's states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from netdsl.backends.base import Backend
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, ShrinkSettings, elaborate
from netdsl.language.program import Program
from netdsl.ops import OPS
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.recipe.losses import CLASS_WEIGHTS
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.recipe.schedules import Moment, rate_factor
from netdsl.training.step.compile import compile_step
from netdsl.types import Array, Graph, Node

STEPS = 5
TOLERANCE = 1e-4
WINOGRAD_TOLERANCE = 1e-3
"""Tolerance for minimal filtering (Winograd) convolutions: their sums round about twice as
coarsely."""
ROUNDING_TOLERANCE = 2e-6
"""Sixteen roundings relative to a state's size: the tolerance if a step hardly changes it."""
MAX_ERROR_RATIO = 100
"""The factor by which a backend's error may exceed `InterpretedStep.lost`. It matters where a net
magnifies each rounding: in a norm of nearly equal values, after a score of a million, near the kink
of a ReLU."""
ULP = 2.0**-22
MAX_VALUE = 1e12
"""A net with larger numbers learns nothing, and the squares of some overflow."""
EXACT_OPS = {n for n, op in OPS.items() if op.kind in ("leaf", "view")} | {
    *("relu", "clamp", "maximum", "minimum", "select", "neg", "copy", "pad", "concat", "max_pool"),
    *("reduce_max", "one_hot", "im2col"),
}
"""Operators that select or move values without rounding."""
COUNTER_INPUTS = ("step", "update", "seed", "rank")


@dataclass(frozen=True)
class StepCase:
    """A training step, ready for planning, and its recipe."""

    graph: Graph
    recipe: Recipe
    classes: int


def make_case(
    program: Program,
    net: str | None,
    recipe: Recipe,
    batch: int,
    shrink: ShrinkSettings | None = None,
    ranks: int = 1,
) -> StepCase | None:
    """The step of a net; scores with several positions are averaged. None if nothing is
    trainable."""
    settings = Settings(
        batch, training=True, frozen_globs=recipe.freeze, shrink=shrink, ranks=ranks
    )
    network = elaborate(program, net, settings)
    reached = network.graph.backward_slice(*network.graph.outputs.values())
    if not any(n.name in reached for n in network.parameters):
        return None
    scores = network.graph[network.graph.outputs["main"]]
    if scores.type.rank == 4:
        b = Builder(network.graph)
        mean = b.reduce_mean(scores, axes=(1, 2))
        outputs = {k: b.nodes[name] for k, name in network.graph.outputs.items()} | {"main": mean}
        updates = {k: b.nodes[name] for k, name in network.graph.updates.items()}
        network = replace(network, graph=b.build(outputs, updates, network.graph.name))
    return StepCase(compile_step(network, recipe), recipe, scores.type.shape[-1])


def draw_states(graph: Graph, rng: np.random.Generator) -> dict[str, Array]:
    """States unlike those of any initialiser: nothing at 0 or 1. Those that are never negative
    (variances, mean squares) stay positive."""
    return {node.name: _draw_state(node, rng).astype(node.type.dtype) for node in graph.states}


def _draw_state(node: Node, rng: np.random.Generator) -> Array:
    shape = node.type.shape
    if len(shape) > 1 and node.attrs["trainable"]:
        return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2 + 1)
    size = 0.3 + 1.4 * rng.random(shape)
    if node.attrs["trainable"]:
        return size * rng.choice((1.0, -1.0), shape)
    return 0.1 * size if "weight" in node.name else size


def draw_step_inputs(case: StepCase, i: int, rng: np.random.Generator) -> dict[str, Array]:
    """The inputs of the i-th step."""
    recipe = case.recipe
    epoch = i * recipe.epochs / STEPS
    moment = Moment(epoch, recipe.epochs, 7, [1.0] * int(epoch))
    known = {
        "lr": recipe.optimizer.arguments["lr"] * rate_factor(recipe.schedule, moment),
        "ema_rate": 0.3,
        **dict.fromkeys(COUNTER_INPUTS, i + 1),
    }
    return {n.name: _draw_input(n, case, known, rng) for n in case.graph.inputs}


def _draw_input(
    node: Node, case: StepCase, known: Mapping[str, float], rng: np.random.Generator
) -> Array:
    kind = node.type
    if node.name in known:
        return np.asarray(known[node.name], kind.dtype)
    if node.name == "weights" or node.name.startswith(CLASS_WEIGHTS):
        return np.linspace(0.5, 1.5, kind.size).astype(kind.dtype)
    if node.name == "labels":
        return rng.integers(0, case.classes, kind.shape).astype(kind.dtype)
    return rng.standard_normal(kind.shape).astype(kind.dtype)


class StepTrial:
    """A case on a backend, with its kernels bound and its states drawn by `draw_states`."""

    def __init__(self, case: StepCase, backend: Backend, seed: int) -> None:
        self.case, self.backend = case, backend
        self.rng = np.random.default_rng(seed)
        self.states = draw_states(case.graph, self.rng)
        self.state = State(backend)
        self.state.load(self.states, case.graph.states, "the test")
        self.executor = Executor(case.graph, backend, self.state)

    def differences(self, tolerance: float = TOLERANCE) -> Iterator[str]:
        """Describes the differences between backend and interpreter, step by step."""
        graph = self.case.graph
        for i in range(STEPS):
            values = {**self.states, **draw_step_inputs(self.case, i, self.rng)}
            step = InterpretedStep(graph, values, evaluate_results(graph, values))
            if not step.sound:
                return
            for key, found in self._computed(values):
                wrong = step.wrong(key, found, tolerance)
                if wrong:
                    yield f"step {i}: {key} {wrong}"
            self.states |= {k: step.expected[f"update {k}"] for k in graph.updates}
            self.state.load(self.states, graph.states, "the test")

    def _computed(self, values: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """All results of a step but the accuracy: a tiny difference in a score may change a hit."""
        out, download = self.executor.run(values), self.backend.download
        yield from ((k, download(v)) for k, v in out.items() if k != "accuracy")
        for k in self.case.graph.updates:
            yield f"update {k}", download(self.state.arrays[k])


@dataclass(frozen=True, eq=False)
class InterpretedStep:
    """A step as computed by the interpreter."""

    graph: Graph
    values: Mapping[str, Array]
    expected: Mapping[str, Array]

    @property
    def sound(self) -> bool:
        """Whether all of the interpreter's numbers fit into sums in 32 bits."""
        return all(
            _max_difference(v, 0.0) < MAX_VALUE and np.isfinite(v).all()
            for v in self.expected.values()
        )

    def wrong(self, key: str, found: Array, tolerance: float) -> str | None:
        """Describes the error of a value if it is too large: more than a fraction of the step's
        change, and more than rounding explains."""
        expected = self.expected[key]
        good = np.isfinite(expected)
        if (np.isfinite(found) != good).any():
            return f"is {found.ravel()[:4]}, not {expected.ravel()[:4]}"
        error = _max_difference(found, expected)
        moved = _max_difference(expected, self.values.get(key.removeprefix("update "), 0.0))
        if error <= tolerance * moved + ROUNDING_TOLERANCE * _max_difference(expected, 0.0):
            return None
        if error <= MAX_ERROR_RATIO * self.lost(key):
            return None
        return f"is off by {error:.2g}, where it moves by {moved:.2g}"

    def lost(self, key: str) -> float:
        """The error of a value if every node's result is rounded, in three ways, and in the
        interpreter's own 32 bits."""
        exact, *others = (way[key] for way in self._rounded)
        return max(_max_difference(other, exact) for other in (*others, self.expected[key]))

    @cached_property
    def _rounded(self) -> list[dict[str, Array]]:
        return [self._results(way) for way in range(4)]

    def _results(self, way: int) -> dict[str, Array]:
        """Outputs and updates in 64 bits, each computed result perturbed by up to `ULP`, that of a
        reduction or product by up to the square root of its number of terms times as much, as with
        sums in 32 bits. The perturbation depends on the value alone: equal values stay equal. Way 0
        is exact."""
        found = {
            k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in self.values.items()
        }
        with np.errstate(all="ignore"):
            for name, node in self.graph.nodes.items():
                if name not in found:
                    args = (found[a] for a in node.args)
                    value = np.asarray(OPS[node.op].reference(np, *args, **node.attrs))
                    if way and node.op not in EXACT_OPS and value.dtype.kind == "f":
                        value = _perturb(value.astype("float64"), way, self._summed(node))
                    found[name] = value
        outputs = {label: found[name] for label, name in self.graph.outputs.items()}
        return outputs | {f"update {k}": found[name] for k, name in self.graph.updates.items()}

    def _summed(self, node: Node) -> float:
        """The number of terms that a reduction or product sums per result."""
        op, types = OPS[node.op], [self.graph[a].type for a in node.args]
        if op.macs is not None:
            return op.macs(node.type, *types, **node.attrs) / node.type.size
        return types[0].size / node.type.size if op.kind == "reduce" else 1.0


def _max_difference(x: Array, y: Array | float) -> float:
    """The largest difference between finite values."""
    with np.errstate(all="ignore"):
        apart = np.abs(np.asarray(x, "float64") - y)
    return float(apart[np.isfinite(apart)].max(initial=0))


def _perturb(x: Array, way: int, summed: float) -> Array:
    bits = np.ascontiguousarray(x).view(np.int64).reshape(x.shape)
    with np.errstate(all="ignore"):
        mixed = (bits ^ (bits >> 29)) * np.int64(0x5851F42D4C957F2D + 2 * way)
        return x * (1 + ULP * max(summed, 1.0) ** 0.5 * (mixed >> 32) / 2.0**31)

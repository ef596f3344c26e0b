"""The gradient of a whole net against finite differences, layer by layer, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdsl.ir.builder import Builder
from netdsl.ir.derivative import slope_error
from netdsl.ir.evaluate import evaluate
from netdsl.ir.grad import grad
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import LayerInfo, Network
from netdsl.language.program import Program
from netdsl.runtime.state import draw
from netdsl.types import Array, Graph

TOLERANCE = 1e-5
_STEP = 1e-5
_TRIES = 6
SETTINGS = Settings(batch=2, training=True, dtype="float64")


@dataclass(frozen=True)
class LayerError:
    """The largest relative error of a layer: of its parameters and of what flows out of it."""

    name: str
    error: float
    checked: int

    @property
    def ok(self) -> bool:
        return self.error < TOLERANCE


class _Checker:
    """A net with a random cotangent on its outputs, and the gradients that the IR gives."""

    def __init__(self, network: Network, seed: int) -> None:
        self.network = network
        self.rng = np.random.default_rng(seed)
        self.given = self._values(network.graph, seed)
        results = set(network.graph.outputs.values())
        self.cotangents = {
            name: self.rng.standard_normal(network.graph[name].type.shape) for name in results
        }
        self.names, self.gradient = self._gradient_graph()
        self.learnt = {n.name for n in network.parameters}
        self.values = evaluate(self.gradient, self.given | self._cotangent_inputs())

    def _values(self, graph: Graph, seed: int) -> dict[str, Array]:
        values: dict[str, Array] = {}
        for node in graph.states:
            value = draw(node, seed)
            if node.attrs["trainable"] and node.attrs["init"][0] == "constant":
                value = value + 0.1 * self.rng.standard_normal(value.shape)
            values[node.name] = value.astype(node.type.dtype)
        for node in graph.inputs:
            if node.type.dtype.startswith("int"):
                values[node.name] = np.asarray(seed % 1000, dtype=node.type.dtype)
            else:
                values[node.name] = self.rng.standard_normal(node.type.shape)
        return values

    def _cotangent_inputs(self) -> dict[str, Array]:
        return {f"cotangent of {name}": u for name, u in self.cotangents.items()}

    def _gradient_graph(self) -> tuple[list[str], Graph]:
        b = Builder(self.network.graph, dtype="float64")
        loss = None
        for name in self.cotangents:
            node = b.nodes[name]
            u = b.input(f"cotangent of {name}", node.type)
            axes = tuple(range(node.type.rank))
            part = b.reduce_sum(b.mul(node, u), axes=axes)
            loss = part if loss is None else b.add(loss, part)
        assert loss is not None
        names = [n.name for n in self.network.parameters]
        names += [layer.result for layer in self.network.layers]
        names = list(dict.fromkeys(names))
        gradients = grad(b, loss, [b.nodes[n] for n in names])
        return names, b.graph(gradients)

    def _loss(self, name: str, value: Array) -> float:
        values = evaluate(self.network.graph, self.given | {name: value})
        return sum(float((values[n] * u).sum()) for n, u in self.cotangents.items())

    def _point(self, name: str) -> tuple[Array, Array]:
        """A value and the loss's gradient there. What flows out of a layer is moved a little first:
        the zeros of a ReLU tie under a maximum, which is no point to differentiate at."""
        if name in self.learnt:
            return self.values[name], self.values[self.gradient.outputs[name]]
        point = self.values[name]
        point = point + 1e-2 * self.rng.standard_normal(point.shape)
        values = evaluate(self.gradient, self.given | self._cotangent_inputs() | {name: point})
        return point, values[self.gradient.outputs[name]]

    def error(self, name: str) -> float:
        """Error of the gradient of one value; kinks in the way are stepped around by other
        directions and shorter steps, so the smallest of a few tries counts."""
        best = float("inf")
        for attempt in range(_TRIES):
            point, gradient = self._point(name)
            v = self.rng.standard_normal(point.shape)
            v /= max(np.sqrt((v * v).sum()), 1e-12)
            slope = float((gradient * v).sum())
            floor = 1e-3 * float(np.sqrt((gradient * gradient).sum())) + 1e-6

            def f(t: float, point: Array = point, v: Array = v) -> float:
                return self._loss(name, point + t * v)

            step = _STEP / 4 ** (attempt // 2)
            error = slope_error(f, slope, floor, step, kink=np.inf)
            best = min(best, error if error is not None else best)
            if best < TOLERANCE / 10:
                break
        return best

    def layer(self, layer: LayerInfo) -> LayerError:
        names = [n for n in layer.nodes if n in self.learnt] + [layer.result]
        return LayerError(layer.path, max(map(self.error, names)), len(names))


def gradcheck(program: Program, net: str | None = None, seed: int = 1) -> Iterator[LayerError]:
    """Errors of all layers of a net as a training step at batch 2 sees it, in their order."""
    network = elaborate(program, net, SETTINGS)
    checker = _Checker(network, seed)
    for layer in network.layers:
        if layer.result in checker.gradient.outputs:
            yield checker.layer(layer)

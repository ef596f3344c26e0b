"""Weights on their way into an ONNX graph and back: layouts, computed weights, folded batch
norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from netdsl.errors import fail
from netdsl.interchange.onnx_export.builder import ExportBuilder, StoredLayout, unchanged
from netdsl.ir.interpreter import evaluate_graph
from netdsl.ir.subgraph import extract_subgraph
from netdsl.types import Array, Graph, Node, dims

Restore = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Computes states from the constants of an ONNX graph, by name."""


@dataclass(frozen=True)
class BatchNormStates:
    """The states of a batch norm by their names, and what it adds to the variance."""

    mean: str
    variance: str
    gamma: str | None
    beta: str | None
    eps: float


class ExportWeights:
    """Adds weights to an ONNX graph, and keeps how to get the states back from it."""

    def __init__(self, graph: Graph, states: Mapping[str, Array], target: ExportBuilder) -> None:
        self.graph = graph
        self._states = states
        self._target = target
        self._stored: dict[tuple[str, StoredLayout], str] = {}
        self._restores: list[tuple[str, tuple[int, ...], Restore]] = []

    def evaluate(self, name: str) -> Array:
        """The value of a node that depends on states and constants alone."""
        part = extract_subgraph(self.graph, self.graph.backward_slice(name), {})
        return evaluate_graph(part, {n.name: self._states[n.name] for n in part.states})[name]

    def add_state(self, name: str, layout: StoredLayout | None = None) -> str:
        """Adds a state, once for each layout; returns the name of the constant."""
        stored = layout or unchanged(self._states[name].shape)
        if (name, stored) not in self._stored:
            new = self._target.constant(name, stored.store(self._states[name]))
            self._stored[name, stored] = new
            self._keep(new, lambda c: {name: stored.restore(c[new])})
        return self._stored[name, stored]

    def add_weight(self, node: Node, layout: StoredLayout, path: str) -> str:
        """Adds the weight of a product; one with weight norm is stored as its value."""
        if node.op == "state":
            return self.add_state(node.name, layout)
        name = self._target.constant(f"{path}.weight", layout.store(self.evaluate(node.name)))
        self._keep(name, lambda c: self._split_weight(node, layout.restore(c[name])))
        return name

    def add_folded(
        self,
        product: Node,
        layout: StoredLayout,
        path: str,
        bias: str | None,
        norm: BatchNormStates,
    ) -> tuple[str, str]:
        """Adds weight and bias of a product with the batch norm behind it (Jacob et al. 2018,
        section 3.2). They give states back that compute the same: a batch norm that only adds."""
        node = self.graph[product.args[1]]
        mean, variance = (self._wide(n) for n in (norm.mean, norm.variance))
        gamma = self._wide(norm.gamma) if norm.gamma else np.ones_like(mean)
        factor = gamma / np.sqrt(variance + norm.eps)
        offset = (self._wide(bias) if bias else 0) - mean
        shift = offset * factor + (self._wide(norm.beta) if norm.beta else 0)
        scaled = scale_outputs(product, self.evaluate(node.name), factor)
        weight = self._target.constant(f"{path}.weight", layout.store(scaled))
        added = self._target.constant(f"{path}.bias", shift)
        whole = float(np.sqrt(1 + norm.eps))

        def restore(c: Mapping[str, Array]) -> dict[str, Array]:
            found, shift = layout.restore(c[weight]), c[added]
            zeros, ones = np.zeros_like(shift), np.ones_like(shift)
            states = {norm.mean: zeros, norm.variance: ones}
            if bias:
                states[bias] = zeros
            if norm.gamma and norm.beta:
                states |= {norm.gamma: ones * whole, norm.beta: shift}
            else:
                found, states[norm.mean] = found * whole, -shift * whole
            return states | self._split_weight(node, found)

        self._keep(weight, restore)
        self._keep(added, lambda c: {})
        return weight, added

    def _wide(self, name: str) -> Array:
        return self._states[name].astype(np.float64)

    def _split_weight(self, node: Node, value: Array) -> dict[str, Array]:
        """The states that give a weight its value: itself, or direction and length for each output
        channel (`weightnorm`)."""
        if node.op == "state":
            return {node.name: value}
        direction, length = (
            next(n for n in self.graph.backward_slice(node.name) if n.endswith(suffix))
            for suffix in (".weight_v", ".weight_g")
        )
        axes = tuple(a for a, s in enumerate(self.graph[node.args[1]].type.shape) if s == 1)
        norm = np.sqrt(np.square(value, dtype=np.float64).sum(axis=axes))
        return {direction: value, length: norm.reshape(self.graph[length].type.shape)}

    def _keep(self, constant: str, restore: Restore) -> None:
        self._restores.append((constant, self._target.constants[constant].shape, restore))

    def restore(self, constants: Mapping[str, Array], origin: str) -> dict[str, Array]:
        """The states that the constants of an exported graph hold, in float32. Raises NetError if a
        constant is missing or has another shape."""
        for name, shape, _ in self._restores:
            value = constants.get(name)
            if value is None or value.shape != shape or value.dtype.kind != "f":
                found = "missing" if value is None else f"{dims(value.shape)} {value.dtype}"
                raise fail(
                    f"{origin} does not fit the net in its metadata: `{name}` is {found}",
                    help="it was changed after its export; `--rebuild` reads it like any other "
                    "file",
                )
        states: dict[str, Array] = {}
        for _, _, restore in self._restores:
            states |= restore(constants)
        return {k: np.ascontiguousarray(v, np.float32) for k, v in states.items()}


def scale_outputs(product: Node, weight: Array, factor: Array) -> Array:
    """The weight of a product with each output channel multiplied by its factor."""
    if product.op != "conv2d_dgrad":
        return weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    groups = product.attrs["groups"]
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, 1, 1, -1)).reshape(weight.shape)

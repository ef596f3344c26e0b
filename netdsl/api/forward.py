"""Runs a net forward on any number of images, in batches of a few sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock

import numpy as np

from netdsl.api.inputs import NetInputs
from netdsl.backends import open_backend
from netdsl.backends.base import Backend
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.ops.dtypes import dtype_of
from netdsl.passes.pass_manager import prepare_inference
from netdsl.runtime.executor import FoldedExecutor
from netdsl.runtime.state import State
from netdsl.training.checks import evaluation_batch
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.step.graphs import prediction_graph
from netdsl.types import Array, Graph

_MAX_EXECUTORS = 4
"""How many compiled graphs a net keeps: each has its own copy of the folded weights."""
_SIZE_STEP = 4
"""The ratio of two batch sizes."""
_COMPILE_LOCK = Lock()
"""Compiling is work of the interpreter alone: two threads at once would only be slower."""


@dataclass(frozen=True)
class Computation:
    """What is computed: the values at places by their paths, or without any `scores` and
    `probabilities`; from floats or from bytes."""

    places: tuple[str, ...]
    takes_floats: bool

    def build(self, network: Network, recipe: Recipe) -> Graph:
        """Raises NetError if there is no such place, or if the net gives no scores."""
        if not self.places:
            return prediction_graph(network, recipe)
        outputs = {place: network.find_node(place).name for place in self.places}
        return Graph(network.graph.nodes, outputs, name=network.name)


class _Compiled:
    """An executor that one thread runs at a time."""

    def __init__(self, graph: Graph, backend: Backend, state: State) -> None:
        self._lock = Lock()
        self._executor = FoldedExecutor(prepare_inference(graph), backend, state)
        self._executor.refresh()

    def run(self, images: Mapping[str, Array]) -> dict[str, Array]:
        """The results for the images of each input, as arrays of the caller's own."""
        with self._lock:
            found = self._executor.run(images)
            return {k: self._executor.backend.download(v) for k, v in found.items()}


@dataclass(frozen=True)
class NetOfRecipe:
    """The net of a recipe, to be elaborated for evaluation."""

    program: Program
    recipe: Recipe

    def elaborate(self, batch: int, takes_floats: bool = False) -> Network:
        recipe = replace(self.recipe, has_float_images=takes_floats)
        return elaborate(self.program, recipe.net, recipe.settings(training=False, batch=batch))

    def find_batch_limit(self) -> int:
        """The size of an evaluation batch."""
        learning = elaborate(self.program, self.recipe.net, self.recipe.settings(training=True))
        return evaluation_batch(learning, self.recipe.data)


class ForwardRunner:
    """Runs a net with these weights. Threads may share it: what is computed for one does not
    depend on the others."""

    def __init__(self, net: NetOfRecipe, weights: Mapping[str, Array], device: str) -> None:
        self._net, self._weights, self._device = net, weights, device
        self._compiled: OrderedDict[tuple[Computation, int], _Compiled] = OrderedDict()
        self._lock = Lock()

    @cached_property
    def _backend(self) -> Backend:
        return open_backend(self._device)

    @cached_property
    def _state(self) -> State:
        return State(self._backend)

    @cached_property
    def _batch_limit(self) -> int:
        return self._net.find_batch_limit()

    def run(self, inputs: NetInputs, places: tuple[str, ...] = ()) -> dict[str, Array]:
        """The results of all images by name, each [N,...]."""
        computation = Computation(places, inputs.are_floats)
        count = len(inputs)
        if count == 0:
            graph = computation.build(self._net.elaborate(1, inputs.are_floats), self._net.recipe)
            return {k: _empty(graph, name) for k, name in graph.outputs.items()}
        limit = 1 if count == 1 else self._batch_limit
        parts = []
        for start in range(0, count, limit):
            end = min(start + limit, count)
            size = _fit_size(end - start, limit)
            images = {k: _pad_batch(v, size) for k, v in inputs.batch(start, end).items()}
            found = self._find_compiled(computation, size).run(images)
            parts.append({k: v[: end - start] for k, v in found.items()})
        if len(parts) == 1:
            return parts[0]
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def _find_compiled(self, computation: Computation, size: int) -> _Compiled:
        key = computation, size
        with self._lock:
            found = self._compiled.get(key)
            if found is None:
                found = self._compiled[key] = self._compile(computation, size)
                if len(self._compiled) > _MAX_EXECUTORS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return found

    def _compile(self, computation: Computation, size: int) -> _Compiled:
        with _COMPILE_LOCK:
            network = self._net.elaborate(size, computation.takes_floats)
            graph = computation.build(network, self._net.recipe)
            if not self._state.arrays:
                self._state.load(self._weights, network.graph.states, "the net")
            return _Compiled(graph, self._backend, self._state)


def _empty(graph: Graph, name: str) -> Array:
    of = graph[name].type
    return np.zeros((0, *of.shape[1:]), dtype_of(of.dtype))


def _pad_batch(images: Array, size: int) -> Array:
    """A batch of that size: the last image is repeated."""
    if len(images) == size:
        return images
    return images[np.minimum(np.arange(size), len(images) - 1)]


def _fit_size(count: int, limit: int) -> int:
    """The smallest batch size for so many images: a power of the step, or the limit. So a net has
    few executors, whatever the numbers of images are."""
    size = 1
    while size < count:
        size *= _SIZE_STEP
    return min(size, limit)

"""The state store: values that persist between runs, by name, shared by all executors."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from netdsl.backends.base import Backend
from netdsl.errors import fail, internal_error
from netdsl.ops.distributions import DISTRIBUTIONS
from netdsl.ops.dtypes import dtype_of
from netdsl.types import Array, Node, dims

_MAX_DRAW_THREADS = 4


def draw_initial_value(node: Node, seed: int) -> Array:
    """Draws a state's initial value, a function of seed and name alone, whatever else the network
    contains."""
    distribution, scale = node.attrs["init"]
    record = DISTRIBUTIONS.get(distribution)
    if record is None:
        raise internal_error(f"there is no distribution {distribution}")
    key = [seed, zlib.crc32(node.name.encode())]
    rng = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    return record.draw(rng, node.type.shape, scale, dtype_of(node.type.dtype))


class State:
    """Arrays on a backend by state name, each at a fixed address for the lifetime of the store.

    A store with a `parent` has states of its own and also sees those of the parent.
    """

    def __init__(self, backend: Backend, parent: State | None = None) -> None:
        self.backend = backend
        self.parent = parent
        self.arrays: dict[str, Array] = {}

    def array(self, name: str) -> Array:
        """Returns the array of a state, from this store or its parents."""
        if name in self.arrays:
            return self.arrays[name]
        if self.parent is None:
            raise internal_error(f"{name} has no value yet")
        return self.parent.array(name)

    def initialise(self, states: Iterable[Node], seed: int) -> None:
        """Draws every state that has no value yet, several in parallel."""
        missing = [node for node in states if node.name not in self.arrays]
        with ThreadPoolExecutor(_MAX_DRAW_THREADS) as pool:
            drawn = pool.map(partial(draw_initial_value, seed=seed), missing)
            for node, values in zip(missing, drawn, strict=True):
                self.arrays[node.name] = self.backend.upload(values)

    def load(self, values: Mapping[str, Array], states: Iterable[Node], origin: str) -> None:
        """Loads the values of `states`. Raises NetError, naming the state, if one is missing or has
        another shape."""
        for node in states:
            value = values.get(node.name)
            if value is None:
                raise fail(f"{origin} has no `{node.name}`, which the net needs")
            if value.shape != node.type.shape:
                raise fail(
                    f"`{node.name}` is {dims(value.shape)} in {origin}, "
                    f"but the net needs {dims(node.type.shape)}"
                )
            self._store(node.name, value.astype(node.type.dtype, copy=False))

    def _store(self, name: str, value: Array) -> None:
        if name in self.arrays:
            self.backend.write(self.arrays[name], value)
        else:
            self.arrays[name] = self.backend.upload(value)

    def snapshot(self) -> dict[str, Array]:
        """Returns every state as a NumPy array."""
        return dict(self.items())

    def items(self) -> Iterator[tuple[str, Array]]:
        """Yields the same, one by one."""
        for name, array in self.arrays.items():
            yield name, self.backend.download(array)

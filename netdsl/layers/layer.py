"""What a word of the language does: Layer, and the Site where it is put into a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Literal

from netdsl.errors import fail
from netdsl.globs import matches_any_glob
from netdsl.ir.builder import Builder
from netdsl.layers.init import Fans, Initialiser
from netdsl.signature import BoundCall, Signature
from netdsl.types import Node, TensorType, dims


@dataclass(frozen=True)
class Widths:
    """Channels where a net is made narrower: `original` flow into this layer in the net as it
    stands, `narrowed` in the narrow one; `narrow` tells what any other count becomes."""

    original: int
    narrowed: int
    narrow: Callable[[int], int]

    def max_groups(self, limit: int, *counts: int) -> int:
        """The most groups, up to as many as there were, that all these counts divide into."""
        common = gcd(*counts)
        return max(g for g in range(1, min(limit, common) + 1) if common % g == 0)


@dataclass(frozen=True)
class Layer:
    """A word of the language: `build(site, x, **arguments)` emits its nodes and returns the result.

    A layer of arity `many` joins branches and is given a list of nodes. `narrow(arguments, widths)`
    gives those of its arguments that count channels, as they are in a narrower net.
    """

    name: str
    signature: Signature
    build: Callable[..., Node]
    arity: Literal["one", "many"] = "one"
    doc: str = ""
    narrow: Callable[[Mapping[str, Any], Widths], dict[str, Any]] = lambda arguments, widths: {}


@dataclass
class Site:
    """One place in a network: the builder, the paths of its states, training or not.

    `weight_path` is the path under which learnable values that are shared between uses live; `path`
    the one of this very use. They differ only under `shared`. `frozen_globs` holds globs of states
    that training leaves as they are."""

    b: Builder
    path: str
    weight_path: str
    training: bool
    frozen_globs: tuple[str, ...] = ()
    updates: dict[str, Node] = field(default_factory=dict)

    def add_parameter(
        self,
        name: str,
        shape: tuple[int, ...],
        init: BoundCall,
        fans: Fans | None = None,
        is_per_use: bool = False,
    ) -> Node:
        """A learnable value; `is_per_use` keeps it apart for every use of a shared chain. A
        vector's fans are its length."""
        record: Initialiser = init.record
        distribution = record.distribution(fans or Fans(shape[0], shape[0]), **init.arguments)
        return self._add_state(
            f"{self.path if is_per_use else self.weight_path}.{name}", shape, distribution, True
        )

    def add_buffer(self, name: str, shape: tuple[int, ...], value: float) -> Node:
        """A value that training renews without a gradient, such as a running mean."""
        return self._add_state(f"{self.path}.{name}", shape, ("constant", value), False)

    def _add_state(
        self, path: str, shape: tuple[int, ...], distribution: tuple[str, float], trainable: bool
    ) -> Node:
        kind = TensorType(shape, self.b.dtype)
        existing = self.b.nodes.get(path)
        if existing is not None and existing.type != kind:
            raise fail(
                f"the shared `{path}` is {dims(existing.type.shape)}, "
                f"here it would be {dims(shape)}",
                help="a shared chain needs the same channels wherever it is used",
            )
        return self.b.state(path, kind, distribution, trainable)

    def is_frozen(self, name: str) -> bool:
        """Whether a buffer of this layer stays as it is."""
        return matches_any_glob(f"{self.path}.{name}", self.frozen_globs)

    def update(self, state: Node, value: Node) -> None:
        """`value` replaces `state` at the end of a training step."""
        self.updates[state.name] = value

    @property
    def seed(self) -> Node:
        return self.b.input("seed", TensorType((), "int32"))

    @property
    def step(self) -> Node:
        return self.b.input("step", TensorType((), "int32"))


def channel_count(x: Node) -> int:
    return x.type.shape[-1]


def image_shape(x: Node, layer_name: str) -> tuple[int, int, int, int]:
    """The shape of an image batch. Raises NetError where `x` is none."""
    if x.type.rank != 4:
        size = dims(x.type.shape[1:])
        help = "put it before layers that flatten, such as `fc`"
        if x.type.rank == 3:
            help = f"channels are given too: `input({size}x1)`"
        raise fail(
            f"`{layer_name}` needs an image of height x width x channels, not {size}", help=help
        )
    n, h, w, c = x.type.shape
    return n, h, w, c

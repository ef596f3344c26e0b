"""The definition of a layer (Layer), and the context in which it is built (Site)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from netdsl.errors import fail
from netdsl.globs import matches_any_glob
from netdsl.ir.builder import Builder
from netdsl.ir.collectives import mean_over_ranks
from netdsl.layers.init import Fans, Initialiser
from netdsl.signature import BoundCall, Signature
from netdsl.types import Node, TensorType, dims

MAX_PARTS = 1024
"""How many parts a layer may be composed of, such as the rows of a border."""


@dataclass(frozen=True)
class Widths:
    """Channel counts when a network is narrowed: this layer has `original` input channels in the
    full network and `narrowed` in the narrow one; `narrow` maps any other count."""

    original: int
    narrowed: int
    narrow: Callable[[int], int]

    def max_groups(self, limit: int, *counts: int) -> int:
        """The largest number of groups up to `limit` that divides all counts."""
        common = math.gcd(*counts)
        return max(g for g in range(1, min(limit, common) + 1) if common % g == 0)


@dataclass(frozen=True)
class Layer:
    """A layer of the language: `build(site, x, **arguments)` emits its nodes, returns the result.

    A layer of arity `many` joins branches and takes a list of nodes; of one it is that branch if it
    `can_join_one`. `narrow(arguments, widths)` returns the arguments that depend on channel counts,
    with their values in a narrower network; `channel_multiple(arguments, channels)` is the number
    of which its input channels must then be a multiple.
    """

    name: str
    signature: Signature
    build: Callable[..., Node]
    arity: Literal["one", "many"] = "one"
    doc: str = ""
    narrow: Callable[[Mapping[str, Any], Widths], dict[str, Any]] = lambda arguments, widths: {}
    channel_multiple: Callable[[Mapping[str, Any], int], int] = lambda arguments, channels: 1
    can_join_one: bool = True


@dataclass
class Site:
    """The context of one layer in a network: the builder, the paths of its states, training or not.

    `path` is the path of this use, `weight_path` that of the trainable values, which uses of a
    shared chain have in common. They differ only under `shared`. `frozen_globs` contains globs of
    states that training does not change. `ranks` train the network together."""

    b: Builder
    path: str
    weight_path: str
    training: bool
    frozen_globs: tuple[str, ...] = ()
    ranks: int = 1
    updates: dict[str, Node] = field(default_factory=dict)

    def add_parameter(
        self,
        name: str,
        shape: tuple[int, ...],
        init: BoundCall,
        fans: Fans | None = None,
        is_per_use: bool = False,
    ) -> Node:
        """Adds a trainable state; with `is_per_use` every use of a shared chain has its own.
        Without `fans`, fan in and fan out are the length of the first axis."""
        record: Initialiser = init.record
        distribution = record.distribution(fans or Fans(shape[0], shape[0]), **init.arguments)
        return self._add_state(
            f"{self.path if is_per_use else self.weight_path}.{name}", shape, distribution, True
        )

    def add_buffer(self, name: str, shape: tuple[int, ...], value: float) -> Node:
        """Adds a state that training updates without a gradient, such as a running mean."""
        return self._add_state(f"{self.path}.{name}", shape, ("constant", value), False)

    def _add_state(
        self, path: str, shape: tuple[int, ...], distribution: tuple[str, float], trainable: bool
    ) -> Node:
        kind = TensorType(shape, self.b.dtype)
        existing = self.b.nodes.get(path)
        if existing is not None and existing.type != kind:
            raise fail(
                f"the shared `{path}` is {dims(existing.type.shape)}, but here it would be "
                f"{dims(shape)}",
                help="a shared chain needs the same channels wherever it is used",
            )
        return self.b.state(path, kind, distribution, trainable)

    def is_frozen(self, name: str) -> bool:
        """Whether training must not update a buffer of this layer."""
        return matches_any_glob(f"{self.path}.{name}", self.frozen_globs)

    def mean_over_ranks(self, x: Node) -> Node:
        """Emits the mean over all ranks, which the following layers wait for."""
        return mean_over_ranks(self.b, x, self.ranks)

    def update(self, state: Node, value: Node) -> None:
        """Makes `value` replace `state` at the end of a training step."""
        self.updates[state.name] = value

    @property
    def seed(self) -> Node:
        return self.b.input("seed", TensorType((), "int32"))

    @property
    def step(self) -> Node:
        return self.b.input("step", TensorType((), "int32"))

    @property
    def rank(self) -> Node:
        return self.b.input("rank", TensorType((), "int32"))


def channel_count(x: Node) -> int:
    return x.type.shape[-1]


def advise_groups(channels: int, example: str, whole: str = "") -> str:
    """A help line with the numbers of groups that divide `channels`; `whole` is what they divide,
    for the message."""
    divisors = [g for g in range(min(2, channels), channels + 1) if channels % g == 0][:6]
    listed = ", ".join(map(str, divisors))
    whole = whole or str(channels)
    return f"the groups must divide {whole}: {listed}, as in `{example.format(divisors[0])}`"


def image_shape(x: Node, layer_name: str) -> tuple[int, int, int, int]:
    """Returns the shape of a batch of images. Raises NetError if `x` is not one."""
    if x.type.rank != 4:
        size = dims(x.type.shape[1:])
        raise fail(
            f"`{layer_name}` needs an image of height x width x channels, not {size}",
            help=_image_help(x),
        )
    n, h, w, c = x.type.shape
    return n, h, w, c


def _image_help(x: Node) -> str:
    """What to do about a value that is no image."""
    shape = x.type.shape[1:]
    if len(shape) == 1 and x.op == "input":
        return "an input of images is height x width x channels, such as `input(28x28x1)`"
    if len(shape) == 1:
        return "put it before layers that flatten, such as `fc`, or make an image with `reshape`"
    if len(shape) == 2:
        return f"give the channels too: `{dims(shape)}x1`"
    h, w, *rest = shape
    return f"an image has three sizes, such as `{dims((h, w, math.prod(rest)))}`"

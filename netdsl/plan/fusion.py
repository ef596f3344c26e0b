"""Fusion: what one launch of a backend can compute beside a single node, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netdsl.ops import OPS
from netdsl.types import Node


@dataclass(frozen=True)
class Fusion:
    """What a backend offers to the partitioner and the memory plan.

    `maps`: elementwise nodes in one launch with each other and with reductions over one domain.
    `epilogue`: elementwise operators that each product applies to a tile before writing it, reading
    at most `operands` other tensors of the tile's size; `sums`: reductions over all axes but the
    last that it takes of its tiles on the way, with `cast` also of what they are cast to; `over`:
    products that may write a tile over another one that they read for it; `least`: bytes of the
    result from which a product has an epilogue. `batch`: updates that nothing waits for in one
    launch; `early`: so are maps that read nothing of the step and move at most so many bytes;
    `totals`: so are sums of whole tensors that do not wait for each other, as of all gradients.
    `halo`: convolutions read images with zeros around them that their producer has written.
    `channels`: convolutions read images whose channels are padded to a multiple of this.
    `align`: bytes that every allocation begins at a multiple of, and every branch of a `concat`
    that is written in place.
    """

    maps: bool = False
    epilogue: Mapping[str, frozenset[str]] = field(default_factory=dict)
    operands: int = 0
    sums: frozenset[str] = frozenset()
    over: frozenset[str] = frozenset()
    least: Mapping[str, int] = field(default_factory=dict)
    batch: bool = False
    early: int = -1
    totals: bool = False
    halo: bool = False
    channels: int = 1
    align: int = 64
    concat_align: int = 4

    def applied(self, product: Node) -> frozenset[str]:
        """The operators that a product applies to its tiles."""
        small = product.type.nbytes < self.least.get(product.op, 0)
        return frozenset() if small else self.epilogue.get(product.op, frozenset())


ALONE = Fusion()
"""Every node is a launch of its own."""

_PRODUCTS = ("conv2d", "conv2d_dgrad", "conv2d_wgrad", "matmul")
_ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "clamp", "sigmoid", "tanh")
_ARITHMETIC = ("add", "sub", "mul", "neg", "maximum", "minimum", "greater", "select", "cast")

FUSED = Fusion(
    maps=True,
    epilogue=dict.fromkeys(_PRODUCTS, frozenset((*_ACTIVATIONS, *_ARITHMETIC))),
    operands=3,
    sums=frozenset(("moments", "reduce_sum")),
    over=frozenset(_PRODUCTS),
    batch=True,
    halo=True,
)
"""What both engines are to offer: a product with bias, activation, residual and mask, and the
channel sums of what it writes; any set of elementwise nodes and reductions over one domain."""


def cheap(op: str) -> bool:
    """Whether computing a value again costs less than reading it from memory."""
    return OPS[op].flops_per_element < 4


def repeatable(op: str) -> bool:
    """Whether a small value may be computed again for every element that it is stretched to."""
    return OPS[op].flops_per_element <= 2

"""Fusion: what one launch of a backend can compute beside a single node, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netdsl.ops import OPS
from netdsl.types import Node


@dataclass(frozen=True)
class FusionOptions:
    """What a backend offers to the partitioner and the memory plan.

    `can_fuse_maps`: elementwise nodes in one launch with each other and with reductions over one
    domain. `epilogue_ops`: elementwise operators that each product applies to a tile before writing
    it, reading at most `max_epilogue_operands` other tensors of the tile's size;
    `epilogue_reductions`: reductions over all axes but the last that it takes of its tiles on the
    way, with `cast` also of what they are cast to; `in_place_products`: products that may write a
    tile over another one that they read for it; `min_epilogue_bytes`: bytes of the result from
    which a product has an epilogue. `can_batch_updates`: updates that nothing waits for in one
    launch; `max_early_bytes`: so are maps that read nothing of the step and move at most so many
    bytes; `can_batch_totals`: so are sums of whole tensors that do not wait for each other, as of
    all gradients. `has_halo`: convolutions read images with zeros around them that their producer
    has written. `channel_multiple`: convolutions read images whose channels are padded to a
    multiple of this. `alignment`: bytes that every allocation begins at a multiple of, and every
    branch of a `concat` that is written in place."""

    can_fuse_maps: bool = False
    epilogue_ops: Mapping[str, frozenset[str]] = field(default_factory=dict)
    max_epilogue_operands: int = 0
    epilogue_reductions: frozenset[str] = frozenset()
    in_place_products: frozenset[str] = frozenset()
    min_epilogue_bytes: Mapping[str, int] = field(default_factory=dict)
    can_batch_updates: bool = False
    max_early_bytes: int = -1
    can_batch_totals: bool = False
    has_halo: bool = False
    channel_multiple: int = 1
    alignment: int = 64
    concat_alignment: int = 4

    def find_epilogue_ops(self, product: Node) -> frozenset[str]:
        """The operators that a product applies to its tiles."""
        is_small = product.type.nbytes < self.min_epilogue_bytes.get(product.op, 0)
        return frozenset() if is_small else self.epilogue_ops.get(product.op, frozenset())


NO_FUSION = FusionOptions()
"""Every node is a launch of its own."""

_PRODUCTS = ("conv2d", "conv2d_dgrad", "conv2d_wgrad", "matmul")
_ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "clamp", "sigmoid", "tanh")
_ARITHMETIC = ("add", "sub", "mul", "neg", "maximum", "minimum", "greater", "select", "cast")

FULL_FUSION = FusionOptions(
    can_fuse_maps=True,
    epilogue_ops=dict.fromkeys(_PRODUCTS, frozenset((*_ACTIVATIONS, *_ARITHMETIC))),
    max_epilogue_operands=3,
    epilogue_reductions=frozenset(("moments", "reduce_sum")),
    in_place_products=frozenset(_PRODUCTS),
    can_batch_updates=True,
    has_halo=True,
)
"""What both engines are to offer: a product with bias, activation, residual and mask, and the
channel sums of what it writes; any set of elementwise nodes and reductions over one domain."""


def is_cheap(op: str) -> bool:
    """Whether computing a value again costs less than reading it from memory."""
    return OPS[op].flops_per_element < 4


def is_repeatable(op: str) -> bool:
    """Whether a small value may be computed again for every element that it is stretched to."""
    return OPS[op].flops_per_element <= 2

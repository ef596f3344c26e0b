"""Fusion options: what one launch of a backend can compute besides a single node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netdsl.ops import OPS, ops_with
from netdsl.types import Node


@dataclass(frozen=True)
class FusionOptions:
    """What a backend offers to the partitioner and the memory plan.

    `can_fuse_maps`: fuse elementwise nodes with each other and with reductions over the same
    domain. `epilogue_ops`: elementwise operators that each product can apply to a tile before
    writing it, reading at most `max_epilogue_operands` other tensors of the tile's size.
    `epilogue_reductions`: reductions over all axes but the last that a product can accumulate from
    its tiles; with `cast`, also of the tiles after a cast. `in_place_products`: products that may
    overwrite a tile that their epilogue reads. `min_epilogue_bytes`: smallest result, in bytes, for
    which a product has an epilogue.

    `can_batch_updates`: run updates that nothing waits for in one launch. `max_early_bytes`: batch
    maps that read nothing computed in the step and move at most this many bytes.
    `can_batch_totals`: batch sums of whole tensors that do not depend on each other, such as those
    of all gradients.

    `has_halo`: convolutions read images surrounded by zeros that the producer has written.
    `channel_multiple`: convolutions read images whose channels are padded to a multiple of this.
    `alignment`: every allocation starts at a multiple of this many bytes. `concat_alignment`: so
    does every branch of a `concat` that is written in place.
    """

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
        """Returns the operators that a product can apply to its tiles."""
        is_small = product.type.nbytes < self.min_epilogue_bytes.get(product.op, 0)
        return frozenset() if is_small else self.epilogue_ops.get(product.op, frozenset())


NO_FUSION = FusionOptions()
"""Every node is a separate launch."""

_PRODUCTS = ops_with("takes_epilogue")

FULL_FUSION = FusionOptions(
    can_fuse_maps=True,
    epilogue_ops=dict.fromkeys(_PRODUCTS, frozenset(ops_with("epilogue"))),
    max_epilogue_operands=3,
    epilogue_reductions=frozenset(("moments", "reduce_sum")),
    in_place_products=frozenset(_PRODUCTS),
    can_batch_updates=True,
    has_halo=True,
)
"""What the device `model` offers, and nearly what the CPU engine does: a product with bias,
activation, residual and mask, and the channel sums of its result; any set of elementwise nodes and
reductions over one domain."""


def is_cheap(op: str) -> bool:
    """Returns whether recomputing a value costs less than reading it from memory."""
    return OPS[op].flops_per_element < 4


def is_repeatable(op: str) -> bool:
    """Returns whether a small value may be recomputed for every element that it is broadcast to."""
    return OPS[op].flops_per_element <= 2

"""Dropout with counter-based random numbers: the same bits on every backend, no stored mask."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from netdsl.ops.example_values import draw_attributes
from netdsl.ops.op import Draw, Example, Op, Operand, draw_shape, float_operands, require
from netdsl.parameter_types import Float, QuotedText
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_UINT32_MASK = 0xFFFFFFFF
PHILOX_DOMAIN = 0x6E657464
"""Second half of the Philox key: separates dropout's numbers from any other use of the seed."""


def dropout_key(path: str) -> int:
    """The 32-bit key of a path, such as `head.dropout1`."""
    return zlib.crc32(path.encode())


def philox(xp: Any, counter: tuple[Array, ...], key: tuple[Array, ...]) -> Array:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words per counter, on the last axis.

    `counter` and `key` are uint64 arrays below 2^32 that broadcast together.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32) ^ c1 ^ k0,
            p1 & _UINT32_MASK,
            (p0 >> 32) ^ c3 ^ k1,
            p0 & _UINT32_MASK,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & _UINT32_MASK, (k1 + PHILOX_WEYL[1]) & _UINT32_MASK
    return xp.stack(xp.broadcast_arrays(c0, c1, c2, c3), axis=-1)


def _mask(
    xp: Any, size: int, seed: Array, step: Array, rank: Array, key: str, rate: float
) -> Array:
    """The mask of the elements that are kept, out of the `size` that a rank has: it numbers them
    after those of the ranks before it, so that a block may belong to two ranks."""
    first = xp.asarray(rank).astype(np.uint64) * np.uint64(size)
    block = (first >> 2) + xp.arange((size + 6) // 4, dtype=np.uint64)
    words = [
        xp.asarray(v).astype(np.uint64) & _UINT32_MASK
        for v in (step, dropout_key(key), seed, PHILOX_DOMAIN)
    ]
    bits = philox(xp, (block & _UINT32_MASK, block >> 32, words[0], words[1]), (words[2], words[3]))
    own = xp.take(bits, (first & 3).astype(np.int64) + xp.arange(size))
    return own >= round(rate * 2**32)


def _dropout(
    xp: Any, x: Array, seed: Array, step: Array, rank: Array, key: str, rate: float
) -> Array:
    mask = _mask(xp, x.size, seed, step, rank, key, rate).reshape(x.shape)
    return x * mask * xp.asarray(1 / (1 - rate), dtype=x.dtype)


def _dropout_shape(
    x: TensorType, seed: TensorType, step: TensorType, rank: TensorType, key: str, rate: float
) -> TensorType:
    scalars = seed.shape == step.shape == rank.shape == ()
    require(scalars, "seed, step and rank of dropout are scalars")
    return x


def _dropout_vjp(b: Emitter, g: Node, y: Node, x: Node, seed: Node, step: Node, rank: Node) -> Node:
    return b.dropout(g, seed, step, rank, **y.attrs)


def _example(draw: Draw) -> Example:
    scalar = Operand(TensorType((), "int32"), "below:1000")
    attrs = {"key": draw.choice(("a", "b.dropout1")), **draw_attributes(draw, _DROPOUT_PARAMS)}
    return Example((*float_operands(draw_shape(draw)), scalar, scalar, scalar), attrs)


_DROPOUT_PARAMS = (Param("key", QuotedText()), Param("rate", Float(0, below=1)))

OPS = (
    Op(
        name="dropout",
        kind="elementwise",
        operands=("x", "seed", "step", "rank"),
        shape=_dropout_shape,
        reference=_dropout,
        draw_example=_example,
        attrs=_DROPOUT_PARAMS,
        vjp=(_dropout_vjp, None, None, None),
        nondiff={
            "seed": "a seed is an integer",
            "step": "a step is an integer",
            "rank": "a rank is an integer",
        },
        flops_per_element=12,  # ten rounds produce the numbers for four elements
        doc="zeroes a fraction `rate` of the values and scales the rest (Srivastava et al. 2014); "
        "the mask is Philox(seed, key, step, element), where rank r numbers its elements from "
        "r times their number: all ranks together draw what one device draws",
        traits=frozenset(("low_precision",)),
    ),
)

"""Backends that run every operator by its reference, on the arrays of NumPy or of CuPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from netdsl.errors import fail
from netdsl.ops import OPS
from netdsl.types import Array, Node


@dataclass(frozen=True)
class ArrayBackend:
    """One operator after the other, as its record defines it."""

    name: str
    xp: Any

    def upload(self, array: Array) -> Array:
        return self.xp.asarray(array)

    def download(self, array: Array) -> Array:
        return array if self.xp is np else self.xp.asnumpy(array)

    def bind(self, node: Node) -> Callable[..., Array]:
        """The reference of a node's operator with its attributes filled in."""
        return partial(OPS[node.op].reference, self.xp, **node.attrs)


def reference() -> ArrayBackend:
    return ArrayBackend("reference", np)


def cuda() -> ArrayBackend:
    """CuPy's arrays on the first GPU. Raises NetError where CuPy or the GPU is missing."""
    try:
        import cupy
    except ImportError:
        raise fail(
            "`--device cuda` needs CuPy, which is not installed",
            help="pip install 'netdsl[cuda13]' (or 'netdsl[cuda12]' for a CUDA 12 driver)",
        ) from None
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise fail(f"CuPy finds no GPU to use: {e}", help="look at `nvidia-smi`") from None
    if not found:
        raise fail("there is no GPU in this machine", help="leave `--device` out to use the CPU")
    return ArrayBackend("cuda", cupy)

"""Element types by name, bfloat16 among them."""

from __future__ import annotations

from typing import Any

import numpy as np

from netdsl.optional_imports import import_optional
from netdsl.types import Array


def dtype_of(name: str) -> Any:
    """NumPy's element type of that name. Raises NetError where bfloat16 is not to be had."""
    if name != "bfloat16":
        return np.dtype(name)
    need = "bfloat16 needs the package `ml_dtypes`"
    return np.dtype(import_optional("ml_dtypes", need, "pip install ml_dtypes").bfloat16)


def widen(x: Array) -> Array:
    """`x` in 32 bits where it has 16: what sums up is summed in that."""
    return x.astype("float32") if x.dtype.itemsize == 2 else x

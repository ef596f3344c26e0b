"""Element types by name, including bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np

from netdsl.optional_imports import import_optional
from netdsl.types import Array


def dtype_of(name: str) -> Any:
    """Returns the NumPy dtype of that name. Raises NetError if bfloat16 is not available."""
    if name != "bfloat16":
        return np.dtype(name)
    need = "bfloat16 needs the package `ml_dtypes`"
    return np.dtype(import_optional("ml_dtypes", need, "pip install ml_dtypes").bfloat16)


def widen(x: Array) -> Array:
    """Converts 16-bit values to float32, in which sums accumulate; returns others unchanged."""
    return x.astype("float32") if x.dtype.itemsize == 2 else x

"""Weights that are not finite, which no scores can come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from netdsl.text_escaping import escape_line
from netdsl.types import Array

_MAX_SHOWN = 4


def describe_non_finite(states: Mapping[str, Array]) -> str:
    """A sentence about the weights that hold NaN or infinity; empty if none do."""
    counts = {name: int(np.count_nonzero(~np.isfinite(v))) for name, v in states.items()}
    found = [f"`{escape_line(name)}` ({n:,})" for name, n in counts.items() if n]
    if not found:
        return ""
    shown = ", ".join(found[:_MAX_SHOWN]) + ", ..." * (len(found) > _MAX_SHOWN)
    return f"values of weights are NaN or infinite: {shown}"

"""The functions that every expression can call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from netdsl.limits import MAX_LIST_LENGTH


def _make_range(*ends: int) -> tuple[int, ...]:
    if len(range(*ends)) > MAX_LIST_LENGTH:
        raise ValueError(f"a list has at most {MAX_LIST_LENGTH:,} entries")
    return tuple(range(*ends))


FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "len": (lambda items: len(items), "len(list)"),
    "range": (_make_range, "range(stop), range(start, stop) or range(start, stop, step)"),
    "min": (min, "min(a, b, ...)"),
    "max": (max, "max(a, b, ...)"),
    "sum": (lambda items: sum(items), "sum(list of numbers)"),
    "floor": (math.floor, "floor(number)"),
    "ceil": (math.ceil, "ceil(number)"),
    "round": (lambda x: math.floor(x + 0.5), "round(number)"),
}

"""A logarithmic axis whose ticks are plain numbers: 0.1, 1, 10."""

from __future__ import annotations

from typing import Any

_MANY_DECADES = 1e4


def set_log_scale(axis: Any, low: float, high: float) -> None:
    """Makes an axis of matplotlib logarithmic, for values from `low` to `high`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis._set_axes_scale("log")
    subs = (1.0,) if high > _MANY_DECADES * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=10))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())

"""The key `best` of a recipe: the metric by which epochs are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from netdsl.errors import Span, fail, suggest_name
from netdsl.parameter_types import TypeMismatch
from netdsl.training.metrics.table import METRIC_NAMES, METRICS, Metric, MetricName
from netdsl.values import Call, Symbol, Value, format_value

PART = "val"
"""The images that epochs are compared on."""


@dataclass(frozen=True)
class Criterion:
    """`max(val_f1)`: the best epoch is the one with the largest value of a metric, or with the
    smallest one."""

    direction: str
    metric: MetricName
    span: Span | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.direction}({self.metric})"

    @property
    def is_reversed(self) -> bool:
        """Whether it looks for the worst value of the metric."""
        return (self.direction == "min") != self.metric.metric.is_lower_better

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """The value among the metrics of an epoch; None if there is not a number."""
        value = metrics.get(str(self.metric))
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None

    def rank(self, metrics: Mapping[str, Any]) -> float:
        """The rank of an epoch by its metrics: larger is better. Without a value, it is the
        worst."""
        value = self.value(metrics)
        if value is None:
            return -math.inf
        return value if self.direction == "max" else -value


@dataclass(frozen=True)
class CriterionKind:
    """`max` or `min` of a validation metric, or `none`."""

    def accept(self, value: Value) -> Criterion | None:
        if value is None:
            return None
        if isinstance(value, Symbol | Call) and value.name in METRIC_NAMES:
            name = read_metric(value)
            help = f"write `{choose_direction(name.metric)}({value})`"
            raise fail(
                f"`best = {value}` does not say whether more or less is better",
                value.span,
                help=help,
            )
        if not isinstance(value, Call) or value.name not in ("max", "min"):
            raise TypeMismatch("`max` or `min` of a metric such as `max(val_f1)`, or `none`")
        if len(value.arguments) != 1:
            raise fail(f"`{value.name}` of `best` takes one metric", value.span)
        name = read_metric(value.arguments[0].value, value.span)
        if name.part != PART:
            raise fail(
                f"`{name}` cannot choose the best epoch: it is not measured on the validation "
                f"images",
                value.span,
                help=_advise_part(value.name, name),
            )
        return Criterion(value.name, name, value.span)


def choose_direction(metric: Metric) -> str:
    """Which values of a metric are better: `max` or `min`."""
    return "min" if metric.is_lower_better else "max"


def _advise_part(direction: str, name: MetricName) -> str:
    advice = f"write `{direction}({replace(name, part=PART)})`"
    return f"the test set must not influence training: {advice}" if name.part == "test" else advice


def read_metric(value: Value, span: Span | None = None) -> MetricName:
    """The metric that a value names: `val_f1`, or `val_recall("ants")` of one class. Raises
    NetError if there is no such metric."""
    if isinstance(value, Symbol):
        return find_metric(value.name, value.span or span)
    if not isinstance(value, Call):
        message = f"a metric such as `val_f1` is needed here, not {format_value(value)}"
        raise fail(message, span)
    given = [a.value for a in value.arguments if a.name is None]
    return find_metric_of_class(value.name, given, value.span or span)


def find_metric(name: str, span: Span | None) -> MetricName:
    """The metric of that name. Raises NetError if there is none."""
    if name not in METRIC_NAMES:
        help = suggest_name(name, METRIC_NAMES, "metrics are")
        raise fail(f"there is no metric `{name}`", span, help=help)
    return METRIC_NAMES[name]


def find_metric_of_class(name: str, arguments: Sequence[Value], span: Span | None) -> MetricName:
    """The metric of that name for the class that the only argument names. Raises NetError if there
    is no such metric, or if it has no value by class."""
    known = find_metric(name, span)
    if known.metric.measure_classes is None:
        part = PART if known.part == "train" else known.part
        by_class = [f"{part}_{m.name}" for m in METRICS.values() if m.measure_classes is not None]
        help = suggest_name(name, by_class, "metrics with a value per class")
        raise fail(f"`{name}` has no value per class", span, help=help)
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        example = arguments[0] if arguments and isinstance(arguments[0], int) else "ants"
        help = f'give its name in quotes: `{name}("{example}")`'
        raise fail(f"`{name}(...)` takes the name of one class", span, help=help)
    return replace(known, class_name=arguments[0])

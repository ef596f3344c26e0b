"""The table of intervals: how often a run validates, and how often it saves `last`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netdsl.limits import MAX_EPOCHS
from netdsl.parameter_types import Float, Integer, ParameterType, TypeMismatch
from netdsl.signature import BoundCall, CallOf, Param, Signature, TableType
from netdsl.values import Argument, Call, Symbol, Value

MAX_STEPS = 2**30
MAX_MINUTES = 525_600.0
"""A year."""


@dataclass(frozen=True)
class Mark:
    """Where a run is: finished epochs, updates, and the seconds of a clock that never goes back."""

    epoch: int
    update: int
    seconds: float


@dataclass(frozen=True)
class Interval:
    """`has_passed(last, now, count)` says whether a run that was at the mark `last` when something
    was done must do it again at `now`. One that `reads_clock` differs from run to run."""

    signature: Signature
    has_passed: Callable[[Mark, Mark, float], bool]
    doc: str
    reads_clock: bool = False


def _epochs(last: Mark, now: Mark, count: float) -> bool:
    return now.epoch // count > last.epoch // count


def _steps(last: Mark, now: Mark, count: float) -> bool:
    return now.update // count > last.update // count


def _minutes(last: Mark, now: Mark, count: float) -> bool:
    return now.seconds - last.seconds >= 60 * count


def _signature(name: str, kind: ParameterType) -> Signature:
    return Signature(name, (Param("count", kind),))


INTERVALS: dict[str, Interval] = {
    x.signature.name: x
    for x in (
        Interval(
            _signature("epochs", Integer(1, MAX_EPOCHS)),
            _epochs,
            "after every epoch whose number is a multiple of `count`",
        ),
        Interval(
            _signature("steps", Integer(1, MAX_STEPS)),
            _steps,
            "after every update of the run whose number is a multiple of `count`",
        ),
        Interval(
            _signature("minutes", Float(above=0, high=MAX_MINUTES)),
            _minutes,
            "when `count` minutes have passed since the last time, or since the start",
            reads_clock=True,
        ),
    )
}


@dataclass(frozen=True)
class IntervalKind(TableType):
    """A call such as `steps(500)`; a bare integer is a number of epochs."""

    @property
    def table(self) -> Mapping[str, Interval]:
        return INTERVALS

    def accept(self, value: Value) -> BoundCall:
        if isinstance(value, int) and not isinstance(value, bool):
            Integer(1, MAX_EPOCHS).accept(value)
            value = Call("epochs", (Argument(None, value),))
        if not isinstance(value, Call | Symbol):
            raise TypeMismatch("a number of epochs, or `epochs(n)`, `steps(n)` or `minutes(n)`")
        return CallOf("interval", INTERVALS).accept(value)


def is_due(chosen: BoundCall, last: Mark, now: Mark) -> bool:
    """Whether what is done at this interval, and was done last at `last`, is due at `now`. The only
    place where a clock has a say: ranks that must agree need to agree on this."""
    due: bool = chosen.record.has_passed(last, now, chosen.arguments["count"])
    return due


def count_validations(chosen: BoundCall, epochs: int) -> int:
    """How many epochs of a run are validated, with the first and the last one; at most all, where
    the recipe alone does not say."""
    if chosen.name != "epochs":
        return epochs
    every = chosen.arguments["count"]
    return len({1, epochs, *range(every, epochs, every)})

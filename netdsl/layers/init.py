"""Initialisers: the distributions of initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from netdsl.errors import fail
from netdsl.parameter_types import Float, OneOf, TypeMismatch
from netdsl.signature import BoundCall, CallOf, Param, Signature
from netdsl.values import Symbol, Value


@dataclass(frozen=True)
class Fans:
    """The number of values that one output sums (fan in), and of outputs that one input affects
    (fan out)."""

    fan_in: float
    fan_out: float


@dataclass(frozen=True)
class Initialiser:
    """`distribution(fans, **arguments)` returns a distribution and its parameter, such as
    ("normal", 0.05). `needs` is what it takes its scale or direction from: the fans of a weight, or
    its rows."""

    signature: Signature
    distribution: Callable[..., tuple[str, float]]
    needs: Literal["", "fans", "rows"] = ""


def _he(fans: Fans) -> tuple[str, float]:
    return "normal", math.sqrt(2 / fans.fan_in)


def _he_uniform(fans: Fans) -> tuple[str, float]:
    return "uniform", math.sqrt(6 / fans.fan_in)


def _lecun(fans: Fans) -> tuple[str, float]:
    return "normal", math.sqrt(1 / fans.fan_in)


def _xavier(fans: Fans) -> tuple[str, float]:
    return "uniform", math.sqrt(6 / (fans.fan_in + fans.fan_out))


def _xavier_normal(fans: Fans) -> tuple[str, float]:
    return "normal", math.sqrt(2 / (fans.fan_in + fans.fan_out))


def _make_initialiser(
    name: str, distribution: Any, *params: Param, needs: Literal["", "fans", "rows"] = ""
) -> Initialiser:
    return Initialiser(Signature(name, params), distribution, needs)


INITIALISERS: dict[str, Initialiser] = {
    i.signature.name: i
    for i in (
        _make_initialiser("he", _he, needs="fans"),  # He et al. 2015, fan in, for ReLU
        _make_initialiser("he_uniform", _he_uniform, needs="fans"),
        _make_initialiser("lecun", _lecun, needs="fans"),  # LeCun et al. 1998
        _make_initialiser("xavier", _xavier, needs="fans"),  # Glorot & Bengio 2010
        _make_initialiser("xavier_normal", _xavier_normal, needs="fans"),
        _make_initialiser(
            "normal", lambda fans, std: ("normal", std), Param("std", Float(0), 0.01)
        ),
        _make_initialiser(
            "trunc_normal", lambda fans, std: ("trunc_normal", std), Param("std", Float(0), 0.02)
        ),  # ends at two standard deviations
        _make_initialiser(
            "orthogonal",
            lambda fans, gain: ("orthogonal", gain),
            Param("gain", Float(0), 1.0),
            needs="rows",
        ),  # Saxe et al. 2014
        _make_initialiser(
            "uniform", lambda fans, bound: ("uniform", bound), Param("bound", Float(0), 0.05)
        ),
        _make_initialiser(
            "constant", lambda fans, value: ("constant", value), Param("value", Float())
        ),
        _make_initialiser("zeros", lambda fans: ("constant", 0.0)),
        _make_initialiser("ones", lambda fans: ("constant", 1.0)),
    )
}


@dataclass(frozen=True)
class _BareNumber:
    """A bare number, read as `constant(number)`."""

    def accept(self, value: Value) -> BoundCall:
        number = Float().accept(value)
        return BoundCall("constant", INITIALISERS["constant"], {"value": number})


INITIALISER_KIND = OneOf((_BareNumber(), CallOf("initialiser", INITIALISERS)))


CHANNEL_INITIALISER_HELP = (
    "give a number, or set the scale yourself: `normal(std)`, `trunc_normal(std)` or "
    "`uniform(bound)`"
)


@dataclass(frozen=True)
class ChannelInitialiser:
    """An initialiser of one value for each channel: a factor, an offset. There are no rows to make
    orthogonal, and no fans. With `allows_fans`, the number of channels stands for both fans, as
    netdsl 0.1.0 had it."""

    allows_fans: bool = False

    def accept(self, value: Value) -> BoundCall:
        chosen: BoundCall = INITIALISER_KIND.accept(value)
        needs = chosen.record.needs
        if needs == "rows" or (needs == "fans" and not self.allows_fans):
            raise fail(
                f"`{chosen.name}` is for weight tensors: a vector with one value per channel has "
                f"no {needs}",
                chosen.span,
                help=CHANNEL_INITIALISER_HELP,
            )
        return chosen


def find_initialiser(name: str) -> BoundCall:
    """Returns the initialiser of that name with its default arguments."""
    chosen = INITIALISER_KIND.accept(Symbol(name))
    if not isinstance(chosen, BoundCall):
        raise TypeMismatch(name)
    return chosen

"""Initialisers: the distributions that weights are first drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netdsl.parameter_types import Float, OneOf, TypeMismatch
from netdsl.signature import BoundCall, CallOf, Param, Signature
from netdsl.values import Symbol, Value


@dataclass(frozen=True)
class Fans:
    """How many values one output sums up (fan in), and how many outputs one input reaches."""

    inputs: float
    outputs: float


@dataclass(frozen=True)
class Init:
    """`law(fans, **arguments)` gives a distribution and its parameter: ("normal", 0.05)."""

    signature: Signature
    law: Callable[..., tuple[str, float]]


def _he(fans: Fans) -> tuple[str, float]:
    return "normal", math.sqrt(2 / fans.inputs)


def _he_uniform(fans: Fans) -> tuple[str, float]:
    return "uniform", math.sqrt(6 / fans.inputs)


def _lecun(fans: Fans) -> tuple[str, float]:
    return "normal", math.sqrt(1 / fans.inputs)


def _xavier(fans: Fans) -> tuple[str, float]:
    return "uniform", math.sqrt(6 / (fans.inputs + fans.outputs))


def _xavier_normal(fans: Fans) -> tuple[str, float]:
    return "normal", math.sqrt(2 / (fans.inputs + fans.outputs))


def _entry(name: str, law: Any, *params: Param) -> Init:
    return Init(Signature(name, params), law)


INITS: dict[str, Init] = {
    i.signature.name: i
    for i in (
        _entry("he", _he),  # He et al. 2015, fan in, for ReLU
        _entry("he_uniform", _he_uniform),
        _entry("lecun", _lecun),  # LeCun et al. 1998
        _entry("xavier", _xavier),  # Glorot & Bengio 2010
        _entry("xavier_normal", _xavier_normal),
        _entry("normal", lambda fans, std: ("normal", std), Param("std", Float(0), 0.01)),
        _entry("uniform", lambda fans, bound: ("uniform", bound), Param("bound", Float(0), 0.05)),
        _entry("constant", lambda fans, value: ("constant", value), Param("value", Float())),
        _entry("zeros", lambda fans: ("constant", 0.0)),
        _entry("ones", lambda fans: ("constant", 1.0)),
    )
}


@dataclass(frozen=True)
class _Constant:
    """A bare number, read as `constant(number)`."""

    def accept(self, value: Value) -> BoundCall:
        number = Float().accept(value)
        return BoundCall("constant", INITS["constant"], {"value": number})


INIT = OneOf((_Constant(), CallOf("initialiser", INITS)))


def initialiser(name: str) -> BoundCall:
    """The initialiser of that name with its defaults."""
    chosen = INIT.accept(Symbol(name))
    if not isinstance(chosen, BoundCall):
        raise TypeMismatch(name)
    return chosen

"""The formulas of elementwise operators in C, held against the operators' references by tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from netdsl.backends.cuda.expression import Expr, literal
from netdsl.ops.activation import GELU_CUBIC, GELU_SCALE
from netdsl.ops.dropout import PHILOX_DOMAIN, dropout_key

Attrs = Any
Formula = Callable[[str, Sequence[Expr], Attrs], Expr]


def _text(text: str) -> Formula:
    return lambda ctype, args, attrs: Expr(ctype, text, tuple(args))


def _number(ctype: str, value: float) -> str:
    return literal(value, ctype).text


def _leaky(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    return Expr(
        ctype, f"({{0}} > 0 ? {{0}} : {_number(ctype, attrs['slope'])} * {{0}})", tuple(args)
    )


def _elu(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    alpha = _number(ctype, attrs["alpha"])
    return Expr(ctype, f"({{0}} > 0 ? {{0}} : {alpha} * expm1({{0}}))", tuple(args))


def _gelu(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    scale, cubic, half = (_number(ctype, v) for v in (GELU_SCALE, GELU_CUBIC, 0.5))
    inner = f"{scale} * ({{0}} + {cubic} * {{0}} * {{0}} * {{0}})"
    return Expr(ctype, f"({half} * {{0}} * (1 + tanh({inner})))", tuple(args))


def _clamp(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    """Of ends that have changed places, the upper one is meant, as in the reference."""
    low, high = (_number(ctype, min(attrs[end], attrs["high"])) for end in ("low", "high"))
    return Expr(ctype, f"({{0}} < {low} ? {low} : {{0}} > {high} ? {high} : {{0}})", tuple(args))


def _power(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    known = {2.0: "({0} * {0})", 1.0: "{0}", 0.5: "sqrt({0})", -1.0: "(1 / {0})"}
    exponent = float(attrs["exponent"])
    text = known.get(exponent, f"pow({{0}}, {_number(ctype, exponent)})")
    return Expr(ctype, text, tuple(args))


def _cast(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    (x,) = args
    if x.ctype == ctype:
        return x
    return Expr(ctype, "({0} != 0)" if ctype == "bool" else f"(({ctype}){{0}})", (x,))


def _select(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    return Expr(ctype, "({0} ? {1} : {2})", tuple(args))


def _compare(sign: str) -> Formula:
    return lambda ctype, args, attrs: Expr("bool", f"({{0}} {sign} {{1}})", tuple(args))


def _finite(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    return Expr("bool", "({0} - {0} == 0)", tuple(args))


def _average(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    keep, take = _number(ctype, attrs["decay"]), _number(ctype, 1 - attrs["decay"])
    return Expr(ctype, f"({keep} * {{0}} + {take} * {{1}})", tuple(args))


def _square_average(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    keep, take = _number(ctype, attrs["decay"]), _number(ctype, 1 - attrs["decay"])
    return Expr(ctype, f"({keep} * {{0}} + {take} * {{1}} * {{1}})", tuple(args))


def _momentum(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    return Expr(ctype, f"({_number(ctype, attrs['momentum'])} * {{0}} + {{1}})", tuple(args))


def _rms(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    return Expr(ctype, f"({{0}} / (sqrt({{1}}) + {_number(ctype, attrs['eps'])}))", tuple(args))


def _adam(ctype: str, args: Sequence[Expr], attrs: Attrs) -> Expr:
    m, v, step = args
    scales = [
        Expr(ctype, text.format(repr(attrs[beta]), "{0}", ctype=ctype), (step,))
        for beta, text in (
            ("beta1", "({ctype})(1 / (1 - pow({0}, (double){1} + 1)))"),
            ("beta2", "({ctype})(1 / sqrt(1 - pow({0}, (double){1} + 1)))"),
        )
    ]
    eps = _number(ctype, attrs["eps"])
    return Expr(ctype, f"({{0}} * {{2}} / (sqrt({{1}}) * {{3}} + {eps}))", (m, v, *scales))


def rescaling(ctype: str, variance: Expr, eps: float) -> Expr:
    """One over the standard deviation."""
    return Expr(ctype, f"(1 / sqrt({{0}} + {_number(ctype, eps)}))", (variance,))


def dropout(ctype: str, x: Expr, seed: Expr, step: Expr, number: Expr, attrs: Attrs) -> Expr:
    """The element, scaled where its Philox number says that it stays and times 0 where not: what is
    no number stays so."""
    rate = attrs["rate"]
    words = f"{dropout_key(attrs['key'])}u, (unsigned){{1}}, {PHILOX_DOMAIN}u"
    kept = f"philox({{3}}, (unsigned){{2}}, {words}) >= {round(rate * 2**32)}ull"
    scale = _number(ctype, 1 / (1 - rate))
    return Expr(ctype, f"({{0}} * ({kept} ? {scale} : 0))", (x, seed, step, number))


FORMULAS: dict[str, Formula] = {
    "add": _text("({0} + {1})"),
    "sub": _text("({0} - {1})"),
    "mul": _text("({0} * {1})"),
    "div": _text("({0} / {1})"),
    "maximum": _text("({0} >= {1} || {0} != {0} ? {0} : {1})"),
    "minimum": _text("({0} <= {1} || {0} != {0} ? {0} : {1})"),
    "equal": _compare("=="),
    "greater": _compare(">"),
    "is_finite": _finite,
    "neg": _text("(-{0})"),
    "exp": _text("exp({0})"),
    "log": _text("log({0})"),
    "sqrt": _text("sqrt({0})"),
    "power": _power,
    "select": _select,
    "copy": _text("{0}"),
    "cast": _cast,
    "relu": _text("({0} < 0 ? 0 : {0})"),
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
    "clamp": _clamp,
    "sigmoid": _text("((tanh({0} / 2) + 1) / 2)"),
    "tanh": _text("tanh({0})"),
    "squared_error": _text("(({0} - {1}) * ({0} - {1}))"),
    "ema": _average,
    "ema_square": _square_average,
    "momentum": _momentum,
    "descend": _text("({0} - {2} * {1})"),
    "adam_direction": _adam,
    "rms_direction": _rms,
}

"""The formulas of elementwise operators in C; tests compare them with the operators' references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from netdsl.backends.cuda.c_expression import CExpr, literal
from netdsl.ops.activation import GELU_CUBIC, GELU_SCALE
from netdsl.ops.dropout import PHILOX_DOMAIN, dropout_key

OpAttrs = Any
Formula = Callable[[str, Sequence[CExpr], OpAttrs], CExpr]


def _template(text: str) -> Formula:
    return lambda ctype, args, attrs: CExpr(ctype, text, tuple(args))


def _literal_text(ctype: str, value: float) -> str:
    return literal(value, ctype).text


def _leaky(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    return CExpr(
        ctype, f"({{0}} > 0 ? {{0}} : {_literal_text(ctype, attrs['slope'])} * {{0}})", tuple(args)
    )


def _elu(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    alpha = _literal_text(ctype, attrs["alpha"])
    return CExpr(ctype, f"({{0}} > 0 ? {{0}} : {alpha} * expm1({{0}}))", tuple(args))


def _gelu(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    scale, cubic, half = (_literal_text(ctype, v) for v in (GELU_SCALE, GELU_CUBIC, 0.5))
    inner = f"{scale} * ({{0}} + {cubic} * {{0}} * {{0}} * {{0}})"
    return CExpr(ctype, f"({half} * {{0}} * (1 + tanh({inner})))", tuple(args))


def _clamp(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    """If `low` is above `high`, the result is `high`, as in the reference."""
    low, high = (_literal_text(ctype, min(attrs[end], attrs["high"])) for end in ("low", "high"))
    return CExpr(ctype, f"({{0}} < {low} ? {low} : {{0}} > {high} ? {high} : {{0}})", tuple(args))


def _power(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    known = {2.0: "({0} * {0})", 1.0: "{0}", 0.5: "sqrt({0})", -1.0: "(1 / {0})"}
    exponent = float(attrs["exponent"])
    text = known.get(exponent, f"pow({{0}}, {_literal_text(ctype, exponent)})")
    return CExpr(ctype, text, tuple(args))


def _cast(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    (x,) = args
    if x.ctype == ctype:
        return x
    return CExpr(ctype, "({0} != 0)" if ctype == "bool" else f"(({ctype}){{0}})", (x,))


def _select(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    return CExpr(ctype, "({0} ? {1} : {2})", tuple(args))


def _compare(sign: str) -> Formula:
    return lambda ctype, args, attrs: CExpr("bool", f"({{0}} {sign} {{1}})", tuple(args))


def _is_finite(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    return CExpr("bool", "({0} - {0} == 0)", tuple(args))


def _ema(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    decay, gain = _literal_text(ctype, attrs["decay"]), _literal_text(ctype, 1 - attrs["decay"])
    return CExpr(ctype, f"({decay} * {{0}} + {gain} * {{1}})", tuple(args))


def _ema_square(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    decay, gain = _literal_text(ctype, attrs["decay"]), _literal_text(ctype, 1 - attrs["decay"])
    return CExpr(ctype, f"({decay} * {{0}} + {gain} * {{1}} * {{1}})", tuple(args))


def _momentum(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    return CExpr(ctype, f"({_literal_text(ctype, attrs['momentum'])} * {{0}} + {{1}})", tuple(args))


def _rms(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    return CExpr(
        ctype, f"({{0}} / (sqrt({{1}}) + {_literal_text(ctype, attrs['eps'])}))", tuple(args)
    )


def _adam(ctype: str, args: Sequence[CExpr], attrs: OpAttrs) -> CExpr:
    m, v, step = args
    scales = [
        CExpr(ctype, text.format(repr(attrs[beta]), "{0}", ctype=ctype), (step,))
        for beta, text in (
            ("beta1", "({ctype})(1 / (1 - pow({0}, (double){1} + 1)))"),
            ("beta2", "({ctype})(1 / sqrt(1 - pow({0}, (double){1} + 1)))"),
        )
    ]
    eps = _literal_text(ctype, attrs["eps"])
    return CExpr(ctype, f"({{0}} * {{2}} / (sqrt({{1}}) * {{3}} + {eps}))", (m, v, *scales))


def inverse_std(ctype: str, variance: CExpr, eps: float) -> CExpr:
    """Returns one over the standard deviation."""
    return CExpr(ctype, f"(1 / sqrt({{0}} + {_literal_text(ctype, eps)}))", (variance,))


def dropout(ctype: str, x: CExpr, seed: CExpr, step: CExpr, index: CExpr, attrs: OpAttrs) -> CExpr:
    """Returns the element, times the scale if its Philox number keeps it, else times 0, so that NaN
    stays NaN."""
    rate = attrs["rate"]
    words = f"{dropout_key(attrs['key'])}u, (unsigned){{1}}, {PHILOX_DOMAIN}u"
    is_kept = f"philox({{3}}, (unsigned){{2}}, {words}) >= {round(rate * 2**32)}ull"
    scale = _literal_text(ctype, 1 / (1 - rate))
    return CExpr(ctype, f"({{0}} * ({is_kept} ? {scale} : 0))", (x, seed, step, index))


FORMULAS: dict[str, Formula] = {
    "add": _template("({0} + {1})"),
    "sub": _template("({0} - {1})"),
    "mul": _template("({0} * {1})"),
    "div": _template("({0} / {1})"),
    "maximum": _template("({0} >= {1} || {0} != {0} ? {0} : {1})"),
    "minimum": _template("({0} <= {1} || {0} != {0} ? {0} : {1})"),
    "equal": _compare("=="),
    "greater": _compare(">"),
    "is_finite": _is_finite,
    "neg": _template("(-{0})"),
    "exp": _template("exp({0})"),
    "log": _template("log({0})"),
    "sqrt": _template("sqrt({0})"),
    "power": _power,
    "select": _select,
    "copy": _template("{0}"),
    "cast": _cast,
    "relu": _template("({0} < 0 ? 0 : {0})"),
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
    "clamp": _clamp,
    "sigmoid": _template("((tanh({0} / 2) + 1) / 2)"),
    "tanh": _template("tanh({0})"),
    "squared_error": _template("(({0} - {1}) * ({0} - {1}))"),
    "ema": _ema,
    "ema_square": _ema_square,
    "momentum": _momentum,
    "descend": _template("({0} - {2} * {1})"),
    "adam_direction": _adam,
    "rms_direction": _rms,
}

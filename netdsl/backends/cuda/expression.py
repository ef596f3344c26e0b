"""Expressions: what one element of a kernel's result is, as a graph of C expressions."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.backends.cuda.index import Piece, Term
from netdsl.backends.cuda.launch import Word, address_of
from netdsl.plan.placement import Placement

REGISTER = {
    "float64": "double",
    "float32": "float",
    "float16": "float",
    "bfloat16": "float",
    "int64": "long long",
    "int32": "int",
    "uint8": "int",
    "bool": "bool",
}
"""The C type that an element has in a register: 16-bit numbers are computed with in 32."""
MEMORY = {
    "float64": "double",
    "float32": "float",
    "float16": "half_t",
    "bfloat16": "bf16_t",
    "int64": "long long",
    "int32": "int",
    "uint8": "unsigned char",
    "bool": "unsigned char",
}


def pointer(name: str, place: Placement, written: bool) -> tuple[str, str, Word]:
    """A place as a parameter of a kernel, the line that makes a pointer of it, and its value."""
    kind = MEMORY[place.dtype] if written else f"const {MEMORY[place.dtype]}"
    line = f"  {kind}* {name} = ({kind}*){name}_at;\n"
    return f"i64 {name}_at", line, address_of(place, place.layout.offset)


@dataclass(frozen=True, eq=False)
class Expr:
    """`text` with `{0}`, `{1}` for the operands; `ctype` is the C type of the value."""

    ctype: str
    text: str
    args: tuple[Expr, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """An axis that is read through a border: coordinate c is element `(c - low) / step`, where
    that is a whole number under `size`. With `inner`, the rest of that division counts too, in
    steps of its own: an axis that lies in two."""

    pieces: tuple[Piece, ...]
    low: int
    step: int
    size: int
    stride: int
    inner: int = 0


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """An element of a value in memory; `fill` where a window leads outside."""

    place: Placement | None = None
    terms: tuple[Term, ...] = ()
    offset: int = 0
    windows: tuple[Window, ...] = ()
    fill: float = 0.0


@dataclass(frozen=True, eq=False)
class Number(Expr):
    """The running number of an element in its own value."""

    terms: tuple[Term, ...] = ()


def literal(value: float, ctype: str) -> Expr:
    """A constant."""
    if ctype in ("int", "long long", "bool"):
        return Expr(ctype, str(int(value)))
    if value != value or value in (float("inf"), float("-inf")):
        named = {"inf": "INFINITY", "-inf": "-INFINITY"}.get(str(value), "NAN")
        return Expr(ctype, f"({ctype}){named}")
    plain = repr(float(value))
    return Expr(ctype, f"{plain}f" if ctype == "float" else plain)

"""C expressions: one element of a kernel's result as a graph of them."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.backends.cuda.cuda_launch import KernelArgument, element_address
from netdsl.backends.cuda.index_terms import Digit, Term
from netdsl.plan.placement import Placement

REGISTER_TYPES = {
    "float64": "double",
    "float32": "float",
    "float16": "float",
    "bfloat16": "float",
    "int64": "long long",
    "int32": "int",
    "uint8": "int",
    "bool": "bool",
}
"""The C type of an element in a register: 16-bit floats are computed in 32 bits."""
MEMORY_TYPES = {
    "float64": "double",
    "float32": "float",
    "float16": "half_t",
    "bfloat16": "bf16_t",
    "int64": "long long",
    "int32": "int",
    "uint8": "unsigned char",
    "bool": "unsigned char",
}


def pointer_parameter(
    name: str, place: Placement, is_output: bool
) -> tuple[str, str, KernelArgument]:
    """Returns a placement as a parameter of a kernel, the line that turns it into a pointer, and
    the argument."""
    kind = MEMORY_TYPES[place.dtype] if is_output else f"const {MEMORY_TYPES[place.dtype]}"
    line = f"  {kind}* {name} = ({kind}*){name}_at;\n"
    return f"i64 {name}_at", line, element_address(place, place.layout.offset)


@dataclass(frozen=True, eq=False)
class CExpr:
    """`text` with `{0}`, `{1}` for the operands; `ctype` is the C type of the value."""

    ctype: str
    text: str
    args: tuple[CExpr, ...] = ()


@dataclass(frozen=True, slots=True)
class PaddedAxis:
    """An axis that is read through padding: coordinate c is element `(c - low) / step`, if that is
    an integer within `size`. With `inner_stride`, the remainder of the division moves the address
    as well, by that stride: an axis that is split in two."""

    digits: tuple[Digit, ...]
    low: int
    step: int
    size: int
    stride: int
    inner_stride: int = 0


@dataclass(frozen=True, eq=False)
class Load(CExpr):
    """An element of a value in memory; `fill` outside a padded axis."""

    place: Placement | None = None
    terms: tuple[Term, ...] = ()
    offset: int = 0
    padded_axes: tuple[PaddedAxis, ...] = ()
    fill: float = 0.0


@dataclass(frozen=True, eq=False)
class LinearIndex(CExpr):
    """The row-major index of an element in its own value."""

    terms: tuple[Term, ...] = ()


def literal(value: float, ctype: str) -> CExpr:
    """Returns a constant."""
    if ctype in ("int", "long long", "bool"):
        return CExpr(ctype, str(int(value)))
    if value != value or value in (float("inf"), float("-inf")):
        constant = {"inf": "INFINITY", "-inf": "-INFINITY"}.get(str(value), "NAN")
        return CExpr(ctype, f"({ctype}){constant}")
    plain = repr(float(value))
    return CExpr(ctype, f"{plain}f" if ctype == "float" else plain)

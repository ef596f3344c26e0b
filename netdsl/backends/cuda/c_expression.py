"""Expressions in C: element types and primitives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netdsl.backends.cuda.cuda_launch import KernelArgument, element_address
from netdsl.lower.expression import Constant, DropoutMask, Expr
from netdsl.ops.dropout import PHILOX_DOMAIN
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
    """Returns the parameter for a placement, the line that makes a pointer of it, and its value."""
    kind = MEMORY_TYPES[place.dtype] if is_output else f"const {MEMORY_TYPES[place.dtype]}"
    line = f"  {kind}* {name} = ({kind}*){name}_at;\n"
    return f"i64 {name}_at", line, element_address(place, place.layout.offset)


TEMPLATES = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "fma": "fma({0}, {1}, {2})",
    "neg": "(-{0})",
    "abs": "fabs({0})",
    "maximum": "({0} >= {1} || {0} != {0} ? {0} : {1})",
    "minimum": "({0} <= {1} || {0} != {0} ? {0} : {1})",
    "greater": "({0} > {1})",
    "equal": "({0} == {1})",
    "is_finite": "({0} - {0} == 0)",
    "select": "({0} ? {1} : {2})",
    "exp": "exp({0})",
    "expm1": "expm1({0})",
    "log": "log({0})",
    "log1p": "log1p({0})",
    "sqrt": "sqrt({0})",
    "tanh": "tanh({0})",
    "erf": "erf({0})",
    "pow": "pow({0}, {1})",
}
"""C for the primitives of `lower/expression.py` but `cast`."""
_WITH_CONSTANT = {"maximum": "({0} < {1} ? {1} : {0})", "minimum": "({0} > {1} ? {1} : {0})"}
"""The same where the last operand is a constant, and so no NaN."""


def render(e: Expr, operands: Sequence[str]) -> str:
    """Returns an expression in C, of its operands in C."""
    ctype = REGISTER_TYPES[e.dtype]
    if isinstance(e, Constant):
        return literal(e.value, ctype)
    if isinstance(e, DropoutMask):
        words = f"{e.key}u, (unsigned){operands[1]}, {PHILOX_DOMAIN}u"
        return f"(philox({operands[0]}, (unsigned){operands[2]}, {words}) >= {e.threshold}ull)"
    if e.op == "cast":
        (x,) = operands
        if REGISTER_TYPES[e.args[0].dtype] == ctype:
            return x
        return f"({x} != 0)" if ctype == "bool" else f"(({ctype}){x})"
    has_constant = e.op in _WITH_CONSTANT and isinstance(e.args[-1], Constant)
    return (_WITH_CONSTANT if has_constant else TEMPLATES)[e.op].format(*operands)


def render_tree(e: Expr, names: Mapping[int, str]) -> str:
    """Returns an expression in C with all its operands; `names` has what leaves are, by their
    ids."""
    return names.get(id(e)) or render(e, [render_tree(a, names) for a in e.args])


def literal(value: float, ctype: str) -> str:
    """Returns a constant in C."""
    if ctype in ("int", "long long", "bool"):
        return str(int(value))
    if value != value or value in (float("inf"), float("-inf")):
        constant = {"inf": "INFINITY", "-inf": "-INFINITY"}.get(str(value), "NAN")
        return f"({ctype}){constant}"
    plain = repr(float(value))
    return f"{plain}f" if ctype == "float" else plain

"""What a tile does to its sums before it writes them: elementwise nodes, in registers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

from netdsl.backends.cpu.elementwise_functions import FUNCTIONS
from netdsl.backends.cpu.llvm_builder import Lanes, Value, const_i64
from netdsl.backends.cpu.memory_ref import MemoryRef
from netdsl.backends.cpu.row_kernel_spec import RowKernelBody
from netdsl.lower.expression import Constant, Expr

_CHEAP_OPS = frozenset(
    ("add", "sub", "mul", "fma", "neg", "abs", "maximum", "minimum", "greater", "select")
)
"""Primitives of so few instructions that a tile may have them for each of its vectors."""

EpilogueExpr = tuple[Hashable, ...]


@dataclass(frozen=True)
class RegisterEpilogue:
    """An expression of the tile's own sums, and the other places that it reads."""

    expr: EpilogueExpr
    target: MemoryRef
    operands: tuple[tuple[str, MemoryRef], ...]

    @property
    def has_full_operands(self) -> bool:
        """Whether it reads what has an element for each result: the results may lie there too."""
        return any(kind == "full" for kind, _ in self.operands)

    def operand_addresses(self, column: int) -> list[int]:
        """Of what the tiles of a column block read: vectors from its first column on, and how far
        from a result what belongs to it lies."""
        begin = {"vector": 4 * column, "full": -self.target.address, "scalar": 0}
        return [p.address + begin[kind] for kind, p in self.operands]


def make_register_epilogue(body: RowKernelBody) -> RegisterEpilogue | None:
    """An epilogue that computes a body's one output, if it is short and reads only what lies beside
    the results or is the same for all rows."""
    ((e, target),) = body.outputs
    if target.dtype != "float32" or target.strides[-1] != 1:
        return None
    operands: list[tuple[str, MemoryRef]] = []
    expr = _encode(e, target, body.refs, operands)
    return RegisterEpilogue(expr, target, tuple(operands)) if expr else None


def _encode(
    e: Expr,
    target: MemoryRef,
    refs: Mapping[int, MemoryRef],
    operands: list[tuple[str, MemoryRef]],
) -> EpilogueExpr | None:
    if isinstance(e, Constant):
        return ("const", e.value) if e.dtype == "float32" else None
    if id(e) in refs:
        return _encode_ref(refs[id(e)], target, operands)
    if e.op not in _CHEAP_OPS:
        return None
    args = [_encode(a, target, refs, operands) for a in e.args]
    return None if None in args else (e.op, *args)


def _encode_ref(
    p: MemoryRef, target: MemoryRef, operands: list[tuple[str, MemoryRef]]
) -> EpilogueExpr | None:
    if p.is_local:
        return ("own",)
    if p.padded_axes or p.dtype != "float32":
        return None
    *outer, inner = p.strides
    kind = "full" if p.strides == target.strides else "vector" if inner == 1 else "scalar"
    if kind != "full" and (any(outer) or inner > 1):
        return None
    entry = (kind, p)
    if entry not in operands:
        operands.append(entry)
    return (kind, operands.index(entry))


def emit_epilogue(
    v: Lanes, expr: EpilogueExpr, result: Value, load_operand: Callable[[str, int], Value]
) -> Value:
    """The expression for a vector of sums; `load_operand` gives what the other places have beside
    it."""
    op, *rest = expr
    if op == "own":
        return result
    if op == "const":
        return v.const(rest[0])  # type: ignore[arg-type]
    if op in ("scalar", "vector", "full"):
        return load_operand(op, rest[0])  # type: ignore[arg-type]
    values = [emit_epilogue(v, a, result, load_operand) for a in rest]  # type: ignore[arg-type]
    return FUNCTIONS[str(op)](v, *values)


def make_operand_loader(
    v: Lanes, expr: EpilogueExpr, operand_table: Value, offset: Value
) -> Callable[[Value, str, int], Value]:
    """What gives the value of a place beside the results at an address. `operand_table` is the
    table of the places' addresses; of vectors and scalars, which are the same for all rows, those
    that belong to a vector of results `offset` bytes into a column block are read at once."""
    f = v.f

    def address(index: int) -> Value:
        return f.load_i64(operand_table, const_i64(index))

    row_operands = {
        index: v.load(f.b.add(address(index), offset))
        if kind == "vector"
        else v.load_splat(address(index))
        for kind, index in _iter_operands(expr)
        if kind != "full"
    }

    def load_operand(to: Value, kind: str, index: int) -> Value:
        return v.load(f.b.add(to, address(index))) if kind == "full" else row_operands[index]

    return load_operand


def _iter_operands(expr: EpilogueExpr) -> Iterator[tuple[str, int]]:
    op, *rest = expr
    if op in ("scalar", "vector", "full"):
        yield str(op), rest[0]  # type: ignore[misc]
    elif op not in ("own", "const"):
        for argument in rest:
            yield from _iter_operands(argument)  # type: ignore[arg-type]

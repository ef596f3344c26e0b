"""A kernel's expressions over its domain, with the memory that they refer to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from netdsl.backends.cpu.memory_ref import DTYPE_BYTES, KernelOperand, MemoryRef
from netdsl.lower.expression import Expr, LinearIndex, Load, iter_expressions
from netdsl.lower.index_terms import (
    DomainDigits,
    Term,
    UnsupportedKernelError,
    address_terms,
    domain_coordinates,
)
from netdsl.lower.trace import TracedKernel, trace
from netdsl.plan.layout import IntTuple, row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Graph

_FLOAT64_OPS = frozenset(("add", "sub", "mul", "div", "fma", "neg", "sqrt", "pow", "cast", "const"))
"""What is computed in float64, of scalars: factors of a step."""


class DomainExpressions:
    """A kernel's expressions over a domain of some shape, whose axes `shape` splits where a view
    asks for it; `refs` has the memory of each load by its id, `outputs` what is written where.

    Raises UnsupportedKernelError for expressions and layouts that row kernels do not handle."""

    def __init__(
        self, traced: TracedKernel, operands: Mapping[str, KernelOperand], domain: IntTuple
    ) -> None:
        """`operands` are those that the traced kernel's placements name as their buffers."""
        if traced.size != math.prod(domain):
            raise UnsupportedKernelError("a kernel over another domain")
        self.kernel, self.operands, self.domain = traced, operands, domain
        exprs = list(iter_expressions(traced.roots))
        loads = [e for e in exprs if isinstance(e, Load)]
        addresses = [e.terms for e in loads] + [s.terms for s in traced.stores]
        addresses += [e.terms for e in exprs if isinstance(e, LinearIndex)]
        self.digits = DomainDigits(traced.size, addresses, domain)
        axes = list(self._find_axes())
        self.shape = tuple(size for size, _ in axes)
        self._digit_of_axis = [digit for _, digit in axes]
        _check_types(exprs)
        for e in exprs:
            self._check_index(e)
        self.refs = {id(e): self._make_ref(e) for e in loads}
        self.outputs = [(s.value, self._make_output_ref(s.place, s.terms)) for s in traced.stores]

    def all_refs(self) -> list[MemoryRef]:
        """The memory of loads, then that of outputs."""
        return [*self.refs.values(), *(p for _, p in self.outputs)]

    @property
    def is_split(self) -> bool:
        """Whether the shape has more axes than the domain."""
        return self.shape != self.domain

    def _find_axes(self) -> Iterator[tuple[int, int | None]]:
        """Size and digit of each axis; no digit for an axis of size 1."""
        digit = 0
        for size, weight in zip(self.domain, row_major_strides(self.domain), strict=True):
            if size == 1:
                yield 1, None
            while digit < len(self.digits.extents) and self.digits.boundaries[digit + 1] >= weight:
                yield self.digits.extents[digit], digit
                digit += 1

    def _align_strides(self, terms: Sequence[Term]) -> IntTuple:
        strides = self.digits.strides(terms)
        return tuple(0 if digit is None else strides[digit] for digit in self._digit_of_axis)

    def _check_index(self, e: Expr) -> None:
        if not isinstance(e, LinearIndex):
            return
        row_major = address_terms(domain_coordinates(self.domain), row_major_strides(self.domain))
        if self.digits.strides(e.terms) != self.digits.strides(row_major):
            raise UnsupportedKernelError("dropout of a value that is broadcast or transposed")

    def _make_ref(self, load: Load) -> MemoryRef:
        operand = self.operands[load.place.buffer]
        strides = list(self._align_strides(load.terms))
        if load.padded_axes:
            self._check_padding(load)
            for axis in load.padded_axes:
                strides[axis.axis] = axis.stride
            if strides[-1] != 1 and self.domain[-1] != 1:
                raise UnsupportedKernelError("padding of a value whose channels are not contiguous")
        return MemoryRef(
            operand.address + load.offset * DTYPE_BYTES[load.dtype],
            tuple(strides),
            load.dtype,
            load.padded_axes,
            load.fill,
            operand.is_local,
        )

    def _check_padding(self, load: Load) -> None:
        coordinates = domain_coordinates(self.domain)
        rank = len(self.domain)
        if (
            any(
                p.axis >= rank or p.digits != coordinates[p.axis] or p.inner_stride
                for p in load.padded_axes
            )
            or len(load.place.layout.shape) != rank
        ):
            raise UnsupportedKernelError("padding of a value that is accessed through views")
        between_channels = any(p.axis == rank - 1 and p.step > 1 for p in load.padded_axes)
        if self.is_split or load.dtype != "float32" or rank > 4 or between_channels:
            raise UnsupportedKernelError("padding between channels")

    def _make_output_ref(self, place: Placement, terms: Sequence[Term]) -> MemoryRef:
        if place.dtype not in ("float32", "bool"):
            raise UnsupportedKernelError(f"an output of {place.dtype}")
        operand = self.operands[place.buffer]
        address = operand.address + DTYPE_BYTES[place.dtype] * place.layout.offset
        return MemoryRef(address, self._align_strides(terms), place.dtype)


def trace_domain(
    graph: Graph,
    nodes: Sequence[str],
    operands: Mapping[str, KernelOperand],
    outputs: Mapping[str, KernelOperand],
    domain: IntTuple,
) -> DomainExpressions:
    """Traces a kernel that reads `operands` (those of its nodes too that are computed before) and
    writes `outputs`, over a domain. Raises UnsupportedKernelError if there is no code for it."""
    places = {
        name: Placement(name, o.dtype, o.layout) for name, o in ({**operands, **outputs}).items()
    }
    computed = [n for n in nodes if n not in operands]
    traced = trace(graph, places, operands, computed, outputs)
    return DomainExpressions(traced, {**operands, **outputs}, domain)


def _check_types(exprs: Sequence[Expr]) -> None:
    scalars: set[int] = set()
    for e in exprs:
        if isinstance(e, Load):
            if e.dtype not in DTYPE_BYTES:
                raise UnsupportedKernelError(f"values of {e.dtype}")
            if not e.terms and not e.padded_axes:
                scalars.add(id(e))
            continue
        if e.op == "const" or (e.args and all(id(a) in scalars for a in e.args)):
            scalars.add(id(e))
        is_float64 = e.dtype == "float64" and id(e) in scalars and e.op in _FLOAT64_OPS
        if e.op not in ("index", "const") and e.dtype not in ("float32", "bool") and not is_float64:
            raise UnsupportedKernelError(f"{e.op} on {e.dtype}")

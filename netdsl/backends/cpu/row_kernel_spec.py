"""What a kernel over rows needs beside its text: levels, tiles and arguments."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.llvm_builder import F32, I8, I32
from netdsl.backends.cpu.loop_nest import LoopNest
from netdsl.backends.cpu.memory_ref import DTYPE_BYTES, MemoryRef
from netdsl.backends.cpu.record import Record, RecordTable
from netdsl.backends.cpu.row_results import RowResult
from netdsl.lower.expression import (
    Constant,
    DropoutMask,
    Expr,
    LinearIndex,
    Load,
    PaddedAxis,
    iter_expressions,
)
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.levels import Level, assign_levels
from netdsl.lower.trace import Accumulator
from netdsl.plan.layout import IntTuple

LLVM_TYPES = {"float32": F32, "uint8": I8, "bool": I8, "int32": I32}


@dataclass(frozen=True)
class RowKernelBody:
    """What a kernel computes of each element: what it writes where, what it accumulates, and the
    memory of its loads, by their ids. `is_flat` says that columns are accumulated too, so that
    moments are taken around one element for all of them. With `row_results`, each row is reduced by
    itself, and never split."""

    outputs: Sequence[tuple[Expr, MemoryRef]]
    accumulators: Sequence[Accumulator]
    refs: Mapping[int, MemoryRef]
    is_flat: bool = False
    row_results: Sequence[RowResult] = ()

    @property
    def roots(self) -> list[Expr]:
        return [e for e, _ in self.outputs] + [a.value for a in self.accumulators]

    @property
    def accumulator_count(self) -> int:
        """How many numbers are accumulated in memory: moments are two."""
        return 0 if self.row_results else sum(a.sum_count for a in self.accumulators)


class RowKernelArgs(Record):
    """What a kernel over rows is given: the last two of three outer axes; period and tile of the
    run, and its length; where sums are gathered, bytes of a slot and of a sum in it; tiles of the
    producer, bytes of each and elements from row to row; how often the period repeats; the places,
    and where tiles of channel vectors lie; how many elements there are."""

    outer1: int
    outer2: int
    period: int
    tile: int
    slots: int
    slot: int
    sum: int
    run: int
    local: int
    local_size: int
    local_pitch: int
    repeat: int
    places: int
    tiles: int
    elements: int


class MemoryRefArgs(Record):
    """A place: its address, bytes along three outer axes and along the run. Of padding: zeros
    before, steps between and size of what is padded along the outer axes; before and size along
    the run."""

    address: int
    outer0: int
    outer1: int
    outer2: int
    inner: int
    low0: int = 0
    low1: int = 0
    low2: int = 0
    step0: int = 1
    step1: int = 1
    step2: int = 1
    size0: int = 1
    size1: int = 1
    size2: int = 1
    run_low: int = 0
    run_size: int = 1


class RowKernelSpec:
    """The expressions of a kernel with their levels, its tiles, and its arguments."""

    def __init__(
        self,
        loop_nest: LoopNest,
        body: RowKernelBody,
        slots: int,
        local: IntTuple,
    ) -> None:
        self.loop_nest, self.body, self.local = loop_nest, body, local
        self.keepalive: list[Any] = []
        self.accumulator_stride = -(-loop_nest.tile_size // 16) * 16 + 16
        self.slots = allocate_floats(
            max(slots * body.accumulator_count, 1) * self.accumulator_stride
        )
        self.ref_args: list[MemoryRefArgs] = []
        self.tile_addresses: list[int] = []
        self.levels = assign_levels(body.roots, self._level)
        self.row_invariants = self._find_row_invariants()
        self.ref_indices: dict[int, int] = {}
        self.tile_indices: dict[int, int] = {}
        self.shift_tile_indices = {
            id(a): self._allocate_tile()
            for a in body.accumulators
            if a.kind == "moments" and not body.row_results
        }
        self.hoisted_exprs = {id(e): e for root in body.roots for e in self._find_hoisted(root)}
        for key in self.hoisted_exprs:
            self.tile_indices[key] = self._allocate_tile()

    def pack_args(self, keepalive: list[Any]) -> int:
        """The address of the arguments, once `signature` has numbered all places."""
        w, table = self.loop_nest, RecordTable(keepalive)
        return table.add(
            RowKernelArgs(
                outer1=w.outer_shape[1],
                outer2=w.outer_shape[2],
                period=w.period,
                tile=w.tile_size if self.body.accumulators or w.run > w.period else 1 << 40,
                slots=self.slots.ctypes.data,
                slot=self.body.accumulator_count * self.accumulator_stride * 4,
                sum=self.accumulator_stride * 4,
                run=w.run,
                local=self.local[0],
                local_size=self.local[1],
                local_pitch=self.local[2],
                repeat=w.repeat,
                places=table.add(*self.ref_args) if self.ref_args else 0,
                tiles=table.add_i64s(self.tile_addresses),
                elements=w.row_count * w.run,
            )
        )

    def signature(self) -> Hashable:
        """All that the text of this kernel's functions depends on: what differs otherwise stands
        in the arguments, which from now on have all places."""
        builder = _SignatureBuilder(self)
        outputs = tuple((builder.add_expr(e), builder.add_ref(p)) for e, p in self.body.outputs)
        sums = tuple((builder.add_expr(a.value), a.kind) for a in self.body.accumulators)
        tiled = tuple(builder.expr_indices[key] for key in self.hoisted_exprs)
        row_results = tuple(
            (r.signature(), *map(builder.add_ref, r.refs)) for r in self.body.row_results
        )
        for place in builder.refs.values():
            self.number_ref(place)
        is_single = self.loop_nest.run == 1
        entries = tuple(builder.entries)
        return entries, outputs, sums, self.body.is_flat, row_results, tiled, is_single

    # levels

    def _level(self, e: Load | LinearIndex) -> Level:
        if isinstance(e, LinearIndex):
            return Level.ROW
        p = self.body.refs[id(e)]
        if p.padded_axes or p.is_local:
            return Level.ROW
        outer, inner = self.loop_nest.strides[id(p)]
        if inner == 0:
            return Level.ROW if any(outer) else Level.FIXED
        is_lane = inner == 1 and id(p) in self.loop_nest.periodic_refs
        return Level.LANE if is_lane else Level.ROW

    def _find_row_invariants(self) -> frozenset[int]:
        """The expressions, by their id, that have one value for all elements of a row."""
        found: set[int] = set()
        for e in iter_expressions(self.body.roots):
            if isinstance(e, Load):
                p = self.body.refs[id(e)]
                is_same = not (p.padded_axes or p.is_local or self.loop_nest.strides[id(p)][1])
            else:
                is_same = not isinstance(e, LinearIndex) and all(id(a) in found for a in e.args)
            if is_same:
                found.add(id(e))
        return frozenset(found)

    def _find_hoisted(self, e: Expr) -> list[Expr]:
        """The largest vector expressions in a full one: they become tiles; vectors in memory only
        where they have to be repeated."""
        if self.levels[id(e)] == Level.LANE and e.dtype != "bool":
            return [] if isinstance(e, Load) and self.loop_nest.repeat == 1 else [e]
        if self.levels[id(e)] == Level.LANE and isinstance(e, Load):
            raise UnsupportedKernelError("conditions along channels")
        if self.levels[id(e)] == Level.FIXED:
            return []
        return [found for a in e.args for found in self._find_hoisted(a)]

    def _allocate_tile(self) -> int:
        """The number of a new tile."""
        memory = allocate_floats(self.loop_nest.tile_size)
        self.keepalive.append(memory)
        self.tile_addresses.append(int(memory.ctypes.data))
        return len(self.tile_addresses) - 1

    def number_ref(self, p: MemoryRef) -> int:
        """The number of a place among the arguments."""
        if id(p) not in self.ref_indices:
            size = DTYPE_BYTES[p.dtype]
            (o0, o1, o2), inner = self.loop_nest.strides[id(p)]
            self.ref_indices[id(p)] = len(self.ref_args)
            self.ref_args.append(
                MemoryRefArgs(
                    address=p.address,
                    outer0=o0 * size,
                    outer1=o1 * size,
                    outer2=o2 * size,
                    inner=inner * size,
                    **_padding_fields(p),
                )
            )
        return self.ref_indices[id(p)]


class _SignatureBuilder:
    """Expressions and places by number, with what a text depends on of each: the same object has
    the same number, since it is computed once."""

    def __init__(self, spec: RowKernelSpec) -> None:
        self.spec = spec
        self.entries: list[Hashable] = []
        self.expr_indices: dict[int, int] = {}
        self.refs: dict[int, MemoryRef] = {}
        self._ref_indices: dict[int, int] = {}

    def add_ref(self, p: MemoryRef) -> int:
        if id(p) not in self.refs:
            self._ref_indices[id(p)] = len(self.refs)
            self.refs[id(p)] = p
            inner = self.spec.loop_nest.strides[id(p)][1]
            step = inner if inner in (0, 1) else None
            self.entries.append((p.dtype, not p.padded_axes, p.fill, p.is_local, step))
        return self._ref_indices[id(p)]

    def add_expr(self, e: Expr) -> int:
        if id(e) not in self.expr_indices:
            args = tuple(self.add_expr(a) for a in e.args)
            level = self.spec.levels[id(e)]
            self.entries.append((e.op, e.dtype, self._extra(e), args, int(level)))
            self.expr_indices[id(e)] = len(self.expr_indices)
        return self.expr_indices[id(e)]

    def _extra(self, e: Expr) -> Hashable:
        """What an expression has besides its operands."""
        if isinstance(e, Constant):
            return repr(e.value)
        if isinstance(e, DropoutMask):
            return e.key, e.threshold
        return self.add_ref(self.spec.body.refs[id(e)]) if isinstance(e, Load) else None


def _padding_fields(p: MemoryRef) -> dict[str, int]:
    """Of the last four axes; those that are not padded are read as they are."""
    if not p.padded_axes:
        return {}
    ahead = 4 - len(p.strides)
    axes = {ahead + axis.axis: axis for axis in p.padded_axes}
    found: dict[str, int] = {}
    for a in range(3):
        axis = axes.get(a, _UNPADDED)
        found |= {f"low{a}": axis.low, f"step{a}": axis.step, f"size{a}": axis.size}
    run = axes.get(3, _UNPADDED)
    return {**found, "run_low": run.low, "run_size": run.size}


_UNPADDED = PaddedAxis((), low=0, step=1, size=1 << 40, stride=0)

"""What a kernel over rows needs beside its text: levels, tiles and arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.kernel_expression import ElementExpr, MemoryRef, UnsupportedKernelError
from netdsl.backends.cpu.llvm_builder import F32, I8, I32
from netdsl.backends.cpu.loop_nest import LoopNest
from netdsl.backends.cpu.record import Record, RecordTable
from netdsl.plan.layout import IntTuple

LLVM_TYPES = {"float32": F32, "uint8": I8, "bool": I8, "int32": I32}
DTYPE_BYTES = {"float32": 4, "uint8": 1, "bool": 1, "int32": 4}
SCALAR, VECTOR, FULL = range(3)


@dataclass(frozen=True, eq=False)
class Accumulator:
    """A sum over the domain, or its `is_max` value; with `has_squares`, also the sum of the squares
    of what differs from the first row (`shift`), or where sums are `is_flat` from the first
    element."""

    value: ElementExpr
    has_squares: bool = False
    is_flat: bool = False
    is_max: bool = False

    @property
    def value_count(self) -> int:
        """How many numbers are gathered."""
        return 1 + self.has_squares


class RowKernelArgs(Record):
    """What a kernel over rows is given: the last two of three outer axes; period and tile of the
    run, and its length; where sums are gathered, bytes of a slot and of a sum in it; tiles of the
    producer, bytes of each and elements from row to row; how often the period repeats; the places,
    and where tiles of channel vectors lie."""

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
        outputs: Sequence[tuple[ElementExpr, MemoryRef]],
        accumulators: Sequence[Accumulator],
        slots: int,
        local: IntTuple,
    ) -> None:
        self.loop_nest, self.outputs, self.accumulators, self.local = (
            loop_nest,
            outputs,
            accumulators,
            local,
        )
        self.keepalive: list[Any] = []
        self.accumulator_count = sum(s.value_count for s in accumulators)
        self.accumulator_stride = -(-loop_nest.tile_size // 16) * 16 + 16
        self.slots = allocate_floats(
            max(slots * self.accumulator_count, 1) * self.accumulator_stride
        )
        self.ref_args: list[MemoryRefArgs] = []
        self.tile_addresses: list[int] = []
        self.levels: dict[int, int] = {}
        self.ref_indices: dict[int, int] = {}
        self.tile_indices: dict[int, int] = {}
        roots = [e for e, _ in outputs] + [s.value for s in accumulators]
        for e in roots:
            self.compute_level(e)
        self.shift_tile_indices = {
            id(s): self._allocate_tile() for s in accumulators if s.has_squares
        }
        self.hoisted_exprs = {id(e): e for root in roots for e in self._find_hoisted(root)}
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
                tile=w.tile_size if self.accumulators or w.run > w.period else 1 << 40,
                slots=self.slots.ctypes.data,
                slot=self.accumulator_count * self.accumulator_stride * 4,
                sum=self.accumulator_stride * 4,
                run=w.run,
                local=self.local[0],
                local_size=self.local[1],
                local_pitch=self.local[2],
                repeat=w.repeat,
                places=table.add(*self.ref_args) if self.ref_args else 0,
                tiles=table.add_i64s(self.tile_addresses),
            )
        )

    def signature(self) -> Hashable:
        """All that the text of this kernel's functions depends on: what differs otherwise stands
        in the arguments, which from now on have all places."""
        builder = _SignatureBuilder(self)
        outputs = tuple((builder.add_expr(e), builder.add_ref(p)) for e, p in self.outputs)
        sums = tuple(
            (builder.add_expr(s.value), s.has_squares, s.is_flat, s.is_max)
            for s in self.accumulators
        )
        tiled = tuple(builder.expr_indices[key] for key in self.hoisted_exprs)
        for place in builder.refs.values():
            self.number_ref(place)
        return tuple(builder.entries), outputs, sums, tiled, self.loop_nest.run == 1

    # levels

    def compute_level(self, e: ElementExpr) -> int:
        if id(e) not in self.levels:
            found = max((self.compute_level(a) for a in e.args), default=SCALAR)
            if e.op == "dropout":
                found = FULL
            if e.ref is not None:
                found = self._compute_ref_level(e.ref)
            self.levels[id(e)] = found
            self.keepalive.append(e)
        return self.levels[id(e)]

    def _compute_ref_level(self, p: MemoryRef) -> int:
        if p.pad or p.is_local:
            return FULL
        outer, inner = self.loop_nest.strides[id(p)]
        if inner == 0:
            return FULL if any(outer) else SCALAR
        return VECTOR if inner == 1 and id(p) in self.loop_nest.periodic_refs else FULL

    def _find_hoisted(self, e: ElementExpr) -> list[ElementExpr]:
        """The largest vector expressions in a full one: they become tiles; vectors in memory only
        where they have to be repeated."""
        condition = e.op in ("greater", "equal")
        if self.levels[id(e)] == VECTOR and not condition:
            if e.ref is not None and e.ref.dtype == "bool":
                raise UnsupportedKernelError("conditions along channels")
            return [e] if e.op != "load" or self.loop_nest.repeat > 1 else []
        if self.levels[id(e)] == SCALAR:
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
                    **({} if p.pad is None else _padding_fields(p.pad)),
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
            self.entries.append((p.dtype, p.pad is None, p.fill, p.is_local, step))
        return self._ref_indices[id(p)]

    def add_expr(self, e: ElementExpr) -> int:
        if id(e) not in self.expr_indices:
            args = tuple(self.add_expr(a) for a in e.args)
            own = None if e.ref is None else self.add_ref(e.ref)
            attrs = tuple(sorted(e.attrs.items()))
            self.entries.append((e.op, attrs, args, own, self.spec.levels[id(e)]))
            self.expr_indices[id(e)] = len(self.expr_indices)
        return self.expr_indices[id(e)]


def _padding_fields(pad: tuple[IntTuple, IntTuple, IntTuple]) -> dict[str, int]:
    low, interior, sizes = pad
    ahead = 4 - len(low)
    lows, steps = (0,) * ahead + tuple(low), (1,) * ahead + tuple(i + 1 for i in interior)
    all_sizes = (1,) * ahead + tuple(sizes)
    found = {f"low{a}": lows[a] for a in range(3)}
    found |= {f"step{a}": steps[a] for a in range(3)}
    found |= {f"size{a}": all_sizes[a] for a in range(3)}
    return {**found, "run_low": lows[3], "run_size": all_sizes[3]}

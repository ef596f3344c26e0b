"""What a kernel over rows needs beside its text: levels, tiles and the table of arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.backends.cpu.domain import Walk
from netdsl.backends.cpu.emit import F32, I8, I32
from netdsl.backends.cpu.expression import Expr, Place, Unsupported
from netdsl.backends.cpu.room import floats
from netdsl.plan.layout import Ints

KINDS = {"float32": F32, "uint8": I8, "bool": I8, "int32": I32}
BYTES = {"float32": 4, "uint8": 1, "bool": 1, "int32": 4}
SCALAR, VECTOR, FULL = range(3)


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum over the domain; with `squares`, also that of the squares of what differs from the
    first row (`shift`), or where sums are `flat` from the first element."""

    value: Expr
    squares: bool = False
    flat: bool = False


class _Table:
    """Numbers of the arguments' table, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def add(self, value: int) -> int:
        self.values.append(int(value))
        return len(self.values) - 1


class Outline:
    """The expressions of a kernel with their levels, its tiles, and the table of its arguments."""

    def __init__(
        self,
        walk: Walk,
        outputs: Sequence[tuple[Expr, Place]],
        sums: Sequence[Sum],
        slots: int,
        local: Ints,
    ) -> None:
        self.walk, self.outputs, self.sums = walk, outputs, sums
        self.table = _Table()
        self.kept: list[Any] = []
        w = walk
        count = sum(1 + s.squares for s in sums)
        stride = -(-w.tile // 16) * 16 + 16
        self.slots = floats(max(slots * count, 1) * stride)
        self.count, self.stride = count, stride
        self.head = [
            self.table.add(v)
            for v in (
                w.outer[1],
                w.outer[2],
                w.period,
                w.tile if sums or w.run > w.period else 1 << 40,
                self.slots.ctypes.data,
                count * stride * 4,
                stride * 4,
                w.run,
                local[0],
                local[1],
                w.repeat,
                local[2],
            )
        ]
        self.level_of: dict[int, int] = {}
        self.spots: dict[int, tuple[int, ...]] = {}
        self.tiles: dict[int, int] = {}
        roots = [e for e, _ in outputs] + [s.value for s in sums]
        for e in roots:
            self.level(e)
        self.shifts = {id(s): self._tile() for s in sums if s.squares}
        self.tiled = {id(e): e for root in roots for e in self._hoisted(root)}
        for key in self.tiled:
            self.tiles[key] = self._tile()

    def signature(self) -> Hashable:
        """All that the text of this kernel's functions depends on: what differs otherwise stands
        in the table, which from now on has all places."""
        found = _Numbering(self)
        outputs = tuple((found.number(e), found.place(p)) for e, p in self.outputs)
        sums = tuple((found.number(s.value), s.squares, s.flat) for s in self.sums)
        tiled = tuple(found.numbers[key] for key in self.tiled)
        for place in found.places.values():
            self.spot(place)
        return tuple(found.lines), outputs, sums, tiled, self.walk.run == 1

    # levels

    def level(self, e: Expr) -> int:
        if id(e) not in self.level_of:
            found = max((self.level(a) for a in e.args), default=SCALAR)
            if e.op == "dropout":
                found = FULL
            if e.place is not None:
                found = self._place_level(e.place)
            self.level_of[id(e)] = found
            self.kept.append(e)
        return self.level_of[id(e)]

    def _place_level(self, p: Place) -> int:
        if p.pad or p.local:
            return FULL
        outer, inner = self.walk.strides[id(p)]
        if inner == 0:
            return FULL if any(outer) else SCALAR
        return VECTOR if inner == 1 and id(p) in self.walk.vectors else FULL

    def _hoisted(self, e: Expr) -> list[Expr]:
        """The largest vector expressions in a full one: they become tiles; vectors in memory only
        where they have to be repeated."""
        condition = e.op in ("greater", "equal")
        if self.level_of[id(e)] == VECTOR and not condition:
            if e.place is not None and e.place.dtype == "bool":
                raise Unsupported("conditions along channels")
            return [e] if e.op != "load" or self.walk.repeat > 1 else []
        if self.level_of[id(e)] == SCALAR:
            return []
        return [found for a in e.args for found in self._hoisted(a)]

    def _tile(self) -> int:
        memory = floats(self.walk.tile)
        self.kept.append(memory)
        return self.table.add(memory.ctypes.data)

    def spot(self, p: Place) -> tuple[int, ...]:
        """Where the arguments' table tells of a place: address, outer strides, inner stride, and
        of padding low, interior and size along the outer axes and low and size along the run."""
        if id(p) not in self.spots:
            size = BYTES[p.dtype]
            outer, inner = self.walk.strides[id(p)]
            numbers = [p.address, *(s * size for s in outer), inner * size]
            if p.pad is not None:
                numbers += _padding(p.pad)
            self.spots[id(p)] = tuple(self.table.add(n) for n in numbers)
        return self.spots[id(p)]


class _Numbering:
    """Expressions and places by number, with what a text depends on of each: the same object has
    the same number, since it is computed once."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.lines: list[Hashable] = []
        self.numbers: dict[int, int] = {}
        self.places: dict[int, Place] = {}
        self._placed: dict[int, int] = {}

    def place(self, p: Place) -> int:
        if id(p) not in self.places:
            self._placed[id(p)] = len(self.places)
            self.places[id(p)] = p
            inner = self.outline.walk.strides[id(p)][1]
            step = inner if inner in (0, 1) else None
            self.lines.append((p.dtype, p.pad is None, p.fill, p.local, step))
        return self._placed[id(p)]

    def number(self, e: Expr) -> int:
        if id(e) not in self.numbers:
            args = tuple(self.number(a) for a in e.args)
            own = None if e.place is None else self.place(e.place)
            attrs = tuple(sorted(e.attrs.items()))
            self.lines.append((e.op, attrs, args, own, self.outline.level_of[id(e)]))
            self.numbers[id(e)] = len(self.numbers)
        return self.numbers[id(e)]


def _padding(pad: tuple[Any, Any, Any]) -> list[int]:
    low, interior, sizes = pad
    rank = len(low)
    ahead = 4 - rank
    lows, steps = (0,) * ahead + tuple(low), (1,) * ahead + tuple(i + 1 for i in interior)
    all_sizes = (1,) * ahead + tuple(sizes)
    return [*lows[:3], *steps[:3], *all_sizes[:3], lows[3], all_sizes[3]]

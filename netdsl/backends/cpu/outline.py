"""What a kernel over rows needs beside its text: levels, tiles and arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.backends.cpu.domain import Walk
from netdsl.backends.cpu.emit import F32, I8, I32
from netdsl.backends.cpu.expression import Expr, Place, Unsupported
from netdsl.backends.cpu.record import Record, Table
from netdsl.backends.cpu.room import floats
from netdsl.plan.layout import IntTuple

KINDS = {"float32": F32, "uint8": I8, "bool": I8, "int32": I32}
BYTES = {"float32": 4, "uint8": 1, "bool": 1, "int32": 4}
SCALAR, VECTOR, FULL = range(3)


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum over the domain, or its `largest` value; with `squares`, also the sum of the squares of
    what differs from the first row (`shift`), or where sums are `flat` from the first element."""

    value: Expr
    squares: bool = False
    flat: bool = False
    largest: bool = False

    @property
    def count(self) -> int:
        """How many numbers are gathered."""
        return 1 + self.squares


class RowsArgs(Record):
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


class PlaceArgs(Record):
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


class Outline:
    """The expressions of a kernel with their levels, its tiles, and its arguments."""

    def __init__(
        self,
        walk: Walk,
        outputs: Sequence[tuple[Expr, Place]],
        sums: Sequence[Sum],
        slots: int,
        local: IntTuple,
    ) -> None:
        self.walk, self.outputs, self.sums, self.local = walk, outputs, sums, local
        self.kept: list[Any] = []
        self.count = sum(s.count for s in sums)
        self.stride = -(-walk.tile // 16) * 16 + 16
        self.slots = floats(max(slots * self.count, 1) * self.stride)
        self.places: list[PlaceArgs] = []
        self.tile_addresses: list[int] = []
        self.level_of: dict[int, int] = {}
        self.spots: dict[int, int] = {}
        self.tiles: dict[int, int] = {}
        roots = [e for e, _ in outputs] + [s.value for s in sums]
        for e in roots:
            self.level(e)
        self.shifts = {id(s): self._tile() for s in sums if s.squares}
        self.tiled = {id(e): e for root in roots for e in self._hoisted(root)}
        for key in self.tiled:
            self.tiles[key] = self._tile()

    def args(self, kept: list[Any]) -> int:
        """The address of the arguments, once `signature` has numbered all places."""
        w, table = self.walk, Table(kept)
        return table.add(
            RowsArgs(
                outer1=w.outer[1],
                outer2=w.outer[2],
                period=w.period,
                tile=w.tile if self.sums or w.run > w.period else 1 << 40,
                slots=self.slots.ctypes.data,
                slot=self.count * self.stride * 4,
                sum=self.stride * 4,
                run=w.run,
                local=self.local[0],
                local_size=self.local[1],
                local_pitch=self.local[2],
                repeat=w.repeat,
                places=table.add(*self.places) if self.places else 0,
                tiles=table.longs(self.tile_addresses),
            )
        )

    def signature(self) -> Hashable:
        """All that the text of this kernel's functions depends on: what differs otherwise stands
        in the arguments, which from now on have all places."""
        found = _Numbering(self)
        outputs = tuple((found.number(e), found.place(p)) for e, p in self.outputs)
        sums = tuple((found.number(s.value), s.squares, s.flat, s.largest) for s in self.sums)
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
        """The number of a new tile."""
        memory = floats(self.walk.tile)
        self.kept.append(memory)
        self.tile_addresses.append(int(memory.ctypes.data))
        return len(self.tile_addresses) - 1

    def spot(self, p: Place) -> int:
        """The number of a place among the arguments."""
        if id(p) not in self.spots:
            size = BYTES[p.dtype]
            (o0, o1, o2), inner = self.walk.strides[id(p)]
            self.spots[id(p)] = len(self.places)
            self.places.append(
                PlaceArgs(
                    address=p.address,
                    outer0=o0 * size,
                    outer1=o1 * size,
                    outer2=o2 * size,
                    inner=inner * size,
                    **({} if p.pad is None else _padding(p.pad)),
                )
            )
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


def _padding(pad: tuple[IntTuple, IntTuple, IntTuple]) -> dict[str, int]:
    low, interior, sizes = pad
    ahead = 4 - len(low)
    lows, steps = (0,) * ahead + tuple(low), (1,) * ahead + tuple(i + 1 for i in interior)
    all_sizes = (1,) * ahead + tuple(sizes)
    found = {f"low{a}": lows[a] for a in range(3)}
    found |= {f"step{a}": steps[a] for a in range(3)}
    found |= {f"size{a}": all_sizes[a] for a in range(3)}
    return {**found, "run_low": lows[3], "run_size": all_sizes[3]}

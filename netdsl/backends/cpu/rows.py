"""The function that computes rows of a kernel's domain, compiled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from netdsl.backends.cpu.domain import Walk
from netdsl.backends.cpu.expression import Expr, Place
from netdsl.backends.cpu.outline import Outline, Sum
from netdsl.backends.cpu.target import written
from netdsl.backends.cpu.writer import PrepareFunction, RowsFunction
from netdsl.plan.layout import IntTuple
from netdsl.types import Array


@dataclass
class Rows:
    """A compiled kernel over rows: `function(args, row0, row1, first, last, slot)`.

    `prepare` fills the tiles and must run before; `slots` are where sums are gathered, `sums`
    tiles each; a task whose slot is given as ~slot clears it first.
    """

    function: int
    args: int
    prepare: int
    slots: Array
    sums: int
    stride: int
    shifts: dict[int, int]
    kept: list[Any] = field(default_factory=list)


_known: dict[Hashable, tuple[int, int]] = {}


def _functions(o: Outline) -> tuple[int, int]:
    """The functions of an outline (rows, and what prepares them or 0), written once for all that
    differ in numbers alone."""
    signature = o.signature()
    if signature not in _known:
        function = written("rows", signature, lambda: RowsFunction(o).text())
        tiled = o.tiled or o.shifts
        prepare = written("prepare", signature, lambda: PrepareFunction(o).text()) if tiled else 0
        _known[signature] = (function, prepare)
    return _known[signature]


def build(
    walk: Walk,
    outputs: Sequence[tuple[Expr, Place]],
    sums: Sequence[Sum],
    slots: int,
    local: IntTuple = (0, 0, 0),
) -> Rows:
    """Compiles a kernel. `local` is where tiles of the producer lie, the bytes of each and the
    elements from row to row in it; they begin with the first column that is asked for."""
    o = Outline(walk, outputs, sums, slots, local)
    function, prepare = _functions(o)
    kept = [*o.kept, o.sums, o.outputs]
    return Rows(
        function=function,
        args=o.args(kept),
        prepare=prepare,
        slots=o.slots,
        sums=o.count,
        stride=o.stride,
        shifts={key: o.tile_addresses[i] for key, i in o.shifts.items()},
        kept=kept,
    )

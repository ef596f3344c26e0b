"""The function that computes rows of a kernel's domain, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdsl.backends.cpu.domain import Walk
from netdsl.backends.cpu.expression import Expr, Place
from netdsl.backends.cpu.outline import Outline, Sum
from netdsl.backends.cpu.target import compiled
from netdsl.backends.cpu.writer import PrepareFunction, RowsFunction
from netdsl.types import Array


@dataclass
class Rows:
    """A compiled kernel over rows: `function(args, row0, row1, first, last, slot)`.

    `prepare` fills the tiles and must run before; `slots` are where sums are gathered, `sums`
    tiles each; a task whose slot is given as ~slot clears it first.
    """

    function: int
    args: Array
    prepare: int
    slots: Array
    sums: int
    stride: int
    shifts: dict[int, int]
    kept: list[Any] = field(default_factory=list)


def build(
    walk: Walk,
    outputs: Sequence[tuple[Expr, Place]],
    sums: Sequence[Sum],
    slots: int,
    local: tuple[int, int] = (0, 0),
) -> Rows:
    """Compiles a kernel. `local` is where tiles of the producer lie and the bytes of each."""
    o = Outline(walk, outputs, sums, slots, local)
    rows = RowsFunction(o).text()
    tiled = o.tiled or o.shifts
    prepare = PrepareFunction(o).text() if tiled else None
    args = np.array(o.table.values, np.int64)
    return Rows(
        compiled("rows", rows),
        args,
        compiled("prepare", prepare) if prepare else 0,
        o.slots,
        o.count,
        o.stride,
        {key: int(args[i]) for key, i in o.shifts.items()},
        [*o.kept, o.sums, o.outputs],
    )

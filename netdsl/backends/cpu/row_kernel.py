"""The function that computes rows of a kernel's domain, compiled."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from netdsl.backends.cpu.llvm_jit import compile_cached
from netdsl.backends.cpu.loop_nest import LoopNest
from netdsl.backends.cpu.row_kernel_emitter import PrepareEmitter, RowsEmitter
from netdsl.backends.cpu.row_kernel_spec import RowKernelBody, RowKernelSpec
from netdsl.plan.layout import IntTuple
from netdsl.types import Array


@dataclass
class RowKernel:
    """A compiled kernel over rows: `function(args, row0, row1, first, last, slot)`.

    `prepare` fills the tiles and must run before; `slots` are where sums are gathered,
    `accumulator_count` tiles each; a task whose slot is given as ~slot clears it first."""

    function: int
    args: int
    prepare: int
    slots: Array
    accumulator_count: int
    accumulator_stride: int
    shift_addresses: dict[int, int]
    keepalive: list[Any] = field(default_factory=list)


_compiled_functions: dict[Hashable, tuple[int, int]] = {}


def _compile_functions(spec: RowKernelSpec) -> tuple[int, int]:
    """The functions of an outline (rows, and what prepares them or 0), written once for all that
    differ in numbers alone."""
    signature = spec.signature()
    if signature not in _compiled_functions:
        function = compile_cached("rows", signature, lambda: RowsEmitter(spec).text())
        has_prepare = spec.hoisted_exprs or spec.shift_tile_indices
        prepare = (
            compile_cached("prepare", signature, lambda: PrepareEmitter(spec).text())
            if has_prepare
            else 0
        )
        _compiled_functions[signature] = (function, prepare)
    return _compiled_functions[signature]


def compile_row_kernel(
    loop_nest: LoopNest,
    body: RowKernelBody,
    slots: int,
    local: IntTuple = (0, 0, 0),
) -> RowKernel:
    """Compiles a kernel. `local` is where tiles of the producer lie, the bytes of each and the
    elements from row to row in it; they begin with the first column that is asked for."""
    spec = RowKernelSpec(loop_nest, body, slots, local)
    function, prepare = _compile_functions(spec)
    keepalive = [*spec.keepalive, body]
    return RowKernel(
        function=function,
        args=spec.pack_args(keepalive),
        prepare=prepare,
        slots=spec.slots,
        accumulator_count=body.accumulator_count,
        accumulator_stride=spec.accumulator_stride,
        shift_addresses={key: spec.tile_addresses[i] for key, i in spec.shift_tile_indices.items()},
        keepalive=keepalive,
    )

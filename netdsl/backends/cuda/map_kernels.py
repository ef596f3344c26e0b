"""Map kernels: elementwise nodes over one domain, and reductions over it."""

from __future__ import annotations

import math
from dataclasses import replace

from netdsl.backends.cuda.cuda_launch import (
    SCRATCH,
    SCRATCH_BYTES,
    Address,
    CudaLaunch,
    DeviceFunction,
)
from netdsl.backends.cuda.geometry import (
    BLOCKS_PER_MULTIPROCESSOR,
    REDUCTION_BLOCKS_PER_MULTIPROCESSOR,
    Geometry,
    block_shape,
    choose_geometry,
)
from netdsl.backends.cuda.map_codegen import MapCodegen, device_function_source
from netdsl.backends.cuda.reduction_codegen import Accumulators, build_second_stage, finish_in_block
from netdsl.lower.expression import Load
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.levels import Level
from netdsl.lower.trace import TracedKernel

_MAX_GRID_ROWS = 65535
"""The limit of CUDA for the second dimension of a grid."""
_MAX_REGISTER_VALUES = 192
"""Values that a thread may hold in its 255 registers."""
_MAX_SINGLE_BLOCK_ROUNDS = 4
"""A block that reduces a result in so many iterations does so alone: that takes no longer than a
second launch."""


def map_launches(traced: TracedKernel, multiprocessors: int) -> tuple[CudaLaunch, ...]:
    """Returns the launches of a traced kernel: one, or two if several blocks share a reduction."""
    named_stages = zip(("run", "finish"), build_stages(traced, multiprocessors), strict=False)
    return tuple(_launch_stage(name, stage) for name, stage in named_stages)


def _launch_stage(name: str, stage: DeviceFunction) -> CudaLaunch:
    names = [f"w{i}" for i in range(len(stage.arguments))]
    parameters = ", ".join(f"i64 {n}" for n in names)
    (columns, rows), block = stage.grid, "(int)blockIdx.x"
    block_position = block, "(int)blockIdx.y", "(int)gridDim.x"
    if rows > _MAX_GRID_ROWS:
        block_position = f"{block} % {columns}", f"{block} / {columns}", f"{columns}"
    call_arguments = ", ".join([*names, *block_position])
    text = f'{stage.source}extern "C" __global__ void {name}({parameters}) {{ body({call_arguments}); }}\n'
    grid = (columns * rows, 1) if rows > _MAX_GRID_ROWS else stage.grid
    return CudaLaunch(text, name, grid, stage.threads, stage.arguments)


def build_stages(
    traced: TracedKernel, multiprocessors: int, scratch_offset: int = 0, threads: int | None = None
) -> tuple[DeviceFunction, ...]:
    """Returns the stages of a kernel. Its partial results start at byte `scratch_offset` of the
    scratch buffer. A block has `threads` threads if given, else no more than it has work for."""
    codegen = _limit_registers(MapCodegen(traced, choose_geometry(traced)))
    first_stage = _build_first_stage(codegen, multiprocessors, scratch_offset, threads)
    if not traced.reductions or first_stage.chunks == 1:
        return (first_stage,)
    return (
        first_stage,
        build_second_stage(traced, codegen.g, first_stage.chunks, scratch_offset, threads),
    )


def _limit_registers(codegen: MapCodegen) -> MapCodegen:
    """Narrows the vectors until a thread's accumulators and hoisted values fit into registers."""
    traced, g = codegen.traced, codegen.g
    value_count, width = codegen.count_hoisted() + Accumulators(traced, g).count, g.width
    while width > 1 and width * value_count > _MAX_REGISTER_VALUES and not g.digits.group_size:
        width //= 2
    return codegen if width == g.width else MapCodegen(traced, replace(g, width=width))


def _build_first_stage(
    codegen: MapCodegen, multiprocessors: int, scratch_offset: int, threads: int | None
) -> DeviceFunction:
    """Returns the stage that runs over the domain."""
    traced, g = codegen.traced, codegen.g
    accumulators = Accumulators(traced, g)
    across, down = block_shape(g)
    down = max(1, threads // across) if threads else down
    slices = -(-g.lanes // across)
    unroll = _unroll_factor(codegen)
    chunks = _chunk_count(g, slices, down, unroll, multiprocessors, accumulators)
    head = [codegen.add_argument(v) for v in (across, down, g.lanes, g.rows_per_result, chunks)]
    partial_results = (
        codegen.add_argument(Address(SCRATCH, scratch_offset)) if traced.reductions else "0"
    )
    lines = _kernel_lines(codegen, accumulators, head, unroll) + accumulators.combine(
        partial_results, across
    )
    if traced.reductions and chunks == 1:
        lines += finish_in_block(traced, g, accumulators, codegen.add_argument)
    macros = f"#define V {g.width}\n#define U {unroll}\n"
    source = device_function_source(lines, len(codegen.arguments), macros)
    grid = (g.outer_size * chunks, slices)
    scratch_bytes = 8 * accumulators.count * accumulators.result_columns * g.outer_size * chunks
    return DeviceFunction(
        source, grid, across * down, tuple(codegen.arguments), chunks, scratch_bytes
    )


def _unroll_factor(codegen: MapCodegen) -> int:
    """Returns how many rows a thread loads at once: more if few tensors are read."""
    tensors = sum(
        1 for e in codegen.expressions if isinstance(e, Load) and codegen.levels[id(e)] == Level.ROW
    )
    return 4 if tensors <= 2 else 2


def _chunk_count(
    g: Geometry,
    slices: int,
    down: int,
    unroll: int,
    multiprocessors: int,
    accumulators: Accumulators,
) -> int:
    """Returns how many blocks share the rows of one result: enough to fill the GPU."""
    needed = -(-g.rows_per_result // (down * unroll))
    blocks_per_multiprocessor = (
        REDUCTION_BLOCKS_PER_MULTIPROCESSOR if accumulators.count else BLOCKS_PER_MULTIPROCESSOR
    )
    max_chunks = max(
        1, multiprocessors * blocks_per_multiprocessor // max(1, slices * g.outer_size)
    )
    if accumulators.count:
        bytes_per_chunk = g.outer_size * accumulators.count * accumulators.result_columns * 8
        max_scratch_chunks = SCRATCH_BYTES // bytes_per_chunk
        if max_scratch_chunks == 0:
            raise UnsupportedKernelError("too many results for the scratch buffer")
        max_chunks = min(max_chunks, max_scratch_chunks) if needed > _MAX_SINGLE_BLOCK_ROUNDS else 1
    elif g.row_extents:
        max_chunks = max(max_chunks, math.ceil(needed / 16))
    return max(1, min(needed, max_chunks))


def _kernel_lines(
    codegen: MapCodegen, accumulators: Accumulators, head: list[str], unroll: int
) -> list[str]:
    across, down, lanes, rows, chunks = head
    declared, assigned, stored = codegen.store(codegen.traced.stores)
    hoisted = codegen.hoist()
    raw, loads = codegen.load_raw(codegen.expressions)
    decode = codegen.decode_digits()
    row = "const i64 row = base + u * step;"
    return [
        f"const int t = threadIdx.x, across = (int){across}, down = (int){down};",
        f"const int lanes = (int){lanes}, lane = by * across + t % across, r0 = t / across;",
        f"const i64 c = (i64)lane * V, rows = {rows}, chunks = {chunks};",
        "const i64 outer = bx / chunks, begin = outer * rows, end = begin + rows;",
        "const i64 step = chunks * down; (void)c; (void)nbx; (void)r0;",
        *accumulators.declare(),
        "if (lane < lanes) {",
        *hoisted,
        *accumulators.compute_shifts(codegen, raw, loads, decode),
        "for (i64 base = begin + (bx % chunks) * down + r0; base < end; base += step * U) {",
        *raw,
        f"UNROLL for (int u = 0; u < U; u++) {{ {row} if (row < end) {{",
        *decode,
        *loads,
        "} }",
        f"UNROLL for (int u = 0; u < U; u++) {{ {row} if (row < end) {{",
        *decode,
        *codegen.unpack_loads(codegen.expressions),
        *declared,
        "UNROLL for (int j = 0; j < V; j++) {",
        *codegen.compute(codegen.expressions),
        *assigned,
        *accumulators.accumulate(codegen),
        "}",
        *stored,
        "} } } }",
    ]

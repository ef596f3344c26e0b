"""Batches many small kernels into few launches: parts with the same source share one."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.backends.cuda.cuda_launch import (
    SCRATCH_BYTES,
    THREADS_PER_BLOCK,
    CudaLaunch,
    DeviceFunction,
    KernelArgument,
)
from netdsl.backends.cuda.map_kernels import build_stages
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.trace import TracedKernel


def batch_launches(parts: Sequence[TracedKernel], multiprocessors: int) -> tuple[CudaLaunch, ...]:
    """Returns one launch for all parts with the same source; second stages follow all first ones.

    A launch has two tables: the arguments, grid columns and threads of each part, and for each
    block, the part that it belongs to and its index in that.
    """
    stages: tuple[dict[str, list[DeviceFunction]], ...] = ({}, {})
    scratch = 0
    for traced in parts:
        # a block with barriers needs the same number of threads in every part
        threads = THREADS_PER_BLOCK if traced.reductions else None
        stage_functions = build_stages(traced, multiprocessors, scratch, threads)
        scratch += stage_functions[0].scratch_bytes
        for functions, function in zip(stages, stage_functions, strict=False):
            functions.setdefault(function.source, []).append(function)
    if scratch > SCRATCH_BYTES:
        raise UnsupportedKernelError("too many partial results for the scratch buffer")
    return tuple(
        _make_batched_launch(source, group)
        for functions in stages
        for source, group in functions.items()
    )


def _make_batched_launch(source: str, group: Sequence[DeviceFunction]) -> CudaLaunch:
    count = len(group[0].arguments)
    table_stride = count + 2
    call_arguments = ", ".join([*(f"p[{i}]" for i in range(count)), "at % nbx", "at / nbx", "nbx"])
    text = (
        f'{source}extern "C" __global__ void many(const i64* table, const i64* blocks) {{\n'
        f"  const i64* p = table + blocks[2 * blockIdx.x] * {table_stride};\n"
        f"  const int at = (int)blocks[2 * blockIdx.x + 1], nbx = (int)p[{count}];\n"
        f"  if (threadIdx.x < p[{count + 1}]) body({call_arguments});\n}}\n"
    )
    table: list[KernelArgument] = []
    blocks: list[KernelArgument] = []
    for i, function in enumerate(group):
        table += [*function.arguments, function.grid[0], function.threads]
        for block in range(function.grid[0] * function.grid[1]):
            blocks += [i, block]
    threads = max(m.threads for m in group)
    return CudaLaunch(
        text, "many", (len(blocks) // 2, 1), threads, (), (tuple(table), tuple(blocks))
    )

"""Convolutions by minimal filtering, cut into tasks: fewer products, and sums around them.

A kernel of 3x3 needs a quarter of the products, one of 5x5 a third. What is left is as many matrix
products as there are points, for blocks of tiles that stay near: see winograd_transforms.py and
winograd_loops.py."""

from __future__ import annotations

import math

from netdsl.backends.cpu.aligned_allocator import allocate_floats, get_scratch
from netdsl.backends.cpu.anchor_epilogue import combine_tasks
from netdsl.backends.cpu.blocking import Blocking, list_blockings
from netdsl.backends.cpu.kernel_problem import KernelProblem
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks
from netdsl.backends.cpu.micro_kernel import TileTap, compile_micro_kernel, count_prefetch_lines
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.task_program import Task, partition_tasks, split_range, thread_count
from netdsl.backends.cpu.winograd_loops import (
    StripArgs,
    ThreadWorkspace,
    TilePair,
    TransformSourceArgs,
    WinogradArgs,
    winograd_conv,
)
from netdsl.backends.cpu.winograd_transforms import (
    TILE_POINTS,
    TILE_SIZE,
    ResultTransformArgs,
    TransformArgs,
    WeightBlock,
    WeightTransformArgs,
    WinogradColumn,
    compile_image_transform,
    compile_result_transform,
    compile_weight_transform,
    padded_transform_bytes,
)
from netdsl.plan.layout import IntTuple
from netdsl.types import Node

_TILES = 64
"""Tiles of a block at most: weights come seldom for many, and the values of few stay near."""
_BLOCK_OVERHEAD_TILES = 4
"""What a block costs beside its tiles, as so many of them."""
_FEW = 64
"""Tiles so few that weights come to their points just before they are used: what a quarter of the
products saves is lost where four times the weights go to memory and come back."""
_DEPTH = 64
"""Depth of a chunk of such weights."""
_NEAR = 512 * 1024
"""Bytes of a block's results that other nodes take once all columns are there."""
_COLUMNS = 128
"""Columns at least of a task: the values of its tiles are computed for them."""
_MIN_TASK_WEIGHTS = 4096
"""Weights that are worth a task."""
_MIN_SPEEDUP = 1 / 0.85
"""How much faster than a direct convolution it must be, by estimate, to be taken."""
_GEMM_OVERHEAD = 1.1
"""What products here take of the cycles of their multiplications."""
_TRANSFORM_CYCLES, _WEIGHT_CYCLES = 170, 24
"""Cycles for a vector of channels of a tile, there and back each, and for a weight."""
_COMPILE_CYCLES = 1_000_000
"""Cycles a step that are worth a second or two for more functions to compile, once."""


def explain_winograd(node: Node, kernel: IntTuple) -> str | None:
    """Why a convolution, or a gradient of one, with such a kernel cannot be computed this way, or
    None."""
    a, (r, s) = node.attrs, kernel
    if r != s or r not in (3, 5):
        return "the kernel is neither 3x3 nor 5x5"
    plain = a["stride"] == a["dilation"] == (1, 1) and a["groups"] == 1
    return None if plain else "a stride, dilation or groups"


def estimate_winograd_cycles(
    kernel_size: int, size: IntTuple, channels: IntTuple, extra_cycles: int = 0
) -> float:
    """What it costs, about, with the gain it must have: from the side of a square kernel; images,
    rows and pixels of results; channels before and behind it; and `extra_cycles`."""
    (n, height, wide), lanes = size, vector_width()
    m = TILE_SIZE + 1 - kernel_size
    tiles = n * -(-height // m) * -(-wide // m)
    weights, vectors = math.prod(channels), sum(-(-c // lanes) for c in channels)
    cycles_per_tile = (
        TILE_POINTS * weights / (2 * lanes) * _GEMM_OVERHEAD + _TRANSFORM_CYCLES * vectors
    )
    cycles = tiles * cycles_per_tile + _WEIGHT_CYCLES * weights + _COMPILE_CYCLES + extra_cycles
    return cycles * _MIN_SPEEDUP


class WinogradConv:
    """The tasks of such a convolution and what happens to its results."""

    def __init__(self, problem: KernelProblem) -> None:
        memory, node = problem.memory, problem.node
        self.gemm, self.domain = problem.gemm
        gemm, domain = self.gemm, self.domain
        self.workers = memory.count_workers(problem.kernel)
        self.kernel_tasks = KernelTasks(is_winograd=True)
        self.table = RecordTable(self.kernel_tasks.keepalive)
        self.r = memory.operand(node.args[1]).layout.shape[1]
        self.m = TILE_SIZE + 1 - self.r
        self.depth, self.is_weight_frozen = gemm.weights.depth, memory.is_frozen(node.args[1])
        self.lines, self.tiles_per_line = -(-domain[1] // self.m), -(-domain[2] // self.m)
        self.total_lines = domain[0] * self.lines
        self.has_late_weights = (
            not self.is_weight_frozen and self.total_lines * self.tiles_per_line <= _FEW
        )
        self.tile_bytes = -(-self.depth // vector_width()) * vector_width() * 4
        self.blocking = self._choose_blocking()
        self.block = self._choose_block_lines()
        self.column_blocks = self.blocking.split_columns(domain[3])
        self.block_width = max(v for _, v, _ in self.column_blocks) * vector_width()
        self.chunks = -(-self.depth // _DEPTH) if self.has_late_weights else 1
        self.epilogue = problem.epilogue.unwrap()
        results = 4 * self.block * self.tiles_per_line * self.m**2 * domain[3]
        self.span = len(self.column_blocks) if results <= _NEAR else 1
        self.has_single_block = len(self.column_blocks) == 1
        self.pitch = domain[3] if self.span >= len(self.column_blocks) else self.block_width

    def _choose_block_lines(self) -> int:
        """Lines of a block: those that fill strips and keep all workers at work."""

        def estimate_time(lines: int) -> int:
            strips = -(-lines * self.tiles_per_line // self.blocking.max_pixels)
            return -(-self.total_lines // (lines * self.workers)) * (
                strips * self.blocking.max_pixels + _BLOCK_OVERHEAD_TILES
            )

        candidates = range(1, max(1, min(self.total_lines, _TILES // self.tiles_per_line)) + 1)
        return min(candidates, key=lambda lines: (estimate_time(lines), -lines))

    def _choose_blocking(self) -> Blocking:
        """The widest there are: values come from afar once for each column block."""
        wide = -(-self.domain[3] // vector_width())
        return next(b for b in list_blockings(self.tile_bytes) if b.vectors <= wide)

    def _partition(self) -> list[tuple[int, int, int, int]]:
        """Blocks and column blocks of each task."""
        block_count = len(self.column_blocks)
        blocks_per_task = 1 if self.has_late_weights else max(1, _COLUMNS // self.block_width)
        blocks_per_task = block_count if self.span > 1 else blocks_per_task
        parts = split_range(block_count, -(-block_count // blocks_per_task))
        found = partition_tasks(-(-self.total_lines // self.block), 1, len(parts), self.workers)
        return [(a, b, parts[c][0], parts[d - 1][1]) for a, b, c, d in found]

    def launch(self) -> KernelTasks:
        tasks = self._partition()
        size = self.epilogue.local_bytes(self.block * self.m, self.pitch)
        local = len(tasks) * size
        tiles = self.block * self.tiles_per_line
        values, products = (
            padded_transform_bytes(tiles * n) for n in (self.tile_bytes, 4 * self.block_width)
        )
        chunk = TILE_POINTS * -(-self.depth // self.chunks) * 4 * self.block_width
        workspace_bytes = values + products + (chunk + 256 if self.has_late_weights else 0)
        packed = (
            0
            if self.is_weight_frozen or self.has_late_weights
            else self._transformed_weight_bytes()
        )
        scratch_memory = get_scratch(local + thread_count() * workspace_bytes + packed)
        self.kernel_tasks.keepalive.append(scratch_memory)
        scratch_address = int(scratch_memory.ctypes.data)
        workspaces = make_thread_workspaces(self.table, scratch_address + local, workspace_bytes)
        weights = (
            0
            if self.has_late_weights
            else self._transform_weights(scratch_address + local + thread_count() * workspace_bytes)
        )
        out, (n, h, w) = self.epilogue.locate_output(self.pitch)
        pitch = 0 if self.span == len(self.column_blocks) else self.pitch
        follower = self.epilogue.make_row_epilogue(
            len(tasks), (scratch_address, size), pitch, self.has_single_block
        )
        last = self.total_lines % self.block or self.block
        whole, rest = (
            self.blocking.split_strips(lines * self.tiles_per_line) for lines in (self.block, last)
        )
        point, out_point = values // TILE_POINTS, products // TILE_POINTS
        columns = self._make_columns(weights, (whole, rest))
        line = 4 * self.block_width
        write = ResultTransformArgs(
            row=h,
            pixel=w,
            tile=line,
            point=out_point,
            across=self.tiles_per_line,
            wide=self.domain[2],
            columns=columns,
        )
        args = self.table.add(
            WinogradArgs(
                lines=self.lines,
                across=self.tiles_per_line,
                block=self.block,
                span=self.span,
                scale=self.m,
                height=self.domain[1],
                follower=self.table.add(follower),
                rooms=workspaces,
                every=self.total_lines,
                products=values,
                source=self._make_source(point),
                tile=self.tile_bytes,
                point=point,
                out=out,
                out_n=n,
                out_row=self.m * h,
                write_args=self.table.add(write),
                out_tile=line,
                columns=columns,
                out_point=out_point,
                points=TILE_POINTS,
                depth=self.depth,
                weight_k=line,
                taps=self.table.add(TileTap(a=0, b=0)),
                asked=64 * count_prefetch_lines(self.block_width // vector_width()),
                weight_at_points=self._weight_transform if self.has_late_weights else 0,
                weight_args=self._make_weight_args() if self.has_late_weights else 0,
                weights=values + products,
                chunks=self.chunks,
                chunk=chunk // TILE_POINTS,
                whole=make_strip_args(self.table, whole),
                rest=make_strip_args(self.table, rest),
            )
        )
        stage: list[Task] = [(winograd_conv.address, args, *t, i) for i, t in enumerate(tasks)]
        return combine_tasks(self.gemm.input_tasks, self.kernel_tasks, self.epilogue, stage)

    def _make_source(self, point: int) -> int:
        """The pixels that are read, from the first one on."""
        gemm_pass, reach = self.gemm.passes[0], self.r - 1
        sn, sh, sw = gemm_pass.image_strides
        return self.table.add(
            TransformSourceArgs(
                pixels=gemm_pass.image + min(t.offset for t in gemm_pass.taps),
                image=sn,
                row=self.m * sh,
                line=self.tiles_per_line * self.tile_bytes,
                function=compile_image_transform(self.r),
                args=self.table.add(
                    TransformArgs(
                        row=sh,
                        pixel=sw,
                        channels=self.tile_bytes,
                        tile=self.tile_bytes,
                        point=point,
                    )
                ),
                across=self.tiles_per_line,
                high=self.domain[1] + reach,
                scale=self.m,
                wide=self.domain[2] + reach,
            )
        )

    # weights

    def _point_weight_bytes(self) -> int:
        """Bytes of a column block's weights at a point."""
        return self.depth * self.block_width * 4

    def _transformed_weight_bytes(self) -> int:
        return len(self.column_blocks) * TILE_POINTS * self._point_weight_bytes() + 256

    def _transform_weights(self, address: int) -> int:
        """Where the weights begin at their points: in their own memory where they are settled."""
        if self.is_weight_frozen:
            packed = allocate_floats(self._transformed_weight_bytes() // 4)
            self.kernel_tasks.keepalive.append(packed)
            address = int(packed.ctypes.data)
        parts = max(1, min(self.depth, self.depth * self.block_width // _MIN_TASK_WEIGHTS))
        args, many = self._make_weight_args(parts), parts * len(self.column_blocks)
        function = self._weight_transform
        stage: list[Task] = [
            (function, args, *r, address) for r in split_range(many, 4 * thread_count())
        ]
        self.kernel_tasks.merge_parallel(
            KernelTasks(refresh_tasks=stage) if self.is_weight_frozen else KernelTasks([stage])
        )
        return address

    @property
    def _weight_transform(self) -> int:
        return compile_weight_transform(self.r, self.gemm.weights.column_stride == 4)

    def _make_weight_args(self, parts: int = 0) -> int:
        """What `weight_at_points` is given: all of a block lies together, or a chunk of it."""
        w, gemm_pass = self.gemm.weights, self.gemm.passes[0]
        taps = [p for t in sorted(gemm_pass.taps, key=lambda t: t.offset) for p in t.pieces]
        blocks = [
            WeightBlock(weights=w.address + at * w.column_stride, columns=count)
            for at, _, count in self.column_blocks
        ]
        chunk_depth = self.depth if parts else -(-self.depth // self.chunks)
        return self.table.add(
            WeightTransformArgs(
                block=TILE_POINTS * self._point_weight_bytes() if parts else 0,
                point=chunk_depth * 4 * self.block_width,
                column=w.column_stride,
                step=w.depth_stride,
                depth=self.depth,
                line=4 * self.block_width,
                parts=parts or self.chunks,
                alone=not parts,
                taps=self.table.add_i64s(taps),
                blocks=self.table.add(*blocks),
            )
        )

    def _make_columns(self, weights: int, strips: tuple[Strips, Strips]) -> int:
        lanes, found = vector_width(), []
        register_epilogue = self.epilogue.register_epilogue
        epilogue_expr = register_epilogue.expr if register_epilogue else None
        steps = (4, 4 * self.block_width)
        for i, (at, vectors, count) in enumerate(self.column_blocks):
            tiles = [
                TilePair(
                    long_tile=compile_micro_kernel(length, vectors, False, steps),
                    short_tile=compile_micro_kernel(length - 1, vectors, False, steps)
                    if shorter
                    else 0,
                )
                for _, length, shorter in strips
            ]
            found.append(
                WinogradColumn(
                    weight=weights + i * TILE_POINTS * self._point_weight_bytes(),
                    write=compile_result_transform(self.r, count < vectors * lanes, epilogue_expr),
                    out=4 * at,
                    columns=count,
                    tiles=self.table.add(*tiles),
                    reads=self.epilogue.pack_operand_addresses(self.table, at),
                )
            )
        return self.table.add(*found)


Strips = tuple[int, int, int]


def make_strip_args(table: RecordTable, strips: Strips) -> int:
    """Strips as loops read them."""
    longer, length, shorter = strips
    return table.add(StripArgs(long_strips=longer, length=length, short_strips=shorter))


def make_thread_workspaces(table: RecordTable, address: int, nbytes: int) -> int:
    """A room for each thread, with a lock on a cache line of its own."""
    locks = table.add_i64s([0] * (8 * thread_count()))
    workspaces = (
        ThreadWorkspace(lock=locks + 64 * i, address=address + i * nbytes)
        for i in range(thread_count())
    )
    return table.add(*workspaces)

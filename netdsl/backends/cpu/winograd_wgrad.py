"""Gradients of weights by minimal filtering: r x r sums over pixels from few products a tile.

What is true of a convolution is so of its weight's gradient, where tiles of m x m pixels of the
result's gradient slide over the image's: the points are the same, the products are added over all
tiles, and r x r sums come of them once. See winograd_transforms.py and winograd_loops.py.
"""

from __future__ import annotations

from netdsl.backends.cpu.aligned_allocator import get_scratch
from netdsl.backends.cpu.blocking import choose_blocking
from netdsl.backends.cpu.implicit_gemm import locate_padded_image
from netdsl.backends.cpu.kernel_problem import KernelProblem
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks
from netdsl.backends.cpu.micro_kernel import TileTap, compile_micro_kernel
from netdsl.backends.cpu.task_program import REDUCTION_WORKERS, Task, split_range, thread_count
from netdsl.backends.cpu.wgrad import WgradKernel
from netdsl.backends.cpu.winograd import (
    estimate_winograd_cycles,
    make_strip_args,
    make_thread_workspaces,
)
from netdsl.backends.cpu.winograd_loops import (
    ChannelGroup,
    TransformSourceArgs,
    WinogradWgradArgs,
    WinogradWgradColumn,
    winograd_wgrad_sums,
)
from netdsl.backends.cpu.winograd_transforms import (
    TILE_POINTS,
    TILE_SIZE,
    TransformArgs,
    WgradTransformArgs,
    compile_gradient_transform,
    compile_image_transform,
    compile_wgrad_transform,
    padded_transform_bytes,
)
from netdsl.plan.layout import IntTuple

_TILES = 64
"""Tiles of a block, about."""
_TURN, _ADD = 0.15, 0.5
"""What the gradient's values cost, which every task computes, beside a column block's products;
and what adding a part costs beside a block of tiles."""
_MAX_PARTIAL_BYTES = 64 << 20
"""Bytes of all parts of the sums together, about."""
_MAX_CACHED_WEIGHTS, _UNCACHED_WEIGHT_CYCLES = 1 << 17, 100
"""Sums for more weights than these go to memory, which takes cycles for each of them."""
_PARTS = 8
"""Parts at most."""


def estimate_winograd_wgrad_cycles(problem: KernelProblem) -> float:
    """As `estimate_winograd_cycles`, for the gradient of a weight."""
    k, r, _, c = problem.node.type.shape
    size = problem.memory.operand(problem.node.args[0]).layout.shape[:3]
    extra_cycles = _UNCACHED_WEIGHT_CYCLES * max(0, c * k - _MAX_CACHED_WEIGHTS)
    return estimate_winograd_cycles(r, size, (c, k), extra_cycles)


class WinogradWgrad(WgradKernel):
    """A weight's gradient cut into parts of the tiles, and groups of the image's channels."""

    def __init__(self, problem: KernelProblem) -> None:
        super().__init__(problem)
        self.gradient = self.memory.operand(self.node.args[0])
        self.k, self.r, _, self.c = self.node.type.shape
        n, self.height, self.image_width, _ = self.gradient.layout.shape
        self.m = TILE_SIZE + 1 - self.r
        self.lines, self.tiles_per_line = -(-self.height // self.m), -(-self.image_width // self.m)
        self.total_lines = n * self.lines
        self.block = min(self.total_lines, max(1, round(_TILES / self.tiles_per_line)))
        self.block_count = -(-self.total_lines // self.block)
        self.tile_bytes, self.gradient_tile_bytes = _odd_line_bytes(self.c), _odd_line_bytes(self.k)
        depth = self.block * self.tiles_per_line
        self.blocking = choose_blocking(self.k, self.c, depth, 4)
        self.column_blocks = self.blocking.split_columns(self.c)
        last, vectors, _ = self.column_blocks[-1]
        self.line_bytes = 4 * (last + vectors * vector_width())
        self.part_count, groups = self._choose_split()
        self.column_groups = split_range(len(self.column_blocks), groups)

    def _choose_split(self) -> tuple[int, int]:
        """How many sums of some tiles are added at last, whatever the threads, and groups of column
        blocks: those that keep all threads at work."""
        block_count, size = len(self.column_blocks), TILE_POINTS * self.k * self.line_bytes

        def estimate_time(split: tuple[int, int], workers: int) -> float:
            parts, groups = split
            tasks = -(-parts * groups // workers)
            each = -(-self.block_count // parts) * (-(-block_count // groups) + _TURN)
            return tasks * each + parts * block_count * _ADD / workers

        max_parts = max(1, min(_PARTS, self.block_count, _MAX_PARTIAL_BYTES // size))
        splits = [(p, g) for p in range(1, max_parts + 1) for g in range(1, block_count + 1)]
        parts, _ = min(splits, key=lambda split: estimate_time(split, REDUCTION_WORKERS))
        return min(
            (w for w in splits if w[0] == parts),
            key=lambda split: estimate_time(split, thread_count()),
        )

    def launch(self) -> KernelTasks:
        target, size = self._locate_output(), TILE_POINTS * self.k * self.line_bytes
        values = padded_transform_bytes(self.block * self.tiles_per_line * self.tile_bytes)
        workspace_bytes = values + padded_transform_bytes(
            self.block * self.tiles_per_line * self.gradient_tile_bytes
        )
        scratch_memory = get_scratch(self.part_count * size + thread_count() * workspace_bytes)
        self.kernel_tasks.keepalive.append(scratch_memory)
        self.kernel_tasks.is_winograd = True
        partial_sums = int(scratch_memory.ctypes.data)
        workspaces = make_thread_workspaces(
            self.table, partial_sums + self.part_count * size, workspace_bytes
        )
        args = self._make_args(partial_sums, size, workspaces, values)
        stage: list[Task] = [
            (winograd_wgrad_sums.address, args, *r, part, group)
            for part, r in enumerate(split_range(self.block_count, self.part_count))
            for group in range(len(self.column_groups))
        ]
        self.kernel_tasks.stages.append(stage)
        tap = 4 * self.c
        results = self.table.add(
            WgradTransformArgs(
                sums=partial_sums,
                part=size,
                parts=self.part_count,
                line=self.line_bytes,
                point=size // TILE_POINTS,
                target=target,
                target_line=self.r**2 * tap,
                tap=tap,
                channels=self.c,
            )
        )
        self._append_stage(compile_wgrad_transform(self.r), results, self.k)
        self._append_epilogue()
        return self.kernel_tasks

    def _make_args(self, sums: int, nbytes: int, workspaces: int, values: int) -> int:
        add, point = self.table.add, values // TILE_POINTS
        gradient_point = (
            padded_transform_bytes(self.block * self.tiles_per_line * self.gradient_tile_bytes)
            // TILE_POINTS
        )
        image = self._locate_image()
        groups = [
            ChannelGroup(source=self._make_image_source(image, point, a, b), first=a, last=b)
            for a, b in self.column_groups
        ]
        return add(
            WinogradWgradArgs(
                lines=self.lines,
                across=self.tiles_per_line,
                block=self.block,
                every=self.total_lines,
                rooms=workspaces,
                gradients=values,
                tile=self.tile_bytes,
                point=point,
                source=self._make_gradient_source(gradient_point),
                gradient_tile=self.gradient_tile_bytes,
                gradient_point=gradient_point,
                groups=add(*groups),
                columns=add(*self._make_columns()),
                sums=sums,
                part=nbytes,
                line=self.line_bytes,
                sum_point=nbytes // TILE_POINTS,
                points=TILE_POINTS,
                taps=add(TileTap(a=0, b=0)),
                strips=make_strip_args(self.table, self.blocking.split_strips(self.k)),
            )
        )

    def _locate_image(self) -> tuple[int, IntTuple]:
        """Where the image with its padding begins, and bytes to the next image, row and pixel."""
        (top, bottom), (left, right) = self.node.attrs["pad"]
        image, strides = locate_padded_image(
            self.memory, self.node.args[1], (top, bottom, left, right), self.kernel_tasks
        )
        return image - top * strides[1] - left * strides[2], strides

    def _make_image_source(self, image: tuple[int, IntTuple], point: int, a: int, b: int) -> int:
        """The pixels of the channels of column blocks `a` to `b`."""
        (corner, strides), reach = image, self.r - 1
        first, (last, vectors, _) = self.column_blocks[a][0], self.column_blocks[b - 1]
        channels = 4 * (last - first + vectors * vector_width())
        function = compile_image_transform(self.r)
        _, h, w = strides
        points = TransformArgs(row=h, pixel=w, channels=channels, tile=self.tile_bytes, point=point)
        size = self.height + reach, self.image_width + reach
        return self._make_source(corner + 4 * first, strides, function, points, size)

    def _make_gradient_source(self, point: int) -> int:
        layout = self.gradient.layout
        n, h, w = (4 * t for t in layout.strides[:3])
        channels = -(-self.k // vector_width()) * vector_width() * 4
        points = TransformArgs(
            row=h, pixel=w, channels=channels, tile=self.gradient_tile_bytes, point=point
        )
        address, function = (
            self.gradient.address + 4 * layout.offset,
            compile_gradient_transform(self.r),
        )
        return self._make_source(
            address, (n, h, w), function, points, (self.height, self.image_width)
        )

    def _make_source(
        self, pixels: int, strides: IntTuple, function: int, points: TransformArgs, size: IntTuple
    ) -> int:
        return self.table.add(
            TransformSourceArgs(
                pixels=pixels,
                image=strides[0],
                row=self.m * strides[1],
                line=self.tiles_per_line * points.tile,
                function=function,
                args=self.table.add(points),
                across=self.tiles_per_line,
                high=size[0],
                scale=self.m,
                wide=size[1],
            )
        )

    def _make_columns(self) -> list[WinogradWgradColumn]:
        _, length, shorter = self.blocking.split_strips(self.k)
        steps, found = (self.gradient_tile_bytes, self.tile_bytes), []
        for i, (at, vectors, _) in enumerate(self.column_blocks):
            begin = next(self.column_blocks[a][0] for a, b in self.column_groups if a <= i < b)
            found.append(
                WinogradWgradColumn(
                    image=4 * (at - begin),
                    out=4 * at,
                    long_tile=compile_micro_kernel(length, vectors, False, steps),
                    short_tile=compile_micro_kernel(length - 1, vectors, False, steps)
                    if shorter
                    else 0,
                )
            )
        return found


def _odd_line_bytes(channels: int) -> int:
    """Bytes of a tile's values at a point: an odd number of cache lines, so that those of many
    tiles do not share sets."""
    lines = -(-(-(-channels // vector_width()) * vector_width() * 4) // 64)
    return 64 * (lines + 1 - lines % 2)

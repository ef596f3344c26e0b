"""Products of a plan cut into tasks, with what the kernel does to their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from netdsl.backends.cpu.aligned_allocator import allocate_floats, get_scratch
from netdsl.backends.cpu.anchor_epilogue import combine_tasks
from netdsl.backends.cpu.blocking import Blocking, choose_blocking
from netdsl.backends.cpu.gemm_loops import (
    GemmArgs,
    GemmChunkArgs,
    GemmColumnArgs,
    GemmPassArgs,
    PackArgs,
    PackBlock,
    pack_weights,
    product,
)
from netdsl.backends.cpu.implicit_gemm import (
    GemmPass,
    ImplicitGemm,
)
from netdsl.backends.cpu.kernel_problem import KernelProblem
from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.map_kernels import KernelTasks
from netdsl.backends.cpu.micro_kernel import TileTap, compile_micro_kernel, count_prefetch_lines
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.task_program import Task, partition_tasks, split_range, thread_count

_MAX_STRIDED_DEPTH = 48
"""Rows of a matrix that is read along its columns, a page each perhaps, in a chunk."""
_PAGE_BYTES = 4096
_MAX_RESIDENT_ROWS = 32
"""As many rows of a matrix as stay near while those of another one pass by."""
_STREAMED_DEPTH = 16
"""Rows of a matrix that are read side by side, each from its beginning to its end."""
_PIXELS = 256
"""Pixels of a block of rows, about."""
_LEAST = 24
"""As few pixels as weights come from the second cache for."""
_SECOND = 1 << 20
"""Bytes of weights that stay in a core's second cache beside others."""
_RESULTS = 96 * 1024
"""Bytes of results that are near when they are gone through."""
_DEEP = 512 * 1024
"""Bytes of a column block's weights that pass by a strip of pixels at once, from the second
cache."""
_SHALLOW = 256
"""Products of a sum that take no longer than its result takes to come from memory, about."""
_NARROW = 2
"""Vectors of a column block that are worth being gone through by themselves."""


class GemmTasks:
    """Cuts one product into stages of tasks. Nothing is changed before `launch`."""

    def __init__(self, problem: KernelProblem) -> None:
        self.workers = problem.memory.count_workers(problem.kernel)
        self.gemm, self.domain = problem.gemm
        gemm = self.gemm
        self.kernel_tasks = KernelTasks(keepalive=list(gemm.input_tasks.keepalive))
        self.table = RecordTable(self.kernel_tasks.keepalive)
        self.blocking = self._choose_blocking(gemm)
        self.column_blocks = [
            (g, *b) for g in gemm.groups for b in self.blocking.split_columns(g.columns)
        ]
        self.block_width = max(v for _, _, v, _ in self.column_blocks) * vector_width()
        self.lines = max(one.rows for one in gemm.passes)
        self.block = min(self._choose_block_lines(), gemm.image_count * self.lines)
        self.epilogue = problem.epilogue.unwrap()
        self.is_weight_frozen = problem.memory.is_frozen(problem.node.args[1])
        self.has_single_block = (
            len(self.column_blocks) == 1 or self.block_width < _NARROW * vector_width()
        )
        spans_all_columns = (
            self.has_single_block
            or self._fits_l2_cache()
            or self._is_weight_streaming()
            or self._is_outer_product()
        )
        self.span = len(self.column_blocks) if spans_all_columns else 1
        self.is_split_by_columns = self.span < len(self.column_blocks)
        self.pitch = self.block_width if self.is_split_by_columns else self.domain[3]
        self.is_fused_in_registers = (
            self.epilogue.register_epilogue is not None and self._can_fuse_in_registers()
        )

    @staticmethod
    def _choose_blocking(gemm: ImplicitGemm) -> Blocking:
        """The tiles that suit the pass with most taps."""
        largest_pass = max(gemm.passes, key=lambda p: sum(len(t.pieces) for t in p.taps))
        depth = gemm.weights.depth * sum(len(t.pieces) for t in largest_pass.taps)
        return choose_blocking(
            largest_pass.pixels, gemm.groups[0].columns, depth, largest_pass.image_strides[2]
        )

    def launch(self) -> KernelTasks:
        gemm = self.gemm
        if not self.is_fused_in_registers:
            self.epilogue.register_epilogue = None
        tasks = self._partition()
        size = self.epilogue.local_bytes(self.block * gemm.scale[0], self.pitch)
        tiles = len(tasks) * size
        needs_packing = not (self.is_weight_frozen or gemm.has_unpacked_weights)
        scratch_memory = get_scratch(tiles + (self._packed_weight_bytes() if needs_packing else 0))
        self.kernel_tasks.keepalive.append(scratch_memory)
        self._set_output_addresses()
        local = (int(scratch_memory.ctypes.data), size)
        follower = self.epilogue.make_row_epilogue(
            len(tasks), local, self.pitch if self.is_split_by_columns else 0, self.has_single_block
        )
        packed = (
            gemm.weights.address
            if gemm.has_unpacked_weights
            else self._pack_weights(int(scratch_memory.ctypes.data) + tiles)
        )
        passes, offset = [], 0
        for one in gemm.passes:
            passes.append(self._make_pass_args(one, packed, offset))
            offset += sum(len(t.pieces) for t in one.taps)
        args = self.table.add(
            GemmArgs(
                passes=self.table.add(*passes),
                pass_count=len(passes),
                lines=self.lines,
                block=self.block,
                span=self.span,
                scale=gemm.scale[0],
                height=gemm.height,
                follower=self.table.add(follower),
            )
        )
        stage: list[Task] = [(product.address, args, *t, i) for i, t in enumerate(tasks)]
        return combine_tasks(gemm.input_tasks, self.kernel_tasks, self.epilogue, stage)

    def _choose_block_lines(self) -> int:
        """Rows of pixels that are computed before the kernel's other nodes take them."""
        pixels = _PIXELS
        if self._is_outer_product():
            return 1
        if self._fits_l2_cache():
            pixels = max(_LEAST, min(_PIXELS, _RESULTS // (4 * self.domain[3])))
        return -(-pixels // max(one.pixels for one in self.gemm.passes))

    def _fits_l2_cache(self) -> bool:
        """Whether all weights stay near: then few pixels at a time get all their columns, and what
        lies in memory beside them is read and written in long rows. Heavier ones pass by many
        pixels, a column block at a time."""
        return len(self.column_blocks) * self._packed_block_bytes() <= _SECOND

    def _partition(self) -> list[tuple[int, int, int, int]]:
        """Rows of pixels and column blocks of each task."""
        lines, every = self.gemm.image_count * self.lines, len(self.column_blocks)
        if self.has_single_block:
            return [
                (a, b, 0, every)
                for a, b, _, _ in partition_tasks(lines, self.block, 1, self.workers)
            ]
        return partition_tasks(lines, self.block, every, self.workers)

    def _set_output_addresses(self) -> None:
        """Tiles are written where the results belong."""
        base, (n, h, w) = self.epilogue.locate_output(self.pitch)
        (dy, dx), passes = self.gemm.scale, []
        for one in self.gemm.passes:
            wide = self.domain[2] * self.domain[3] * 4
            down, across = one.out // wide, one.out % wide // (self.domain[3] * 4)
            place = base + down * h + across * w
            passes.append(replace(one, out=place, out_strides=(n, dy * h, dx * w)))
        self.gemm.passes = passes

    # weights and tables

    def _packed_weight_bytes(self) -> int:
        """Of all weights as tiles read them."""
        return len(self.column_blocks) * self._packed_block_bytes() + 256

    def _packed_block_bytes(self) -> int:
        """Bytes of a column block of them."""
        pieces = sum(len(t.pieces) for one in self.gemm.passes for t in one.taps)
        return pieces * self.gemm.weights.depth * self.block_width * 4

    def _pack_weights(self, address: int) -> int:
        """Where the packed weights begin: in memory of their own where they are settled."""
        w = self.gemm.weights
        offsets = [piece for one in self.gemm.passes for t in one.taps for piece in t.pieces]
        if self.is_weight_frozen:
            packed = allocate_floats(self._packed_weight_bytes() // 4)
            self.kernel_tasks.keepalive.append(packed)
            address = int(packed.ctypes.data)
        blocks = [
            PackBlock(weights=w.address + g.weight + at * w.column_stride, columns=count)
            for g, at, _, count in self.column_blocks
        ]
        args = self.table.add(
            PackArgs(
                target=address,
                column=w.column_stride,
                step=w.depth_stride,
                depth=w.depth,
                width=self.block_width,
                pieces=max(len(offsets), 1),
                offsets=self.table.add_i64s(offsets),
                blocks=self.table.add(*blocks),
            )
        )
        pieces = len(offsets) * len(self.column_blocks)
        many = min(4 * thread_count(), pieces * w.depth * self.block_width // 4096)
        stage: list[Task] = [(pack_weights.address, args, *r) for r in split_range(pieces, many)]
        self.kernel_tasks.merge_parallel(
            KernelTasks(refresh_tasks=stage) if self.is_weight_frozen else KernelTasks([stage])
        )
        return address

    def _make_pass_args(self, gemm_pass: GemmPass, weights: int, offset: int) -> GemmPassArgs:
        w, lanes, block = self.gemm.weights, vector_width(), self._packed_block_bytes()
        step = w.depth_stride if self.gemm.has_unpacked_weights else self.block_width * 4
        piece_bytes = w.depth * self.block_width * 4
        long_strips, length, short_strips = self.blocking.split_strips(gemm_pass.pixels)
        register_epilogue = self.epilogue.register_epilogue
        epilogue_expr = register_epilogue.expr if register_epilogue else None
        steps = (
            (4, step)
            if self.gemm.image_depth_stride == 4 and not self.gemm.has_unpacked_weights
            else None
        )
        columns = []
        for i, (g, at, vectors, count) in enumerate(self.column_blocks):
            ragged = count < vectors * lanes
            from_ = (
                weights + g.weight + 4 * at
                if self.gemm.has_unpacked_weights
                else weights + i * block
            )
            columns.append(
                GemmColumnArgs(
                    image=g.image,
                    weight=from_ + offset * piece_bytes * (not self.gemm.has_unpacked_weights),
                    out=g.out + 4 * at,
                    columns=count,
                    long_tile=compile_micro_kernel(length, vectors, ragged, steps, epilogue_expr),
                    short_tile=compile_micro_kernel(
                        length - 1, vectors, ragged, steps, epilogue_expr
                    )
                    if short_strips
                    else 0,
                    reads=self.epilogue.pack_operand_addresses(self.table, g.out // 4 + at),
                )
            )
        taps, at = [], 0
        for t in gemm_pass.taps:
            taps.append((TileTap(a=t.offset, b=at), len(t.pieces) * w.depth))
            at += len(t.pieces) * piece_bytes
        chunks = self._make_chunks(taps, step)
        ahead, jump, times, prefetch_bytes = self._plan_input_prefetch(gemm_pass)
        results, result = self._plan_output_prefetch()
        return GemmPassArgs(
            image=gemm_pass.image,
            image_n=gemm_pass.image_strides[0],
            image_row=gemm_pass.image_strides[1],
            image_pixel=gemm_pass.image_strides[2],
            image_k=self.gemm.image_depth_stride,
            out=gemm_pass.out,
            out_n=gemm_pass.out_strides[0],
            out_row=gemm_pass.out_strides[1],
            out_pixel=gemm_pass.out_strides[2],
            rows=gemm_pass.rows,
            long_strips=long_strips,
            length=length,
            short_strips=short_strips,
            columns=self.table.add(*columns),
            chunks=self.table.add(*chunks),
            chunk_count=len(chunks),
            weight_k=step,
            group=1 if self._is_weight_streaming() else len(chunks),
            ahead=ahead,
            jump=jump,
            times=times,
            asked=prefetch_bytes,
            results=results,
            result=result,
        )

    def _plan_input_prefetch(self, gemm_pass: GemmPass) -> tuple[int, int, int, int]:
        """Bytes from pixel to pixel that a tile asks for, where each pixel is read but once, and
        how it comes from one pixel's lines to the next one's: see micro_kernel.py."""
        depth = min(self.gemm.weights.depth, self._max_chunk_depth())
        lines = count_prefetch_lines(self.block_width // vector_width())
        if sum(len(t.pieces) for t in gemm_pass.taps) != 1 or self.gemm.image_depth_stride != 4:
            return 0, 0, 0, 64 * lines
        pixel = gemm_pass.image_strides[2]
        times = -(-depth * 4 // (64 * lines))
        return pixel, pixel - 64 * lines * (times - 1), times, 64 * lines

    def _plan_output_prefetch(self) -> tuple[int, int]:
        """How often a tile asks for what lies where the next ones' results will, and how far from
        there: where weights are near, and each result is the sum of few products."""
        register_epilogue, vectors = (
            self.epilogue.register_epilogue,
            self.block_width // vector_width(),
        )
        if (
            register_epilogue is None
            or not self._fits_l2_cache()
            or self.gemm.weights.depth > _SHALLOW
        ):
            return 0, 0
        rows = [
            p.address - register_epilogue.target.address
            for kind, p in register_epilogue.operands
            if kind == "full"
        ]
        return -(-vectors // count_prefetch_lines(vectors)), rows[0] if rows else 0

    def _can_fuse_in_registers(self) -> bool:
        """Whether tiles may take what the kernel does next: as sums of some products lie where
        what it reads may be until the others come, all must come at once then."""
        register_epilogue = self.epilogue.register_epilogue
        depth = self.gemm.weights.depth * max(
            sum(len(t.pieces) for t in one.taps) for one in self.gemm.passes
        )
        return (
            register_epilogue is None
            or not register_epilogue.has_full_operands
            or depth <= self._max_chunk_depth()
        )

    def _is_outer_product(self) -> bool:
        """Whether a shallow product fills long rows: each is written from its beginning to its
        end, a few at a time."""
        return self.gemm.weights.depth <= _MAX_RESIDENT_ROWS and 4 * self.domain[3] > _PAGE_BYTES

    def _is_weight_streaming(self) -> bool:
        """Whether the rows of a wide matrix pass by once, beside few rows of results."""
        gemm = self.gemm
        row_count = gemm.image_count * sum(one.rows * one.pixels for one in gemm.passes)
        return (
            gemm.has_unpacked_weights
            and gemm.weights.depth_stride > _PAGE_BYTES
            and row_count <= _MAX_RESIDENT_ROWS
        )

    def _max_chunk_depth(self) -> int:
        """How deep a chunk is at most."""
        if self._is_weight_streaming():
            return _STREAMED_DEPTH
        # where the depth runs across rows of the image, a chunk's pages must be known to the TLB
        return (
            max(1, _DEEP // (self.block_width * 4))
            if self.gemm.image_depth_stride == 4
            else _MAX_STRIDED_DEPTH
        )

    def _make_chunks(self, taps: Sequence[tuple[TileTap, int]], step: int) -> list[GemmChunkArgs]:
        """The depth in chunks whose weights fit into the cache, from taps and how deep each is. All
        taps of a pass are equally deep, or there is one."""
        if not taps:
            return [self._make_chunk([TileTap(a=0, b=0)], 1, count=0)]
        depth, max_depth = taps[0][1], self._max_chunk_depth()
        assert all(deep == depth for _, deep in taps)
        if depth > max_depth:
            pieces = split_range(depth, -(-depth // max_depth))
            return [
                self._make_chunk(
                    [t], b - a, image=a * self.gemm.image_depth_stride, weight=a * step
                )
                for t, _ in taps
                for a, b in pieces
            ]
        each = max(1, max_depth // depth)
        return [
            self._make_chunk([t for t, _ in taps[i : i + each]], depth)
            for i in range(0, len(taps), each)
        ]

    def _make_chunk(
        self,
        taps: Sequence[TileTap],
        depth: int,
        *,
        image: int = 0,
        weight: int = 0,
        count: int | None = None,
    ) -> GemmChunkArgs:
        tap_count = len(taps) if count is None else count
        return GemmChunkArgs(
            taps=self.table.add(*taps), count=tap_count, image=image, weight=weight, depth=depth
        )

"""Depthwise convolutions and their gradients, where each channel has a filter of its own: vectors
of channels times vectors of weights, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from netdsl.backends.cpu import elementwise_functions as fn
from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.implicit_gemm import (
    GemmPass,
    explain_gemm,
    locate_padded_image,
)
from netdsl.backends.cpu.intrinsics import call_task, load_f32, load_i64, store_f32
from netdsl.backends.cpu.kernel_problem import (
    OTHER_KIND,
    KernelProblem,
    attempt,
    check_epilogue,
)
from netdsl.backends.cpu.llvm_builder import Lanes, LlvmFunction, Value, const_i64
from netdsl.backends.cpu.llvm_jit import compile_llvm
from netdsl.backends.cpu.map_kernels import (
    KernelTasks,
    make_output_halo_tasks,
)
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Record, RecordTable
from netdsl.backends.cpu.row_kernel import compile_row_kernel
from netdsl.backends.cpu.task_program import Task, split_range
from netdsl.backends.cpu.wgrad import WgradKernel, explain_wgrad

_MAX_PARTIAL_SUMS = 8
"""Sums over pixels are taken in so many parts, whatever the threads, so that results repeat."""


def explain_depthwise(problem: KernelProblem) -> str | None:
    """Why a node is no convolution, or gradient of one, with one filter for each of several
    channels, or None."""
    node = problem.node
    if "groups" not in node.attrs:
        return OTHER_KIND
    groups = node.attrs["groups"]
    weight = node if node.op == "conv2d_wgrad" else problem.memory.plan.graph[node.args[1]]
    filters, _, _, channels_per_filter = weight.type.shape
    if groups == 1 or groups != filters or channels_per_filter != 1:
        return "not one filter for each channel"
    if node.op == "conv2d_wgrad":
        return explain_wgrad(problem)
    return explain_gemm(problem.memory, node) or problem.once(_explain_rows)


def _explain_rows(problem: KernelProblem) -> str | None:
    """Why the rows of a product, or what follows them, cannot be computed, or None."""
    if problem.epilogue.reason:
        return problem.epilogue.reason
    epilogue = problem.epilogue.unwrap()
    return attempt(lambda: check_epilogue(epilogue, False, True)).reason


def make_depthwise_tasks(problem: KernelProblem) -> KernelTasks:
    """The tasks of a depthwise kernel and of what happens to its rows."""
    if problem.node.op == "conv2d_wgrad":
        return _DepthwiseWgrad(problem).launch()
    return _DepthwiseTasks(problem).launch()


class _DepthwiseTasks:
    """A product as rows of the domain: the passes that reach a row, then the kernel's elementwise
    nodes on it."""

    def __init__(self, problem: KernelProblem) -> None:
        self.memory, self.kernel = problem.memory, problem.kernel
        self.gemm, self.domain = problem.gemm
        self.epilogue = problem.epilogue.unwrap()
        self.kernel_tasks = KernelTasks(
            [list(s) for s in self.gemm.input_tasks.stages], list(self.gemm.input_tasks.keepalive)
        )
        self.table = RecordTable(self.kernel_tasks.keepalive)

    def launch(self) -> KernelTasks:
        images, height, _, _ = self.domain
        tasks = split_range(images * height, 8 * self.memory.count_workers(self.kernel))
        out, follower = self._make_epilogue(len(tasks))
        pack_tasks: list[Task] = []
        passes = [self._make_pass_args(one, out.pixel, pack_tasks) for one in self.gemm.passes]
        self.kernel_tasks.merge_parallel(KernelTasks([pack_tasks] if pack_tasks else []))
        args = self.table.add(
            DepthwiseArgs(
                passes=self.table.add(*passes),
                pass_count=len(passes),
                height=height,
                scale=self.gemm.scale[0],
                out=self.table.add(out),
                follower=self.table.add(follower),
            )
        )
        stage: list[Task] = [(depthwise_rows.address, args, *r, i) for i, r in enumerate(tasks)]
        stage += make_output_halo_tasks(
            self.memory, self.kernel.outputs, self.kernel_tasks.keepalive
        )
        self.kernel_tasks.stages.append(stage)
        if self.reduction_tasks is not None:
            self.kernel_tasks.append_stages(self.reduction_tasks)
        return self.kernel_tasks

    def _make_pass_args(
        self, gemm_pass: GemmPass, pixel: int, pack_tasks: list[Task]
    ) -> DepthwisePassArgs:
        channels, taps = self.domain[3], len(gemm_pass.taps)
        packed = allocate_floats(taps * channels)
        self.kernel_tasks.keepalive.append(packed)
        weights = DepthwisePackArgs(
            target=packed.ctypes.data,
            weights=self.gemm.weights.address,
            channel=self.gemm.groups[1].weight,
            channels=channels,
            taps=self.table.add_i64s([t.pieces[0] for t in gemm_pass.taps]),
        )
        source = self.table.add(weights)
        pack_tasks += (
            [(pack_depthwise_weights.address, source, *r) for r in split_range(taps, 1)]
            if taps
            else []
        )
        row = DepthwiseRowArgs(
            pixels=gemm_pass.pixels,
            image_pixel=gemm_pass.image_strides[2],
            other_pixel=self.gemm.scale[1] * pixel,
            channels=channels,
            weights=packed.ctypes.data,
            tap=4 * channels,
            offsets=self.table.add_i64s([t.offset for t in gemm_pass.taps]),
        )
        across = self.domain[2] * channels * 4
        return DepthwisePassArgs(
            function=compile_depthwise_row(taps),
            args=self.table.add(row),
            image=gemm_pass.image,
            image_n=gemm_pass.image_strides[0],
            image_row=gemm_pass.image_strides[1],
            first_row=gemm_pass.out // across,
            first_pixel=gemm_pass.out % across // (4 * channels),
        )

    def _make_epilogue(self, tasks: int) -> tuple[DepthwiseOutputArgs, DepthwiseEpilogueArgs]:
        """Where rows of the product are written, and what follows them."""
        domain, body = self.domain, self.epilogue.body
        self.reduction_tasks: KernelTasks | None = None
        if self.epilogue.is_stored:
            address, (n, row, pixel) = self.epilogue.locate_output(domain[3])
            out = DepthwiseOutputArgs(address=address, n=n, row=row, pixel=pixel, tile=0)
        else:
            size = 4 * domain[2] * domain[3] + 256
            tiles = allocate_floats(tasks * size // 4)
            self.kernel_tasks.keepalive.append(tiles)
            address = int(tiles.ctypes.data)
            out = DepthwiseOutputArgs(address=address, n=0, row=0, pixel=4 * domain[3], tile=size)
        if body is None:
            return out, DepthwiseEpilogueArgs(function=0, args=0, rows=0, run=0)
        loop_nest = body.build_loop_nest(fixed_axes=2)
        local = (out.address if out.tile else 0, out.tile, loop_nest.run)
        row_kernel = compile_row_kernel(loop_nest, body.row_body, tasks, local)
        if row_kernel.prepare:
            self.kernel_tasks.stages.append([(row_kernel.prepare, row_kernel.args)])
        self.kernel_tasks.keepalive.append(row_kernel)
        self.reduction_tasks = body.make_reduction_tasks(loop_nest, row_kernel, 1, tasks)
        rows_per_line = loop_nest.row_count // (domain[0] * domain[1])
        return out, DepthwiseEpilogueArgs(
            function=row_kernel.function,
            args=row_kernel.args,
            rows=rows_per_line,
            run=loop_nest.run,
        )


class _DepthwiseWgrad(WgradKernel):
    """The gradient for the weights: sums over all pixels, taken in parts."""

    def launch(self) -> KernelTasks:
        node, memory, a = self.node, self.memory, self.node.attrs
        g = memory.operand(node.args[0])
        (top, bottom), (left, right) = a["pad"]
        at, (sn, sh, sw) = locate_padded_image(
            memory, node.args[1], (top, bottom, left, right), self.kernel_tasks
        )
        n, height, pixels, channels = g.layout.shape
        _, r, s, _ = node.type.shape
        gn, gh, gw = (4 * t for t in g.layout.strides[:3])
        down, across = a["dilation"][0] * sh, a["dilation"][1] * sw
        offsets = [i * down + j * across for i in range(r) for j in range(s)]
        row = DepthwiseRowArgs(
            pixels=pixels,
            image_pixel=a["stride"][1] * sw,
            other_pixel=gw,
            channels=channels,
            weights=0,
            tap=4 * channels,
            offsets=self.table.add_i64s(offsets),
        )
        size = r * s * channels
        parts = split_range(n * height, _MAX_PARTIAL_SUMS)
        raw = allocate_floats(len(parts) * size)
        self.kernel_tasks.keepalive.append(raw)
        args = self.table.add(
            DepthwiseWgradArgs(
                function=compile_depthwise_wgrad_row(r * s),
                args=self.table.add(row),
                gradient=g.address + 4 * g.layout.offset,
                gradient_n=gn,
                gradient_row=gh,
                image=at - top * sh - left * sw,
                image_n=sn,
                image_row=a["stride"][0] * sh,
                height=height,
                sums=raw.ctypes.data,
                size=size,
            )
        )
        self.kernel_tasks.stages.append(
            [(add_depthwise_wgrad_rows.address, args, *some, i) for i, some in enumerate(parts)]
        )
        target = self._locate_output()
        self._add_transposed_partials(raw.ctypes.data, len(parts), target, channels)
        self._append_epilogue()
        return self.kernel_tasks


class DepthwiseArgs(Record):
    """The passes of a product; rows of an image, and rows of it for one of a pass; where rows are
    written, and what follows them."""

    passes: int
    pass_count: int
    height: int
    scale: int
    out: int
    follower: int


class DepthwiseOutputArgs(Record):
    """Where rows of results are written, with bytes to the next image, row and pixel, and of a tile
    where the product itself is not kept."""

    address: int
    n: int
    row: int
    pixel: int
    tile: int


class DepthwiseEpilogueArgs(Record):
    """The kernel over rows that follows a product (0: none), how many of its rows one of the
    product has, and how long they are."""

    function: int
    args: int
    rows: int
    run: int


class DepthwisePassArgs(Record):
    """Pixels that are computed alike: `compile_depthwise_row` and its arguments, where the image
    begins with bytes to the next one and to the next row, and which row and pixel of the domain
    come first."""

    function: int
    args: int
    image: int
    image_n: int
    image_row: int
    first_row: int
    first_pixel: int


class DepthwiseWgradArgs(Record):
    """`compile_depthwise_wgrad_row` and its arguments; the gradient and the image with bytes to the
    next one and row; rows of an image; the sums of the parts, and how many each has."""

    function: int
    args: int
    gradient: int
    gradient_n: int
    gradient_row: int
    image: int
    image_n: int
    image_row: int
    height: int
    sums: int
    size: int


class DepthwisePackArgs(Record):
    """Weights and where they are copied to; bytes from a channel's to the next one's; channels;
    where each tap's weights begin."""

    target: int
    weights: int
    channel: int
    channels: int
    taps: int


class DepthwiseRowArgs(Record):
    """A row of pixels: bytes to the image's next one, and to that of the result or of its gradient;
    channels; the weights, and bytes from a tap's weights or sums to the next one's; how far each
    tap lies from the pixel."""

    pixels: int
    image_pixel: int
    other_pixel: int
    channels: int
    weights: int
    tap: int
    offsets: int


@numba_loop
def depthwise_rows(args, first, last, slot, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last` of the domain's rows; args: DepthwiseArgs."""
    d = DepthwiseArgs.at(args)
    y, epilogue = DepthwiseOutputArgs.at(d.out), DepthwiseEpilogueArgs.at(d.follower)
    is_first_call = True
    for q in range(first, last):
        n, h = q // d.height, q % d.height
        out = y.address + slot * y.tile + n * y.n + h * y.row
        for p in range(d.pass_count):
            depthwise_pass = DepthwisePassArgs.nth(d.passes, p)
            if h % d.scale == depthwise_pass.first_row:
                image = (
                    depthwise_pass.image
                    + n * depthwise_pass.image_n
                    + h // d.scale * depthwise_pass.image_row
                )
                to = out + depthwise_pass.first_pixel * y.pixel
                call_task(depthwise_pass.function, depthwise_pass.args, image, to, 0, 0, 0)
        if epilogue.function != 0:
            low, high = q * epilogue.rows, (q + 1) * epilogue.rows
            number = ~slot if is_first_call else slot
            call_task(epilogue.function, epilogue.args, low, high, 0, epilogue.run, number)
            is_first_call = False


@numba_loop
def add_depthwise_wgrad_rows(args, first, last, slot, _d, _e):  # type: ignore[no-untyped-def]
    """The sums of rows `first` to `last` of a gradient; args: AddRowsArgs."""
    a = DepthwiseWgradArgs.at(args)
    to = a.sums + 4 * slot * a.size
    for i in range(a.size):
        store_f32(to + 4 * i, 0.0)
    for q in range(first, last):
        n, h = q // a.height, q % a.height
        g = a.gradient + n * a.gradient_n + h * a.gradient_row
        x = a.image + n * a.image_n + h * a.image_row
        call_task(a.function, a.args, g, x, to, 0, 0)


@numba_loop
def pack_depthwise_weights(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Weights of taps `first` to `last`, channel by channel; args: SpreadArgs."""
    a = DepthwisePackArgs.at(args)
    for t in range(first, last):
        at = a.weights + load_i64(a.taps, t)
        for c in range(a.channels):
            store_f32(a.target + 4 * (t * a.channels + c), load_f32(at + c * a.channel))


def _for_each_vector(
    f: LlvmFunction, channels: Value, body: Callable[[Lanes, Value], None]
) -> None:
    """`body` for every vector of channels, told how far it lies from the first, in bytes."""
    b, v = f.b, Lanes(f)
    whole = b.and_(channels, const_i64(-v.count))
    with f.loop(const_i64(0), whole, const_i64(v.count)) as c:
        body(v, b.mul(c, const_i64(4)))
    left = b.sub(channels, whole)
    with b.if_then(b.icmp_signed(">", left, const_i64(0))):
        tail = Lanes(f)
        tail.mask = tail.prefix_mask(left)
        body(tail, b.mul(whole, const_i64(4)))


def _offset_addresses(f: LlvmFunction, at: Value, offsets: Sequence[Value]) -> list[Value]:
    return [f.b.add(at, one) for one in offsets]


def _load_offsets(f: LlvmFunction, row: Any, count: int) -> list[Value]:
    return [f.load_i64(row.offsets, const_i64(i)) for i in range(count)]


@cache
def compile_depthwise_row(count: int) -> int:
    """`f(args, image, out)`: a row of pixels, each the sum of its taps; args: DepthwiseRow."""
    f = LlvmFunction("depthwise")
    b, row = f.b, f.record(DepthwiseRowArgs)
    offsets = _load_offsets(f, row, count)

    def body(v: Lanes, far: Value) -> None:
        lines = (b.add(row.weights, b.mul(row.tap, const_i64(i))) for i in range(count))
        own = [v.load(b.add(at, far)) for at in lines]
        image, out = b.add(f.args[1], far), b.add(f.args[2], far)
        with f.loop(const_i64(0), row.pixels, const_i64(1)) as pixel:
            at = b.add(image, b.mul(pixel, row.image_pixel))
            total = v.const(0)
            for place, weight in zip(_offset_addresses(f, at, offsets), own, strict=True):
                total = fn.fma(v, v.load(place), weight, total)
            v.store(total, b.add(out, b.mul(pixel, row.other_pixel)))

    _for_each_vector(f, row.channels, body)
    return compile_llvm("depthwise", f.text())


@cache
def compile_depthwise_wgrad_row(count: int) -> int:
    """`f(args, gradient, image, sums)`: adds a row of pixels to the sums of all taps; args:
    DepthwiseRow."""
    f = LlvmFunction("depthwise_sums")
    b, row = f.b, f.record(DepthwiseRowArgs)
    offsets = _load_offsets(f, row, count)

    def body(v: Lanes, far: Value) -> None:
        with b.goto_entry_block():
            totals = [b.alloca(v.float_type) for _ in range(count)]
        places = [b.add(b.add(f.args[3], far), b.mul(row.tap, const_i64(i))) for i in range(count)]
        for total, place in zip(totals, places, strict=True):
            b.store(v.load(place), total)
        gradient, image = b.add(f.args[1], far), b.add(f.args[2], far)
        with f.loop(const_i64(0), row.pixels, const_i64(1)) as pixel:
            g = v.load(b.add(gradient, b.mul(pixel, row.other_pixel)))
            at = b.add(image, b.mul(pixel, row.image_pixel))
            for total, place in zip(totals, _offset_addresses(f, at, offsets), strict=True):
                b.store(fn.fma(v, g, v.load(place), b.load(total, typ=v.float_type)), total)
        for total, place in zip(totals, places, strict=True):
            v.store(b.load(total, typ=v.float_type), place)

    _for_each_vector(f, row.channels, body)
    return compile_llvm("depthwise_sums", f.text())

"""Binds matrix products and convolutions to the fastest implementation: a library's, or a kernel of
this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from netdsl.backends.cuda import (
    cublaslt_gemm,
    cudnn_convolution,
    direct_convolution,
    space_to_depth,
)
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.epilogue import KernelSplit, find_splits
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.backends.cuda.operand_packing import OperandPacking
from netdsl.backends.cuda.tuning import TimedCandidate
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import make_contiguous
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array, Node

Buffers = Mapping[str, Array]
LaunchBinder = Callable[[CudaLaunch, Buffers], Thunk]
Implementation = Callable[["PlacedSplit", OperandPacking], Thunk | None]
"""Returns the library call; None if the launches that it has added to the packing are all."""
_ALIGNMENT = 16
_CHANNEL_MULTIPLE = 8
"""16-bit convolutions are fastest if the number of channels is a multiple of this."""
_PRODUCTS_BUFFER = "products"
"""The buffer for products that only the rest of their kernel reads."""


@dataclass(frozen=True)
class BoundAnchor:
    """The launches of a kernel. Timing runs only `timed_thunks`: not those that write states, which
    a step will read."""

    thunks: list[Thunk]
    timed_thunks: list[Thunk]
    packing: OperandPacking


@dataclass(frozen=True)
class PlacedSplit:
    """A split of a kernel with the placements of the product's operands, of the epilogue's operands
    (by `Epilogue.operand_names`) and of the result. `rest_launches` compute what the split leaves;
    None if there is no kernel for that."""

    split: KernelSplit
    operands: tuple[Placement, ...]
    epilogue_operands: Mapping[str, Placement]
    out: Placement
    rest_launches: tuple[CudaLaunch, ...] | None

    @property
    def node(self) -> Node:
        return self.split.node

    def with_placements(self, *places: Placement) -> PlacedSplit:
        """Returns the same split with other placements: the operands', then the result's."""
        return replace(self, operands=places[:-1], out=places[-1])


def place_splits(plan: Plan, kernel: Kernel, multiprocessors: int) -> list[PlacedSplit]:
    """Returns all splits of a product's kernel with their placements; the product alone is last."""
    found = []
    for split in find_splits(plan.graph, kernel):
        places, epilogue = plan.placements, split.epilogue
        operands = tuple(places[a] for a in split.node.args)
        epilogue_operands = (
            {field: places[n] for field, n in epilogue.operand_names.items()} if epilogue else {}
        )
        out = places[split.value] if split.value in kernel.outputs else _place_product(plan, kernel)
        updated_places, rest = {**places, split.value: out}, split.rest
        launches = generate_launches(plan, rest, multiprocessors, updated_places) if rest else ()
        found.append(PlacedSplit(split, operands, epilogue_operands, out, launches))
    return found


def _place_product(plan: Plan, kernel: Kernel) -> Placement:
    """Returns where to write a product that only the rest of its kernel reads: in the place of an
    output, if that has the same type and its memory is free until then, else in a buffer that all
    such products share."""
    kind, places = plan.graph[kernel.name].type, plan.placements
    read = [places[i] for i in kernel.inputs]
    for name in kernel.outputs:
        p = places[name]
        has_same_shape = (p.dtype, p.layout.shape) == (kind.dtype, kind.shape) and p.padding is None
        if has_same_shape and _is_temporary(p) and not any(p.overlaps(r) for r in read):
            return p
    return Placement(_PRODUCTS_BUFFER, kind.dtype, make_contiguous(kind.shape))


def can_use_direct_kernel(placed: PlacedSplit) -> bool:
    """Returns whether the direct kernel of this package may beat the library."""
    if placed.node.op not in ("conv2d", "conv2d_dgrad", "conv2d_wgrad"):
        return False
    shapes = [p.layout.shape for p in (*placed.operands, placed.out)]
    image, result = {"conv2d_wgrad": (1, 0)}.get(placed.node.op, (0, 2))
    are_images = all(len(shape) == 4 for shape in shapes)
    return are_images and direct_convolution.has_few_channels(
        placed.node, shapes[image], shapes[result]
    )


def make_direct_launches(placed: PlacedSplit, multiprocessors: int) -> tuple[CudaLaunch, ...]:
    """Returns the launches of the direct kernel. Raises UnsupportedKernelError if there is none."""
    first, second = placed.operands
    operands = (first, second)
    return direct_convolution.direct_launches(
        placed.node,
        operands,
        placed.out,
        multiprocessors,
        placed.split.epilogue,
        placed.epilogue_operands,
    )


class AnchorBinder:
    """Binds the products of one plan to one memory, to which it adds buffers."""

    def __init__(self, device: Device, plan: Plan, memory: Buffers) -> None:
        self.device = device
        self.plan = plan
        self.memory = dict(memory)
        self._packed_operands: dict[tuple[str, int], Placement] = {}
        self._splits = {k.name: self._prepare_splits(k) for k in plan.kernels if k.kind == "anchor"}

    def _prepare_splits(self, kernel: Kernel) -> list[PlacedSplit]:
        """Finds the splits of a kernel and starts to compile their generated launches, so that
        timing does not wait for one compilation after the other."""
        found = place_splits(self.plan, kernel, self.device.multiprocessors)
        for launch in (launch for placed in found for launch in placed.rest_launches or ()):
            self.device.compile_async(launch)
        return found

    def bind(self, kernel: Kernel, launcher: LaunchBinder) -> list[Thunk]:
        """Returns the launches of a product's kernel. Raises UnsupportedKernelError if no
        implementation computes it."""
        *fused, plain = self._splits[kernel.name]
        if any(p.padding is not None for p in (*plain.operands, plain.out)):
            raise UnsupportedKernelError("an operand or the result has a zero halo")
        if not _is_temporary(plain.out):
            raise UnsupportedKernelError("the product is a state, which timing would overwrite")
        fused = [placed for placed in fused if _is_temporary(placed.out)]
        fused_pairs = [
            (placed, implementation)
            for placed in fused
            for implementation in self._fused_implementations(placed)
        ]
        for group in self._implementation_groups(plain):
            pairs = [*fused_pairs, *((plain, implementation) for implementation in group)]
            # libraries first: they are likelier to be fastest
            pairs.sort(key=lambda pair: pair[1] == self._direct)
            candidates = [
                self._make_candidate(implementation, placed, launcher)
                for placed, implementation in pairs
            ]
            try:
                found = self.device.tuner.choose_fastest(
                    self._tuning_key(kernel, plain),
                    candidates,
                    self._measure_milliseconds,
                    len(candidates),
                )
            except RuntimeError:  # the next group may work
                fused_pairs.clear()
                continue
            self._packed_operands, self.memory = found.packing.copies, found.packing.memory
            return found.thunks
        raise UnsupportedKernelError(f"no library computes {kernel.name}")

    def _max_product_bytes(self) -> int:
        """Returns the size of the largest product that is not an output of its kernel."""
        inner = (k for k in self.plan.kernels if k.kind == "anchor" and k.name not in k.outputs)
        return max(self.plan.graph[k.name].type.nbytes for k in inner)

    def _build(
        self, implementation: Implementation, placed: PlacedSplit, launcher: LaunchBinder
    ) -> BoundAnchor:
        if placed.rest_launches is None:
            raise UnsupportedKernelError(f"no kernel computes what follows {placed.split.value}")
        if placed.out.buffer == _PRODUCTS_BUFFER and _PRODUCTS_BUFFER not in self.memory:
            self.memory[_PRODUCTS_BUFFER] = self.device.cupy.zeros(
                self._max_product_bytes(), dtype="uint8"
            )
        packing = OperandPacking(self.device, dict(self.memory), self._packed_operands)
        run = implementation(placed, packing)
        first, last, rest = (
            [launcher(x, packing.memory) for x in launches]
            for launches in (packing.launches_before, packing.launches_after, placed.rest_launches)
        )
        product = [*first, *([run] if run else []), *last]
        rest_outputs = placed.split.rest.outputs if placed.split.rest else ()
        writes_states = not all(_is_temporary(self.plan.placements[o]) for o in rest_outputs)
        return BoundAnchor(
            [*product, *rest], product if writes_states else [*product, *rest], packing
        )

    def _measure_milliseconds(self, bound: BoundAnchor) -> float:
        def run() -> None:
            for thunk in bound.timed_thunks:
                thunk()

        return self.device.measure_milliseconds(run)

    def _make_candidate(
        self, implementation: Implementation, placed: PlacedSplit, launcher: LaunchBinder
    ) -> TimedCandidate[BoundAnchor]:
        name: str = implementation.__name__
        epilogue = placed.split.epilogue
        if epilogue is None:
            return TimedCandidate(name, partial(self._build, implementation, placed, launcher))
        needs_compilation = implementation not in (self._product, self._direct)
        name = f"{name} {epilogue.kind}"
        return TimedCandidate(
            name, partial(self._build, implementation, placed, launcher), needs_compilation
        )

    def _tuning_key(self, kernel: Kernel, plain: PlacedSplit) -> tuple[object, ...]:
        """Returns everything that the choice of an implementation depends on."""
        layouts = (
            (p.dtype, p.layout.shape, p.layout.strides) for p in (*plain.operands, plain.out)
        )
        ops = (self.plan.graph[n].op for n in kernel.nodes if n != kernel.name)
        return ("way", plain.node.op, *sorted(plain.node.attrs.items()), *layouts, *ops)

    def _fused_implementations(self, placed: PlacedSplit) -> tuple[Implementation, ...]:
        if placed.node.op == "matmul":
            return (self._product,)
        return next(self._implementation_groups(placed), ())

    def _implementation_groups(self, placed: PlacedSplit) -> Iterator[tuple[Implementation, ...]]:
        """Yields the implementations that compete, then those to try if none of these works."""
        if placed.node.op in ("matmul", "gram"):
            yield (self._product,)
            yield (self._packed_product,)
            return
        if not cudnn_convolution.is_supported((*placed.operands, placed.out)):
            return
        image = {"conv2d": 0, "conv2d_wgrad": 1}.get(placed.node.op)
        is_thin = image is not None and _has_unaligned_channels(placed.node, placed.operands[image])
        padded = (self._with_channels, self._in_blocks) if is_thin else ()
        direct_kernels = (self._direct,) if can_use_direct_kernel(placed) else ()
        yield (self._convolution, *padded, *direct_kernels)
        yield (self._packed_convolution,)

    def _product(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        """A GEMM on the operands in place; those that the library cannot address are packed."""
        batch = 0 if placed.node.op == "gram" else len(placed.operands[-1].layout.shape) - 2
        operands = (
            p if cublaslt_gemm.can_address(p, batch) else packing.pack(name, p)
            for name, p in zip(placed.node.args, placed.operands, strict=True)
        )
        is_addressable = cublaslt_gemm.can_address(placed.out, batch, is_result=True)
        out = placed.out if is_addressable else packing.unpack(placed.out)
        return self._bind_gemm(placed.with_placements(*operands, out), packing)

    def _packed_product(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        return self._bind_gemm(_pack_operands(placed, packing), packing)

    def _bind_gemm(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        x, w, out = placed.operands[0], placed.operands[-1], placed.out
        is_gram, e = placed.node.op == "gram", placed.split.epilogue
        gemm = cublaslt_gemm.make_gram(x, out) if is_gram else cublaslt_gemm.make_gemm(x, w, out)
        addend, bias = placed.epilogue_operands.get("beside"), placed.epilogue_operands.get("bias")
        if e is not None:
            if e.mask is not None:
                raise UnsupportedKernelError("a GEMM cannot apply a mask")
            if bias and e.bias:
                bias = packing.pack_vector(e.bias, bias, out.dtype)
            gemm = cublaslt_gemm.with_epilogue(gemm, out, addend, bias, e.relu)
        places = (w, x, out, addend, bias)
        pointers = cublaslt_gemm.GemmPointers(*(packing.pointer(p) if p else 0 for p in places))
        return cublaslt_gemm.bind(self.device, gemm, pointers)

    def _convolution(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        images = [p for field, p in placed.epilogue_operands.items() if field != "bias"]
        if any(len(p.layout.shape) != 4 for p in (*placed.operands, *images, placed.out)):
            raise UnsupportedKernelError("a convolution reads and writes images, not views of them")
        if any(placed.out.overlaps(p) for p in placed.epilogue_operands.values()):
            raise UnsupportedKernelError("a convolution may not overwrite its operands")
        convolution = cudnn_convolution.FusedConvolution(
            placed.node,
            (*placed.operands, *placed.epilogue_operands.values(), placed.out),
            placed.split.epilogue,
        )
        pointers = [packing.pointer(p) for p in convolution.places]
        if any(pointer % _ALIGNMENT for pointer in pointers):
            raise UnsupportedKernelError("cuDNN needs every tensor to be aligned to 16 bytes")
        return cudnn_convolution.bind(self.device, convolution, pointers)

    def _direct(self, placed: PlacedSplit, packing: OperandPacking) -> None:
        packing.launches_after += make_direct_launches(placed, self.device.multiprocessors)

    def _packed_convolution(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        return self._convolution(_pack_operands(placed, packing), packing)

    def _with_channels(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        """A convolution with the channels padded with zeros to a multiple of 8."""
        node, places = placed.node, [*placed.operands, placed.out]
        image = 0 if node.op == "conv2d" else 1
        padded_channels = -(-places[image].layout.shape[3] // _CHANNEL_MULTIPLE) * _CHANNEL_MULTIPLE
        places[image] = packing.pack(node.args[image], places[image], padded_channels)
        if node.op == "conv2d":
            places[1] = packing.pack(node.args[1], places[1], padded_channels)
        else:
            places[2] = packing.unpack(places[2], padded_channels)
        return self._convolution(placed.with_placements(*places), packing)

    def _in_blocks(self, placed: PlacedSplit, packing: OperandPacking) -> Thunk:
        """A convolution after space-to-depth, so that its stride is 1."""
        node, places = placed.node, [*placed.operands, placed.out]
        image, weight, result = (0, 1, 2) if node.op == "conv2d" else (1, 2, 0)
        shapes = (places[i].layout.shape for i in (image, weight, result))
        blocks = space_to_depth.find_space_to_depth(node, *shapes)
        if blocks is None:
            raise UnsupportedKernelError("space-to-depth does not help this convolution")
        places[image] = packing.block_image(node.args[image], places[image], blocks)
        pack_weight = packing.block_weight if node.op == "conv2d" else packing.unblock_weight
        places[weight] = pack_weight(places[weight], blocks)
        split = replace(placed.split, node=space_to_depth.rewrite_convolution(node, blocks))
        return self._convolution(replace(placed, split=split).with_placements(*places), packing)


def _is_temporary(place: Placement) -> bool:
    """Returns whether timing may overwrite the value: nothing outside the step reads it."""
    return place.buffer in (ARENA, _PRODUCTS_BUFFER)


def _has_unaligned_channels(node: Node, image: Placement) -> bool:
    is_ungrouped_16_bit = image.itemsize == 2 and node.attrs["groups"] == 1
    return is_ungrouped_16_bit and image.layout.shape[3] % _CHANNEL_MULTIPLE != 0


def _pack_operands(placed: PlacedSplit, packing: OperandPacking) -> PlacedSplit:
    """Replaces the operands and the result by packed copies."""
    operands = (packing.pack(n, p) for n, p in zip(placed.node.args, placed.operands, strict=True))
    return placed.with_placements(*operands, packing.unpack(placed.out))

"""Prints the CUDA source of a plan's kernels, without a GPU: for a number of multiprocessors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netdsl.backends.cuda.anchor_binder import (
    PlacedSplit,
    can_use_direct_kernel,
    make_direct_launches,
    place_splits,
)
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.kernel_generator import generate_launches
from netdsl.backends.cuda.nccl_collective import copy_launches, place_values
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.source_listing import CalledFunction, format_listing
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan

MULTIPROCESSORS = {"sm_80": 108, "sm_89": 142, "sm_90": 132, "sm_100": 148}
"""Multiprocessors of an A100, an L40S, an H100 and a B200."""


def generate_cuda_source(plan: Plan, multiprocessors: int) -> str:
    """Returns the source of all kernels. A product shows all its implementations, since only timing
    on the GPU decides between them."""

    def called_functions(kernel: Kernel) -> tuple[CalledFunction, ...]:
        if kernel.kind == "anchor":
            found = place_splits(plan, kernel, multiprocessors)
            return tuple(
                code for placed in found for code in _product_functions(placed, multiprocessors)
            )
        if kernel.kind == "collective":
            return tuple(_collective_functions(plan, kernel, multiprocessors))
        return tuple(map(_called_function, generate_launches(plan, kernel, multiprocessors) or ()))

    return format_listing(plan, called_functions, "//", PRELUDE)


def _collective_functions(
    plan: Plan, kernel: Kernel, multiprocessors: int
) -> Iterator[CalledFunction]:
    """Yields the call of NCCL, with the copies around it."""
    values = place_values(plan, kernel)
    yield from map(_called_function, copy_launches(values.load, multiprocessors))
    yield CalledFunction("NCCL", note=f"all_reduce of {len(values.buffers)} values in place")
    yield from map(_called_function, copy_launches(values.store, multiprocessors))


def _product_functions(placed: PlacedSplit, multiprocessors: int) -> Iterator[CalledFunction]:
    """Yields the library call, the direct kernel that may replace it, and the launches after it."""
    if placed.rest_launches is None:
        return
    epilogue = f" with {placed.split.epilogue.kind}" if placed.split.epilogue else ""
    library = "cuBLASLt" if placed.node.op in ("matmul", "gram") else "cuDNN"
    yield CalledFunction(library, note=f"{placed.node.op}{epilogue}")
    if can_use_direct_kernel(placed):
        yield from map(_called_function, _direct_launches(placed, multiprocessors))
    yield from map(_called_function, placed.rest_launches)


def _direct_launches(placed: PlacedSplit, multiprocessors: int) -> Iterable[CudaLaunch]:
    try:
        return make_direct_launches(placed, multiprocessors)
    except UnsupportedKernelError:
        return ()


def _called_function(launch: CudaLaunch) -> CalledFunction:
    (x, y), text = launch.grid, launch.source.removeprefix(PRELUDE)
    return CalledFunction(launch.name, text, f"{x} x {y} blocks of {launch.threads} threads")

"""The CUDA text of a plan's kernels. It needs no GPU: only how many multiprocessors one has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netdsl.backends.cuda.anchors import Cut, cuts, few_channels, own_launches
from netdsl.backends.cuda.generate import generated
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import Launch
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.source_listing import CalledFunction, format_listing
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan

MULTIPROCESSORS = {"sm_80": 108, "sm_89": 142, "sm_90": 132, "sm_100": 148}
"""Of an A100, an L40S, an H100 and a B200."""


def source(plan: Plan, multiprocessors: int) -> str:
    """All kernels. Which of its ways a product takes is timed on the GPU: each is shown."""

    def calls(kernel: Kernel) -> tuple[CalledFunction, ...]:
        if kernel.kind == "anchor":
            found = cuts(plan, kernel, multiprocessors)
            return tuple(code for cut in found for code in _product(cut, multiprocessors))
        return tuple(map(_code, generated(plan, kernel, multiprocessors) or ()))

    return format_listing(plan, calls, "//", PRELUDE)


def _product(cut: Cut, multiprocessors: int) -> Iterator[CalledFunction]:
    """A library's call, or a kernel of our own in its place; then what follows it."""
    if cut.rest is None:
        return
    epilogue = f" with {cut.form.epilogue.kind}" if cut.form.epilogue else ""
    products = "cuBLASLt" if cut.node.op in ("matmul", "gram") else "cuDNN"
    yield CalledFunction(products, note=f"{cut.node.op}{epilogue}")
    if few_channels(cut):
        yield from map(_code, _own(cut, multiprocessors))
    yield from map(_code, cut.rest)


def _own(cut: Cut, multiprocessors: int) -> Iterable[Launch]:
    try:
        return own_launches(cut, multiprocessors)
    except Unmappable:
        return ()


def _code(launch: Launch) -> CalledFunction:
    (x, y), text = launch.grid, launch.source.removeprefix(PRELUDE)
    return CalledFunction(launch.name, text, f"{x} x {y} blocks of {launch.threads} threads")

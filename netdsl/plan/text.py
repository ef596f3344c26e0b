"""A plan and its kernels as text: what is launched when, and where its results lie."""

from __future__ import annotations

from collections.abc import Iterator

from netdsl.ir.text import consts_of, line_of
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.plan.traffic import kind_of
from netdsl.types import dims


def plan_text(plan: Plan) -> str:
    """One line a launch: its kind, what it computes, and where each result is written."""
    lines = [
        f"plan {plan.graph.name}: {len(plan.kernels)} kernels, "
        f"arena {plan.arena:,} bytes, in use at most {plan.peak:,}"
    ]
    wide = len(str(len(plan.kernels)))
    for i, kernel in enumerate(plan.kernels):
        places = (f"{name} {_place(plan, name)}" for name in kernel.outputs)
        lines.append(f"{i:>{wide}}  {kind_of(plan.graph, kernel)}: {', '.join(places)}")
    return "\n".join(lines) + "\n"


def _place(plan: Plan, name: str) -> str:
    place = plan.placements[name]
    where = f"@{place.start}" if place.buffer == ARENA else f"in {place.buffer}"
    return where + _around(place)


def _around(place: Placement) -> str:
    if place.geometry is None:
        return ""
    (top, bottom), (left, right) = place.geometry.halo
    channels = place.geometry.channels
    wide = f" of {channels} channels" if channels != place.layout.shape[-1] else ""
    return f" in zeros {dims((top, bottom, left, right))}{wide}"


def kernels_text(plan: Plan) -> str:
    """Each kernel as a small function: what it reads, its nodes, what it writes."""
    return "\n".join(_kernel_text(plan, k) for k in plan.kernels)


def _kernel_text(plan: Plan, kernel: Kernel) -> str:
    head = f"kernel {kernel.name} ({kind_of(plan.graph, kernel)})"
    if kernel.parts:
        inside = "\n".join(_kernel_text(plan, part) for part in kernel.parts)
        return head + " {\n" + "".join(f"  {line}\n" for line in inside.splitlines()) + "}\n"
    return head + " {\n" + "".join(f"  {line}\n" for line in _body(plan, kernel)) + "}\n"


def _body(plan: Plan, kernel: Kernel) -> Iterator[str]:
    graph = plan.graph
    consts = consts_of(graph)
    for name in kernel.inputs:
        if name not in consts:
            yield f"read {name}: {graph[name].type}"
    for name in kernel.nodes:
        yield line_of(graph[name], consts)
    yield f"write {', '.join(kernel.outputs)}"

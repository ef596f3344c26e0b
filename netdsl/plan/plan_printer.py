"""A plan and its kernels as text: the order of launches, and the location of their results."""

from __future__ import annotations

from collections.abc import Iterator

from netdsl.ir.printer import format_node, label_constants
from netdsl.plan.kernel import Kernel
from netdsl.plan.memory_traffic import find_kernel_label
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.types import dims


def format_plan(plan: Plan) -> str:
    """Formats one line per launch: its kind, what it computes, and where each result is written."""
    lines = [
        f"plan {plan.graph.name}: {len(plan.kernels)} kernels, "
        f"arena {plan.arena_bytes:,} bytes, peak {plan.peak_bytes:,}"
    ]
    wide = len(str(len(plan.kernels)))
    for i, kernel in enumerate(plan.kernels):
        places = (f"{name} {_format_placement(plan, name)}" for name in kernel.outputs)
        lines.append(f"{i:>{wide}}  {find_kernel_label(plan.graph, kernel)}: {', '.join(places)}")
    return "\n".join(lines) + "\n"


def _format_placement(plan: Plan, name: str) -> str:
    placement = plan.placements[name]
    where = f"@{placement.start}" if placement.buffer == ARENA else f"in {placement.buffer}"
    return where + _format_padding(placement)


def _format_padding(place: Placement) -> str:
    if place.padding is None:
        return ""
    (top, bottom), (left, right) = place.padding.halo
    channels = place.padding.channels
    wide = f" of {channels} channels" if channels != place.layout.shape[-1] else ""
    return f" in zeros {dims((top, bottom, left, right))}{wide}"


def format_kernels(plan: Plan) -> str:
    """Formats each kernel as a small function: what it reads, its nodes, what it writes."""
    return "\n".join(_format_kernel(plan, k) for k in plan.kernels)


def _format_kernel(plan: Plan, kernel: Kernel) -> str:
    head = f"kernel {kernel.name} ({find_kernel_label(plan.graph, kernel)})"
    if kernel.parts:
        inside = "\n".join(_format_kernel(plan, part) for part in kernel.parts)
        return head + " {\n" + "".join(f"  {line}\n" for line in inside.splitlines()) + "}\n"
    return head + " {\n" + "".join(f"  {line}\n" for line in _format_body(plan, kernel)) + "}\n"


def _format_body(plan: Plan, kernel: Kernel) -> Iterator[str]:
    graph = plan.graph
    consts = label_constants(graph)
    for name in kernel.inputs:
        if name not in consts:
            yield f"read {name}: {graph[name].type}"
    for name in kernel.nodes:
        yield format_node(graph[name], consts)
    yield f"write {', '.join(kernel.outputs)}"

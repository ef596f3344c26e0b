"""From a plan's kernels to launches of generated code; what has no pattern is told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netdsl.backends.cuda import channels, rows, windows
from netdsl.backends.cuda.geometry import geometry
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import Launch
from netdsl.backends.cuda.maps import launches
from netdsl.backends.cuda.together import together
from netdsl.backends.cuda.trace import Traced, copied, trace
from netdsl.plan.kernel import Kernel, extract_part
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan

Places = Mapping[str, Placement]


def generated(
    plan: Plan, kernel: Kernel, multiprocessors: int, places: Places | None = None
) -> tuple[Launch, ...] | None:
    """The launches that compute a kernel; None where only the references can.

    `places` overrides where values lie, for what follows a product.
    """
    try:
        return _launches(plan, kernel, multiprocessors, places or plan.placements)
    except Unmappable:
        return None


def _launches(
    plan: Plan, kernel: Kernel, multiprocessors: int, places: Places
) -> tuple[Launch, ...]:
    graph = plan.graph
    if kernel.parts:
        parts = [found for p in kernel.parts for found in _side_by_side(plan, p, places)]
        return together(parts, multiprocessors)
    if kernel.kind == "copy" and not kernel.nodes:
        (source,), (target,) = kernel.inputs, kernel.outputs
        return launches(copied(places[source], places[target]), multiprocessors)
    (*_, last) = kernel.outputs
    if graph[last].op == "concat":
        found: list[Launch] = []
        for piece in plan.find_concat_copies(kernel.name):
            found += launches(copied(places[piece.source], piece.target), multiprocessors)
        return tuple(found)
    if any(places[o].padding is not None for o in kernel.outputs):
        raise Unmappable("a value owns zeros around it")
    if kernel.kind == "opaque":
        node = graph[kernel.nodes[-1]]
        args, out = [places[a] for a in node.args], places[node.name]
        return (
            windows.launch(node, args, out)
            or channels.launch(node, args, out)
            or rows.launch(node, args, out)
        )
    try:
        traced_kernel = trace(graph, places, kernel.inputs, kernel.nodes, kernel.outputs)
        return launches(traced_kernel, multiprocessors)
    except Unmappable:
        if len(kernel.outputs) == 1:
            raise
    return _one_by_one(plan, kernel, multiprocessors, places)


def _side_by_side(plan: Plan, kernel: Kernel, places: Places) -> list[Traced]:
    """A part of a launch; where the shapes of its outputs do not go together, a part for each."""
    graph = plan.graph
    try:
        found = trace(graph, places, kernel.inputs, kernel.nodes, kernel.outputs)
        geometry(found)  # which tells whether it can be computed as one
    except Unmappable:
        _check_apart(kernel, kernel.outputs, places)
        alone = [extract_part(graph, kernel, [o], ()) for o in kernel.outputs]
        return [trace(graph, places, k.inputs, k.nodes, k.outputs) for k in alone]
    return [found]


def _check_apart(kernel: Kernel, outputs: Sequence[str], places: Places) -> None:
    """Raises Unmappable where `outputs` may not be written before the others are computed."""
    read = [places[i] for i in kernel.inputs]
    if any(places[o].overlaps(r) for o in outputs for r in read):
        raise Unmappable("an output lies where a later one still reads")


def _one_by_one(
    plan: Plan, kernel: Kernel, multiprocessors: int, places: Places
) -> tuple[Launch, ...]:
    """Each output by itself, where their shapes do not go together."""
    _check_apart(kernel, kernel.outputs[:-1], places)
    found: list[Launch] = []
    for i, output in enumerate(kernel.outputs):
        alone = extract_part(plan.graph, kernel, [output], kernel.outputs[:i])
        found += _launches(plan, alone, multiprocessors, places)
    return tuple(found)

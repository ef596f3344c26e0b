"""Generates the launches of a plan's kernels, except products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netdsl.backends.cuda import lrn_kernels, row_kernels, window_kernels
from netdsl.backends.cuda.batched_launch import batch_launches
from netdsl.backends.cuda.cuda_launch import CudaLaunch
from netdsl.backends.cuda.geometry import choose_geometry
from netdsl.backends.cuda.map_kernels import map_launches
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.lower.trace import TracedKernel, trace, trace_copy
from netdsl.plan.kernel import Kernel, extract_part
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan

Placements = Mapping[str, Placement]


def generate_launches(
    plan: Plan, kernel: Kernel, multiprocessors: int, places: Placements | None = None
) -> tuple[CudaLaunch, ...] | None:
    """Returns the launches that compute a kernel; None if only the references can. `places`
    replaces the plan's placements."""
    try:
        return make_launches(plan, kernel, multiprocessors, places or plan.placements)
    except UnsupportedKernelError:
        return None


def make_launches(
    plan: Plan, kernel: Kernel, multiprocessors: int, places: Placements
) -> tuple[CudaLaunch, ...]:
    """Returns the launches of `generate_launches`. Raises UnsupportedKernelError, with the reason,
    if only the references can compute the kernel."""
    graph = plan.graph
    if kernel.parts:
        parts = [found for p in kernel.parts for found in _trace_part(plan, p, places)]
        return batch_launches(parts, multiprocessors)
    if kernel.kind == "copy" and not kernel.nodes:
        (source,), (target,) = kernel.inputs, kernel.outputs
        return map_launches(trace_copy(places[source], places[target]), multiprocessors)
    (*_, last) = kernel.outputs
    if graph[last].op == "concat":
        found: list[CudaLaunch] = []
        for piece in plan.find_concat_copies(kernel.name):
            found += map_launches(trace_copy(places[piece.source], piece.target), multiprocessors)
        return tuple(found)
    if any(places[o].padding is not None for o in kernel.outputs):
        raise UnsupportedKernelError("an output has a zero halo")
    if kernel.kind == "opaque":
        node = graph[kernel.nodes[-1]]
        args, out = [places[a] for a in node.args], places[node.name]
        return (
            window_kernels.window_launches(node, args, out)
            or lrn_kernels.lrn_launches(node, args, out)
            or row_kernels.row_launches(node, args, out)
        )
    try:
        traced_kernel = trace(graph, places, kernel.inputs, kernel.nodes, kernel.outputs)
        return map_launches(traced_kernel, multiprocessors)
    except UnsupportedKernelError:
        if len(kernel.outputs) == 1:
            raise
    return _generate_per_output(plan, kernel, multiprocessors, places)


def _trace_part(plan: Plan, kernel: Kernel, places: Placements) -> list[TracedKernel]:
    """Traces a part of a batched launch; one part per output if one geometry does not fit all."""
    graph = plan.graph
    try:
        found = trace(graph, places, kernel.inputs, kernel.nodes, kernel.outputs)
        choose_geometry(found)  # raises if no geometry fits all outputs
    except UnsupportedKernelError:
        _check_separable(kernel, kernel.outputs, places)
        single_output_kernels = [extract_part(graph, kernel, [o], ()) for o in kernel.outputs]
        return [trace(graph, places, k.inputs, k.nodes, k.outputs) for k in single_output_kernels]
    return [found]


def _check_separable(kernel: Kernel, outputs: Sequence[str], places: Placements) -> None:
    """Raises UnsupportedKernelError if `outputs` overlap an input that other outputs still read."""
    input_places = [places[i] for i in kernel.inputs]
    if any(places[o].overlaps(r) for o in outputs for r in input_places):
        raise UnsupportedKernelError("an output overlaps an input of a later one")


def _generate_per_output(
    plan: Plan, kernel: Kernel, multiprocessors: int, places: Placements
) -> tuple[CudaLaunch, ...]:
    """Generates each output separately, if no geometry fits all of them."""
    _check_separable(kernel, kernel.outputs[:-1], places)
    found: list[CudaLaunch] = []
    for i, output in enumerate(kernel.outputs):
        single_output_kernel = extract_part(plan.graph, kernel, [output], kernel.outputs[:i])
        found += make_launches(plan, single_output_kernel, multiprocessors, places)
    return tuple(found)

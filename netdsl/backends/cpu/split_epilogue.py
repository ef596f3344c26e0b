"""A product whose tiles cannot take what its kernel does next: that comes behind it."""

from __future__ import annotations

from dataclasses import replace

from netdsl.backends.cpu.aligned_allocator import allocate_floats
from netdsl.backends.cpu.anchor_kernels import make_anchor_tasks
from netdsl.backends.cpu.map_kernels import KernelTasks, PlanMemory, make_map_tasks
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import make_contiguous
from netdsl.plan.placement import Placement


def make_split_tasks(memory: PlanMemory, kernel: Kernel) -> KernelTasks:
    """The tasks of the product alone, then those of the other nodes as a map."""
    name = kernel.name
    epilogue_outputs = tuple(o for o in kernel.outputs if o != name)
    node = memory.plan.graph[name]
    if not epilogue_outputs or not set(node.args) <= set(kernel.inputs):
        raise UnsupportedKernelError("a product that cannot stand alone")
    buffer = allocate_floats(node.type.size)
    if name not in kernel.outputs:
        place = Placement(f"apart {name}", node.type.dtype, make_contiguous(node.type.shape))
        plan = replace(memory.plan, placements={**memory.plan.placements, name: place})
        memory = PlanMemory(plan, {**memory.buffers, place.buffer: buffer})
    tasks = make_anchor_tasks(memory, Kernel(name, "anchor", (name,), node.args, (name,)))
    epilogue_nodes = tuple(n for n in kernel.nodes if n != name)
    inputs = (*kernel.inputs, name)
    tasks.append_stages(
        make_map_tasks(
            memory, Kernel(epilogue_outputs[-1], "map", epilogue_nodes, inputs, epilogue_outputs)
        )
    )
    tasks.keepalive.append(buffer)
    return tasks

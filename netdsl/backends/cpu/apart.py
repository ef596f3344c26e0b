"""A product whose tiles cannot take what its kernel does next: that comes behind it."""

from __future__ import annotations

from dataclasses import replace

from netdsl.backends.cpu.anchors import anchor_launch
from netdsl.backends.cpu.expression import Unsupported
from netdsl.backends.cpu.maps import Launch, Memory, map_launch
from netdsl.backends.cpu.room import floats
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import make_contiguous
from netdsl.plan.placement import Placement


def apart_launch(memory: Memory, kernel: Kernel) -> Launch:
    """The tasks of the product alone, then those of the other nodes as a map."""
    name = kernel.name
    rest = tuple(o for o in kernel.outputs if o != name)
    node = memory.plan.graph[name]
    if not rest or not set(node.args) <= set(kernel.inputs):
        raise Unsupported("a product that cannot stand alone")
    own = floats(node.type.size)
    if name not in kernel.outputs:
        place = Placement(f"apart {name}", node.type.dtype, make_contiguous(node.type.shape))
        plan = replace(memory.plan, placements={**memory.plan.placements, name: place})
        memory = Memory(plan, {**memory.buffers, place.buffer: own})
    launch = anchor_launch(memory, Kernel(name, "anchor", (name,), node.args, (name,)))
    others = tuple(n for n in kernel.nodes if n != name)
    inputs = (*kernel.inputs, name)
    launch.then(map_launch(memory, Kernel(rest[-1], "map", others, inputs, rest)))
    launch.kept.append(own)
    return launch

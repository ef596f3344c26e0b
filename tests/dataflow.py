"""Runs a plan on numbers that identify elements: each kernel must find the expected ones in memory.

Every value that a kernel computes gets fresh numbers; views and concatenations get those of their
operands. Anything that is overwritten too early, is outside its buffer, or was never written is
therefore read as a different number, without any model of lifetimes.
"""

from __future__ import annotations

import numpy as np

from netdsl.ops import OPS
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array

ZERO = -1


class DataflowChecker:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.memory = {
            name: np.full(size, -2, np.int64)
            for name, size in {**plan.buffers, ARENA: plan.arena_bytes}.items()
        }
        self.content: dict[str, Array] = {}
        self.next = 0
        for name in plan.buffers:
            self.fresh(name)
            self.put(plan.placements[name], self.content[name])

    def run(self) -> None:
        for kernel in self.plan.kernels:
            self.launch(kernel)
        for label, name in self.plan.graph.outputs.items():
            self.expect(f"output {label}", name)
        for state, name in self.plan.graph.updates.items():
            found = self.get(self.plan.placements[state])
            assert np.array_equal(found, self.value(name)), f"{state} is not updated"

    def launch(self, kernel: Kernel) -> None:
        for name in kernel.inputs:
            self.expect(kernel.name, name)
        for name in kernel.outputs:
            self.check_overwritten(kernel, name)
        if not kernel.nodes:
            (source,), (target,) = kernel.inputs, kernel.outputs
            self.put(self.plan.placements[target], self.value(source))
            return
        for name in kernel.outputs:
            node = self.plan.graph[name]
            if node.op == "concat":
                for piece in self.plan.find_concat_copies(name):
                    self.put(piece.target, self.value(piece.source))
                continue
            if OPS[node.op].kind != "view":
                self.fresh(name)
            self.put(self.plan.placements[name], self.value(name))

    def check_overwritten(self, kernel: Kernel, name: str) -> None:
        """Asserts that a kernel overwrites its own operand only if it reads and writes the same
        elements one by one."""
        place = self.plan.placements[name]
        if self.plan.graph[name].op == "concat":
            return
        for other in kernel.inputs:
            theirs = self.plan.placements[other]
            same = theirs.buffer == place.buffer and theirs.itemsize == place.itemsize
            if same and np.array_equal(_element_addresses(theirs), _element_addresses(place)):
                continue
            apart = theirs.buffer != place.buffer or not _byte_addresses(theirs) & _byte_addresses(
                place
            )
            assert apart, f"{kernel.name} writes {name} over {other}"

    def value(self, name: str) -> Array:
        """The numbers of a value's elements."""
        if name not in self.content:
            node = self.plan.graph[name]
            args = [self.value(a) for a in node.args]
            self.content[name] = OPS[node.op].reference(np, *args, **node.attrs)
        return self.content[name]

    def fresh(self, name: str) -> None:
        kind = self.plan.graph[name].type
        self.content[name] = np.arange(self.next, self.next + kind.size).reshape(kind.shape)
        self.next += kind.size

    def expect(self, who: str, name: str) -> None:
        place = self.plan.placements[name]
        assert np.array_equal(self.get(place), self.value(name)), f"{who} reads another {name}"
        if place.padding is not None:
            around = self.at(place, place.padded_layout())
            inside = np.isin(around, self.value(name))
            assert np.all(inside | (around == ZERO)), f"{who} finds no zeros around {name}"

    def at(self, place: Placement, layout: Layout) -> Array:
        """The content of the first byte of each element of a layout."""
        return self.memory[place.buffer][_element_offsets(layout) * place.itemsize]

    def get(self, place: Placement) -> Array:
        return self.at(place, place.layout)

    def put(self, place: Placement, numbers: Array) -> None:
        if place.padding is not None:
            whole = place.padded_layout()
            self.write(place, whole, np.full(whole.shape, ZERO))
        self.write(place, place.layout, numbers)

    def write(self, place: Placement, layout: Layout, numbers: Array) -> None:
        first = _element_offsets(layout).reshape(-1) * place.itemsize
        buffer = self.memory[place.buffer]
        assert first.size == 0 or (first.min() >= 0 and first.max() + place.itemsize <= buffer.size)
        for byte in range(place.itemsize):
            buffer[first + byte] = numbers.reshape(-1)


def _element_offsets(layout: Layout) -> Array:
    """The offset of each element, counted in elements."""
    index = np.full(layout.shape, layout.offset)
    for axis, stride in enumerate(layout.strides):
        shape = [-1 if a == axis else 1 for a in range(len(layout.shape))]
        index = index + stride * np.arange(layout.shape[axis]).reshape(shape)
    return index


def _element_addresses(place: Placement) -> Array:
    """The address of the first byte of each element, in row-major order."""
    return _element_offsets(place.layout).reshape(-1) * place.itemsize


def _byte_addresses(place: Placement) -> set[int]:
    return {int(f) + i for f in _element_addresses(place) for i in range(place.itemsize)}

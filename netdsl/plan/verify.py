"""The plan's verifier: what must hold before a plan is run, found out anew from the plan alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdsl.errors import internal
from netdsl.ops import OPS
from netdsl.plan.flow import Flow
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan


@dataclass
class _Life:
    """When a stored value is written first and read last, counted in kernels."""

    name: str
    place: Placement
    birth: int
    death: int


def verify_plan(plan: Plan) -> Plan:
    """`plan` itself, when it is sound. Raises AssertionError that names the kernels at fault.

    Every kernel follows those that it reads from; every value lies inside its buffer; no two values
    that are needed at one time share a byte, but a branch and its concatenation; a state is written
    over after its last reader.
    """
    flow = Flow(plan.graph)
    _verify_places(plan)
    _verify_order(plan, flow)
    lives = _lives(plan, flow)
    _verify_apart(plan, flow, lives)
    _verify_updates(plan, flow)
    return plan


def _verify_places(plan: Plan) -> None:
    for name, place in plan.placements.items():
        size = plan.arena if place.buffer == ARENA else plan.buffers[place.buffer]
        first, last = place.span()
        if first < 0 or last > size or min(place.layout.strides, default=0) < 0:
            raise internal(f"{name} lies outside {place.buffer}: {first} to {last} of {size}")


def _verify_order(plan: Plan, flow: Flow) -> None:
    done = {n for n in flow.nodes if OPS[flow.nodes[n].op].kind == "leaf"}
    for kernel in plan.kernels:
        for name in kernel.inputs:
            base = flow.base[name]
            if base not in done and not _joined(flow, base, done):
                raise internal(f"{kernel.name} reads {name} before it is written")
        done.update(kernel.outputs)
    for label, name in plan.graph.outputs.items():
        if flow.base[name] not in done and not _joined(flow, flow.base[name], done):
            raise internal(f"no kernel writes the output {label}")


def _joined(flow: Flow, name: str, done: set[str]) -> bool:
    """Whether a concatenation is there because all its branches are."""
    node = flow.nodes[name]
    return node.op == "concat" and all(
        flow.base[a] in done or _joined(flow, flow.base[a], done) for a in node.args
    )


def _lives(plan: Plan, flow: Flow) -> list[_Life]:
    lives: dict[str, _Life] = {}

    def touch(name: str, now: int) -> None:
        place = plan.placements[name]
        if place.buffer == ARENA:
            life = lives.setdefault(name, _Life(name, place, now, now))
            life.death = now
        if flow.nodes[name].op == "concat":
            copied = {piece.source for piece in plan.pieces(name)}
            for a in flow.nodes[name].args:
                if a not in copied:
                    touch(a, now)

    for i, kernel in enumerate(plan.kernels):
        for name in kernel.inputs:
            touch(flow.base[name], i)
        for name in kernel.outputs:
            touch(name, i)
    for name in plan.graph.outputs.values():
        touch(flow.base[name], len(plan.kernels))
    return list(lives.values())


def _verify_apart(plan: Plan, flow: Flow, lives: list[_Life]) -> None:
    spans = np.array([life.place.span() for life in lives]).reshape(-1, 2)
    birth = np.array([life.birth for life in lives])
    death = np.array([life.death for life in lives])
    for i, a in enumerate(lives):
        rest = slice(i + 1, None)
        near = (spans[rest, 0] < spans[i, 1]) & (spans[rest, 1] > spans[i, 0])
        both = (birth[rest] <= death[i]) & (death[rest] >= birth[i])
        for j in np.flatnonzero(near & both):
            b = lives[i + 1 + int(j)]
            if not _may_share(plan, flow, a, b):
                raise internal(f"{a.name} and {b.name} share memory while both are needed")


def _may_share(plan: Plan, flow: Flow, a: _Life, b: _Life) -> bool:
    if a.birth > b.birth:
        a, b = b, a
    handed = a.death == b.birth and _element_by_element(plan.kernels[b.birth], flow, a, b)
    return handed or _related(flow, a.name, b.name) or _disjoint(a.place, b.place)


def _element_by_element(kernel: Kernel, flow: Flow, a: _Life, b: _Life) -> bool:
    """Whether a kernel may write `b` over its operand `a`."""
    edges = [e for n in kernel.nodes for e in flow.edges.get(n, ()) if e.base == a.name]
    alike = a.place.layout == b.place.layout and a.place.dtype == b.place.dtype
    one_sweep = kernel.kind in ("map", "anchor") and all(
        flow.kind(n) != "reduce" for n in kernel.nodes
    )
    return alike and one_sweep and bool(edges) and all(e.full for e in edges)


def _related(flow: Flow, a: str, b: str) -> bool:
    """Whether one is the concatenation that the other is a branch of, at any depth."""
    return b in set(_branches(flow, a)) or a in set(_branches(flow, b))


def _branches(flow: Flow, name: str) -> Iterator[str]:
    if flow.nodes[name].op == "concat":
        for arg in flow.nodes[name].args:
            yield arg
            yield from _branches(flow, arg)


def _disjoint(a: Placement, b: Placement) -> bool:
    """Whether two boxes in one grid have no element in common: how far apart they begin, told in
    steps along each axis, is beyond the first one's size on some axis."""
    one, two = a.whole(), b.whole()
    if a.dtype != b.dtype or one.strides != two.strides:
        return False
    if one.offset > two.offset:
        one, two = two, one
    rest = two.offset - one.offset
    order = sorted(range(len(one.strides)), key=lambda i: -one.strides[i])
    steps = {}
    for i in order:
        steps[i], rest = divmod(rest, max(one.strides[i], 1))
    return any(steps[i] >= one.shape[i] for i in order if one.shape[i] > 1 or steps[i])


def _verify_updates(plan: Plan, flow: Flow) -> None:
    writer = {
        plan.placements[o].buffer: i
        for i, k in enumerate(plan.kernels)
        for o in k.outputs
        if plan.placements[o].buffer in plan.graph.updates
    }
    for state in plan.graph.updates:
        if state not in writer:
            raise internal(f"{state} is never updated")
    for i, kernel in enumerate(plan.kernels):
        for name in kernel.inputs:
            base = flow.base[name]
            if writer.get(base, len(plan.kernels)) < i:
                raise internal(f"{kernel.name} reads {base} after it was written over")

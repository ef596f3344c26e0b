"""The plan verifier: checks the invariants of a plan before it runs, derived from the plan
alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from netdsl.errors import internal_error
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.ops import OPS
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import compute_view_layout
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.plan.state_updates import has_rereads
from netdsl.types import Node


@dataclass
class _Lifetime:
    """When a value of the arena is first written and last read, counted in kernels. `root` is the
    outermost concatenation that contains it, or the value itself."""

    name: str
    placement: Placement
    root: str
    birth: int
    death: int


@pause_garbage_collection()
def verify_plan(plan: Plan) -> Plan:
    """Returns `plan` itself if it is valid. Raises AssertionError that names the kernels at fault.

    Every value is inside its buffer, every view where its base implies, every branch that is not
    copied in place; every kernel declares everything that it reads and follows those that it reads
    from; no two values that are needed at the same time share a byte, except a branch and its
    concatenation; every state is written once, with its update, after its last reader or by a
    kernel that reads it elementwise.
    """
    return _PlanVerifier(plan).run()


class _PlanVerifier:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.flow = plan.flow
        self.concats = [n for n in plan.graph.find_by_op("concat") if n.name in plan.placements]
        self.copied_branches = {
            n.name: {p.source for p in plan.find_concat_copies(n.name)} for n in self.concats
        }
        self.written_at = {o: i for i, k in enumerate(plan.kernels) for o in k.outputs}
        self._complete_concats()

    def run(self) -> Plan:
        self._verify_placements()
        self._verify_operands()
        self._verify_order()
        self._verify_disjoint(self._find_lifetimes())
        self._verify_updates()
        return self.plan

    def _find_in_place_branches(self, concat: Node) -> list[str]:
        """Returns the branches that are written directly into the concatenation."""
        return [a for a in concat.args if a not in self.copied_branches[concat.name]]

    def _complete_concats(self) -> None:
        """A concatenation is complete with the last of its branches, copied or written in place."""
        for n in self.concats:
            parts = [
                *self._find_in_place_branches(n),
                *([n.name] if self.copied_branches[n.name] else []),
            ]
            times = [self.written_at[p] for p in parts if p in self.written_at]
            if len(times) == len(parts):
                self.written_at[n.name] = max(times)
            else:
                self.written_at.pop(n.name, None)

    def _verify_placements(self) -> None:
        plan = self.plan
        for name, place in plan.placements.items():
            size = plan.arena_bytes if place.buffer == ARENA else plan.buffers[place.buffer]
            first, last = place.byte_range()
            if first < 0 or last > size or min(place.layout.strides, default=0) < 0:
                raise internal_error(
                    f"{name} is outside {place.buffer}: {first} to {last} of {size}"
                )
            if self.flow.base[name] != name:
                base = plan.placements[plan.graph[name].args[0]]
                if (place.buffer, place.layout) != (
                    base.buffer,
                    compute_view_layout(base.layout, plan.graph[name]),
                ):
                    raise internal_error(f"the view {name} is not where its base implies")
        for concat in self.concats:
            padding = plan.placements[concat.name].padding
            halo = padding and padding.halo
            for a in self._find_in_place_branches(concat):
                own = plan.placements[a].padding
                if halo != (own and own.halo):
                    raise internal_error(f"no kernel writes the zeros around {a} in {concat.name}")

    def _verify_operands(self) -> None:
        """Lifetimes follow from the reads that kernels declare, so these must be complete."""
        for kernel in self.plan.kernels:
            for part in kernel.parts or (kernel,):
                known = {*part.nodes, *part.inputs}
                for node in (self.plan.graph[n] for n in part.nodes):
                    inside = self._find_in_place_branches(node) if node.op == "concat" else ()
                    undeclared = [a for a in node.args if a not in known and a not in inside]
                    if undeclared:
                        raise internal_error(
                            f"{kernel.name} does not declare that it reads {undeclared[0]}"
                        )

    def _verify_order(self) -> None:
        for i, kernel in enumerate(self.plan.kernels):
            for name in kernel.inputs:
                if not self._is_written(name, i):
                    raise internal_error(f"{kernel.name} reads {name} before it is written")
        for label, name in self.plan.graph.outputs.items():
            if not self._is_written(name, len(self.plan.kernels)):
                raise internal_error(f"no kernel writes the output {label}")

    def _is_written(self, name: str, now: int) -> bool:
        base = self.flow.base[name]
        leaf = OPS[self.flow.nodes[base].op].kind == "leaf"
        return leaf or self.written_at.get(base, now) < now

    def _find_lifetimes(self) -> list[_Lifetime]:
        lives: dict[str, _Lifetime] = {}

        def touch(name: str, now: int) -> None:
            place = self.plan.placements[name]
            if place.buffer == ARENA:
                birth = min(self.written_at.get(name, now), now)
                life = lives.setdefault(name, _Lifetime(name, place, name, birth, now))
                life.death = max(life.death, now)

        for i, kernel in enumerate(self.plan.kernels):
            for name in (*(self.flow.base[a] for a in kernel.inputs), *kernel.outputs):
                touch(name, i)
        for name in self.plan.graph.outputs.values():
            touch(self.flow.base[name], len(self.plan.kernels))
        self._extend_branch_lifetimes(lives)
        return list(lives.values())

    def _extend_branch_lifetimes(self, lives: dict[str, _Lifetime]) -> None:
        """A branch is needed as long as its concatenation, and a concatenation from its first
        branch on."""
        for concat in (n for n in reversed(self.concats) if n.name in lives):
            whole = lives[concat.name]
            for a in self._find_in_place_branches(concat):
                own = _Lifetime(a, self.plan.placements[a], a, self.written_at[a], whole.death)
                branch = lives.setdefault(a, own)
                branch.root, branch.death = whole.root, max(branch.death, whole.death)
        for concat in (n for n in self.concats if n.name in lives):
            births = [lives[a].birth for a in self._find_in_place_branches(concat)]
            lives[concat.name].birth = min([lives[concat.name].birth, *births])

    def _verify_disjoint(self, lives: list[_Lifetime]) -> None:
        """Branches of one concatenation are exempt: `_verify_placements` has already checked their
        positions."""
        spans = np.array([life.placement.byte_range() for life in lives]).reshape(-1, 2)
        birth = np.array([life.birth for life in lives])
        death = np.array([life.death for life in lives])
        roots = {name: i for i, name in enumerate(dict.fromkeys(x.root for x in lives))}
        root = np.array([roots[life.root] for life in lives])
        for i, a in enumerate(lives):
            rest = slice(i + 1, None)
            overlap_in_memory = (spans[rest, 0] < spans[i, 1]) & (spans[rest, 1] > spans[i, 0])
            overlap_in_time = (birth[rest] <= death[i]) & (death[rest] >= birth[i])
            for j in np.flatnonzero(overlap_in_memory & overlap_in_time & (root[rest] != root[i])):
                b = lives[i + 1 + int(j)]
                if not self._is_overwritten_in_place(*((a, b) if a.birth <= b.birth else (b, a))):
                    raise internal_error(
                        f"{a.name} and {b.name} share memory while both are needed"
                    )

    def _is_overwritten_in_place(self, a: _Lifetime, b: _Lifetime) -> bool:
        """Returns whether `b` overwrites the operand `a` of its kernel, which nothing needs
        afterwards."""
        if a.death != b.birth or b.birth >= len(self.plan.kernels):
            return False
        kernel = self.plan.kernels[b.birth]
        has_same_layout = (
            a.placement.layout == b.placement.layout and a.placement.dtype == b.placement.dtype
        )
        if kernel.kind == "collective":
            (operand,) = self.plan.graph[b.name].args
            layout = self.plan.placements[operand].layout
            is_whole = self.flow.nodes[operand].type.size == self.flow.nodes[a.name].type.size
            is_operand = self.flow.base[operand] == a.name and is_whole
            return is_operand and layout.has_same_elements(b.placement.layout)
        is_single_domain = kernel.kind in ("map", "anchor") and not kernel.parts
        has_no_reduction = all(self.flow.op_kind(n) != "reduce" for n in kernel.nodes)
        return (
            has_same_layout
            and is_single_domain
            and has_no_reduction
            and self._find_elementwise_reads(kernel).get(a.name, False)
        )

    def _find_elementwise_reads(self, kernel: Kernel) -> dict[str, bool]:
        """Returns all values that a kernel reads, and whether it reads them elementwise."""
        found: dict[str, bool] = {}
        for name in kernel.nodes:
            for e in self.flow.edges.get(name, ()):
                found[e.base] = e.is_one_to_one and found.get(e.base, True)
        return found

    def _verify_updates(self) -> None:
        plan, writer = self.plan, dict[str, int]()
        for i, kernel in enumerate(plan.kernels):
            overwritten: dict[str, str] = {}
            for name in kernel.outputs:
                buffer = plan.placements[name].buffer
                if buffer == ARENA:
                    continue
                value = name if kernel.nodes else kernel.inputs[0]
                if buffer in writer or plan.graph.updates.get(buffer) != value:
                    raise internal_error(f"{kernel.name} writes {value} over {buffer}")
                writer[buffer] = i
                overwritten[buffer] = name
            self._verify_overwriting(kernel, overwritten)
        for state in plan.graph.updates:
            if state not in writer:
                raise internal_error(f"{state} is never updated")
        for i, kernel in enumerate(plan.kernels):
            for name in kernel.inputs:
                if writer.get(self.flow.base[name], i) < i:
                    raise internal_error(f"{kernel.name} reads {name} after it was overwritten")

    def _verify_overwriting(self, kernel: Kernel, overwritten: Mapping[str, str]) -> None:
        """A kernel that overwrites states must read them elementwise, and only in the part that
        writes the new value."""
        for part in (kernel.parts or (kernel,)) if overwritten else ():
            has_reread = has_rereads(self.flow.nodes[n] for n in part.nodes)
            for state, is_elementwise in self._find_elementwise_reads(part).items():
                if state in overwritten and (
                    has_reread or not is_elementwise or overwritten[state] not in part.outputs
                ):
                    raise internal_error(f"{kernel.name} overwrites {state} while reading it")

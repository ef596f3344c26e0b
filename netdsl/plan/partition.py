"""The partitioner: which nodes one launch computes, decided by the bytes that it saves.

Some values must lie in memory: results of products, reductions and opaque operators, what those
read, and what a step gives out. Every other value is computed where it is needed, again in each
kernel, unless storing it moves fewer bytes.
"""

from __future__ import annotations

from netdsl.ops import OPS
from netdsl.plan.bodies import Bodies, Body
from netdsl.plan.dag import kernel_dag
from netdsl.plan.flow import Flow
from netdsl.plan.fusion import Fusion, cheap
from netdsl.plan.grouping import Group, Grouping
from netdsl.plan.kernel import Kernel, KernelKind
from netdsl.plan.traffic import moved
from netdsl.types import find_reachable

_ROUNDS = 3


def partition(flow: Flow, fusion: Fusion) -> tuple[Kernel, ...]:
    """The kernels of the graph that flows so, in the order of its nodes.

    Every value that an output, an update or another kernel needs is written by exactly one.
    """
    if not fusion.maps:
        return tuple(_alone(flow, name) for name in flow.edges)
    return _Partitioner(flow, fusion).kernels()


def _alone(flow: Flow, name: str) -> Kernel:
    kind = flow.kind(name)
    inputs = tuple(dict.fromkeys(flow.nodes[name].args))
    known: KernelKind = "anchor" if kind == "anchor" else "copy" if kind == "copy" else "opaque"
    if kind in ("elementwise", "reduce"):
        known = "map"
    return Kernel(name, known, (name,), inputs, (name,))


class _Partitioner:
    def __init__(self, flow: Flow, fusion: Fusion) -> None:
        self.flow = flow
        self.fusion = fusion
        self.bodies = Bodies(flow, fusion)
        self.grouping = Grouping(self.bodies, fusion)

    def kernels(self) -> tuple[Kernel, ...]:
        for _ in range(_ROUNDS):
            if not self._improve():
                break
            self.grouping = Grouping(self.bodies, self.fusion)
        return tuple(self._finish())

    def _improve(self) -> bool:
        """Stores or stops storing values one by one where that moves fewer bytes."""
        users: dict[str, list[Group]] = {}
        for g in self.grouping.groups:
            for name in self._settled(g.sinks, g).nodes:
                users.setdefault(name, []).append(g)
        changed = False
        for name in self.flow.edges:
            if name in self.bodies.must or len(self.flow.readers.get(name, ())) < 2:
                continue
            if name in self.bodies.stored:
                changed |= self._unstore(name)
            elif len(users.get(name, ())) > 1:
                changed |= self._store(name, users[name])
        return changed

    def _store(self, name: str, users: list[Group]) -> bool:
        first = min(g.depth for g in users)
        later = [g for g in users if g.depth > first]
        before = sum(self._bytes_read(g.sinks, g) for g in later)
        self.bodies.stored.add(name)
        after = sum(self._bytes_read(g.sinks, g) for g in later) + self.flow.nbytes(name)
        if not later or after >= before:
            self.bodies.stored.discard(name)
            return False
        return True

    def _unstore(self, name: str) -> bool:
        own = self.grouping.group[name]
        placed = (s for s in self.bodies.stored_readers(name) if s in self.grouping.group)
        users = {id(self.grouping.group[s]): self.grouping.group[s] for s in placed}
        others = [g for g in users.values() if g is not own]
        rest = [s for s in own.sinks if s != name]
        before = sum(self._bytes_read(g.sinks, g) for g in (*others, own))
        self.bodies.stored.discard(name)
        after = sum(self._bytes_read(g.sinks, g) for g in others) + self._bytes_read(rest, own)
        if own.kind == "anchor" or after >= before + self.flow.nbytes(name):
            self.bodies.stored.add(name)
            return False
        return True

    def _bytes_read(self, sinks: list[str], group: Group) -> int:
        return sum(self.flow.nbytes(b) for b in self._settled(sinks, group).bases)

    def _settled(self, sinks: list[str], group: Group) -> Body:
        """What a kernel computes and reads in the end: stored values are computed again where it
        reads all that they are made of."""
        flow = self.flow
        body = self.bodies.body(sinks, group.sinks)
        if group.kind != "map" or not sinks:
            return body
        domain = max(flow.domain(s) for s in sinks)
        again: set[str] = set()
        for e in list(body.reads.values()):
            full = e.full and flow.nodes[e.base].type.size == domain and e.base in flow.edges
            if not full or flow.kind(e.base) != "elementwise":
                continue
            if flow.nodes[e.base].region != flow.nodes[sinks[0]].region:
                continue
            trial = self.bodies.body(sinks, group.sinks, {*again, e.base})
            added = trial.nodes - body.nodes
            wide = {b for b in trial.bases if flow.nodes[b].type.size >= domain}
            if wide <= body.bases - {e.base} and all(cheap(flow.nodes[n].op) for n in added):
                body = trial
                again.add(e.base)
        return body

    # kernels

    def _finish(self) -> list[Kernel]:
        """The groups as kernels, without what turned out not to be needed."""
        needed = set(self.flow.roots)
        found: list[Kernel] = []
        for g in sorted(self.grouping.groups, key=lambda g: g.depth, reverse=True):
            outputs = [s for s in g.sinks if s in needed]
            if outputs:
                body = self._settled(outputs, g)
                needed |= body.bases
                found.append(self._kernel(g, body, outputs))
        place = self.flow.place
        found.sort(key=lambda k: max(place[o] for o in k.outputs))
        together = {
            "early": [k for k in found if self._early(k)],
            "totals": self._totals(found) if self.fusion.totals else [],
            "updates": self._late(found) if self.fusion.batch else [],
        }
        for name, parts in together.items():
            found = self._together(name, parts, found)
        return found

    def _kernel(self, group: Group, body: Body, outputs: list[str]) -> Kernel:
        place = self.flow.place
        nodes = tuple(sorted(body.nodes, key=place.__getitem__))
        anchors = [n for n in nodes if group.kind == "anchor" and self.flow.kind(n) == "anchor"]
        inputs = tuple(sorted(body.reads, key=place.__getitem__))
        written = tuple(sorted(outputs, key=place.__getitem__))
        return Kernel(anchors[0] if anchors else written[-1], group.kind, nodes, inputs, written)

    def _early(self, kernel: Kernel) -> bool:
        """Whether a map is small and reads nothing of the step, as what casts a weight does."""
        flow = self.flow
        if kernel.kind != "map" or any(flow.kind(n) == "reduce" for n in kernel.nodes):
            return False
        there = all(OPS[flow.nodes[flow.base[i]].op].kind == "leaf" for i in kernel.inputs)
        kept = flow.roots.intersection(kernel.outputs) or flow.nodes[kernel.name].region
        return there and not kept and moved(flow.graph, kernel) <= self.fusion.early

    def _totals(self, kernels: list[Kernel]) -> list[Kernel]:
        """The maps that only add up whole tensors, and that no other of these waits for."""
        flow = self.flow
        whole = {
            i
            for i, k in enumerate(kernels)
            if k.kind == "map"
            and all(flow.kind(o) == "reduce" and flow.nodes[o].type.size == 1 for o in k.outputs)
            and not flow.nodes[k.name].region
        }
        dag = kernel_dag(flow, kernels)
        before = {j for i in whole for j in dag.predecessors(i)}
        waited_for = find_reachable(dag.reverse(copy=False), before)
        return [kernels[i] for i in sorted(whole - waited_for)]

    def _late(self, kernels: list[Kernel]) -> list[Kernel]:
        """The updates that nothing else waits for."""
        flow = self.flow
        read = {flow.base[i] for k in kernels for i in k.inputs}
        shown = {flow.base[v] for v in flow.graph.outputs.values()}
        free = {flow.base[v] for v in flow.graph.updates.values()} - read - shown
        last = [k for k in kernels if k.kind == "map" and free.issuperset(k.outputs)]
        return [k for k in last if not any(flow.kind(n) == "reduce" for n in k.nodes)]

    def _together(self, name: str, parts: list[Kernel], kernels: list[Kernel]) -> list[Kernel]:
        """Kernels, of which some become one launch over many small domains; it stands where the
        first of these stood."""
        if len(parts) < 2:
            return kernels
        gone = {k.name for k in parts}
        at = min(i for i, k in enumerate(kernels) if k.name in gone)
        launch, rest = self._launch(name, parts), [k for k in kernels if k.name not in gone]
        return [*rest[:at], launch, *rest[at:]]

    def _launch(self, name: str, parts: list[Kernel]) -> Kernel:
        def joined(field: str) -> tuple[str, ...]:
            found = {v for k in parts for v in getattr(k, field)}
            return tuple(sorted(found, key=self.flow.place.__getitem__))

        return Kernel(
            name, "map", joined("nodes"), joined("inputs"), joined("outputs"), tuple(parts)
        )

"""The partitioner: decides which nodes one launch computes, by the bytes that this saves.

Some values must be in memory: results of products, reductions and opaque operators, what those
read, and the outputs of a step. Every other value is computed where it is needed, again in each
kernel, unless storing it moves fewer bytes.
"""

from __future__ import annotations

from netdsl.ops import OPS
from netdsl.plan.collectives import merge_buckets
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.fusion import FusionOptions, is_cheap
from netdsl.plan.kernel import Kernel
from netdsl.plan.kernel_body import KernelBodies, KernelBody
from netdsl.plan.kernel_dag import build_kernel_dag
from netdsl.plan.kernel_grouping import KernelGroup, KernelGrouping, find_kernel_kind
from netdsl.plan.memory_traffic import count_moved_bytes
from netdsl.types import find_reachable

_MAX_ROUNDS = 3


def partition_kernels(flow: DataflowGraph, fusion: FusionOptions) -> tuple[Kernel, ...]:
    """Returns the kernels of the graph, in graph order.

    Every value that an output, an update or another kernel needs is written by exactly one kernel.
    """
    if not fusion.can_fuse_maps:
        return merge_buckets(flow, [_make_single_node_kernel(flow, name) for name in flow.edges])
    return _Partitioner(flow, fusion).make_kernels()


def _make_single_node_kernel(flow: DataflowGraph, name: str) -> Kernel:
    inputs = tuple(dict.fromkeys(flow.nodes[name].args))
    return Kernel(name, find_kernel_kind(flow, name), (name,), inputs, (name,))


class _Partitioner:
    def __init__(self, flow: DataflowGraph, fusion: FusionOptions) -> None:
        self.flow = flow
        self.fusion = fusion
        self.bodies = KernelBodies(flow, fusion)
        self.grouping = KernelGrouping(self.bodies, fusion)

    def make_kernels(self) -> tuple[Kernel, ...]:
        for _ in range(_MAX_ROUNDS):
            if not self._improve():
                break
            self.grouping = KernelGrouping(self.bodies, self.fusion)
        return tuple(self._finish_kernels())

    def _improve(self) -> bool:
        """Stores or inlines values one by one wherever that moves fewer bytes."""
        users: dict[str, list[KernelGroup]] = {}
        for g in self.grouping.groups:
            for name in self._build_final_body(g.sinks, g).nodes:
                users.setdefault(name, []).append(g)
        changed = False
        for name in self.flow.edges:
            if name in self.bodies.required or len(self.flow.readers.get(name, ())) < 2:
                continue
            if name in self.bodies.stored:
                changed |= self._try_inlining(name)
            elif len(users.get(name, ())) > 1:
                changed |= self._try_storing(name, users[name])
        return changed

    def _try_storing(self, name: str, users: list[KernelGroup]) -> bool:
        first = min(g.depth for g in users)
        later = [g for g in users if g.depth > first]
        before = sum(self._bytes_read(g.sinks, g) for g in later)
        self.bodies.stored.add(name)
        after = sum(self._bytes_read(g.sinks, g) for g in later) + self.flow.nbytes(name)
        if not later or after >= before:
            self.bodies.stored.discard(name)
            return False
        return True

    def _try_inlining(self, name: str) -> bool:
        own_group = self.grouping.group_by_sink[name]
        placed = (
            s for s in self.bodies.find_stored_readers(name) if s in self.grouping.group_by_sink
        )
        users = {id(self.grouping.group_by_sink[s]): self.grouping.group_by_sink[s] for s in placed}
        others = [g for g in users.values() if g is not own_group]
        other_sinks = [s for s in own_group.sinks if s != name]
        before = sum(self._bytes_read(g.sinks, g) for g in (*others, own_group))
        self.bodies.stored.discard(name)
        after = sum(self._bytes_read(g.sinks, g) for g in others) + self._bytes_read(
            other_sinks, own_group
        )
        if own_group.kind == "anchor" or after >= before + self.flow.nbytes(name):
            self.bodies.stored.add(name)
            return False
        return True

    def _bytes_read(self, sinks: list[str], group: KernelGroup) -> int:
        return sum(self.flow.nbytes(b) for b in self._build_final_body(sinks, group).bases)

    def _build_final_body(self, sinks: list[str], group: KernelGroup) -> KernelBody:
        """Returns what a kernel finally computes and reads: it recomputes a stored value if it
        already reads everything that the value is computed from."""
        flow = self.flow
        body = self.bodies.build(sinks, group.sinks)
        if group.kind != "map" or not sinks:
            return body
        domain = max(flow.domain_size(s) for s in sinks)
        recomputed: set[str] = set()
        for e in list(body.reads.values()):
            can_recompute = (
                e.is_one_to_one and flow.nodes[e.base].type.size == domain and e.base in flow.edges
            )
            if not can_recompute or flow.op_kind(e.base) != "elementwise":
                continue
            if flow.nodes[e.base].region != flow.nodes[sinks[0]].region:
                continue
            trial = self.bodies.build(sinks, group.sinks, {*recomputed, e.base})
            added = trial.nodes - body.nodes
            full_size = {b for b in trial.bases if flow.nodes[b].type.size >= domain}
            if full_size <= body.bases - {e.base} and all(
                is_cheap(flow.nodes[n].op) for n in added
            ):
                body = trial
                recomputed.add(e.base)
        return body

    # kernels

    def _finish_kernels(self) -> list[Kernel]:
        """Turns the groups into kernels, without values that turned out to be unneeded."""
        needed = set(self.flow.roots)
        found: list[Kernel] = []
        for g in sorted(self.grouping.groups, key=lambda g: g.depth, reverse=True):
            outputs = [s for s in g.sinks if s in needed]
            if outputs:
                body = self._build_final_body(outputs, g)
                needed |= body.bases
                found.append(self._make_kernel(g, body, outputs))
        place = self.flow.position
        found.sort(key=lambda k: max(place[o] for o in k.outputs))
        found = list(merge_buckets(self.flow, found))
        operands = self._find_bucket_operands(found)
        is_batched = {k.name for parts in operands.values() for k in parts}
        batches = {
            **operands,
            "early": [k for k in found if self._is_early(k) and k.name not in is_batched],
            "totals": self._find_totals(found) if self.fusion.can_batch_totals else [],
            "updates": self._find_late_updates(found) if self.fusion.can_batch_updates else [],
        }
        for name, parts in batches.items():
            found = self._batch_kernels(name, parts, found)
        return found

    def _make_kernel(self, group: KernelGroup, body: KernelBody, outputs: list[str]) -> Kernel:
        place = self.flow.position
        nodes = tuple(sorted(body.nodes, key=place.__getitem__))
        anchors = [n for n in nodes if group.kind == "anchor" and self.flow.op_kind(n) == "anchor"]
        inputs = tuple(sorted(body.reads, key=place.__getitem__))
        sorted_outputs = tuple(sorted(outputs, key=place.__getitem__))
        return Kernel(
            anchors[0] if anchors else sorted_outputs[-1], group.kind, nodes, inputs, sorted_outputs
        )

    def _is_early(self, kernel: Kernel) -> bool:
        """Returns whether a map is small and reads only leaves, such as one that casts a weight."""
        flow = self.flow
        if kernel.kind != "map" or any(flow.op_kind(n) == "reduce" for n in kernel.nodes):
            return False
        reads_only_leaves = all(
            OPS[flow.nodes[flow.base[i]].op].kind == "leaf" for i in kernel.inputs
        )
        is_needed_later = flow.roots.intersection(kernel.outputs) or flow.nodes[kernel.name].region
        return (
            reads_only_leaves
            and not is_needed_later
            and count_moved_bytes(flow.graph, kernel) <= self.fusion.max_early_bytes
        )

    def _find_totals(self, kernels: list[Kernel]) -> list[Kernel]:
        """Returns the maps that only sum whole tensors and that no other of them depends on."""
        flow = self.flow
        totals = {
            i
            for i, k in enumerate(kernels)
            if k.kind == "map"
            and all(flow.op_kind(o) == "reduce" and flow.nodes[o].type.size == 1 for o in k.outputs)
            and not flow.nodes[k.name].region
        }
        dag = build_kernel_dag(flow, kernels)
        before = {j for i in totals for j in dag.predecessors(i)}
        waited_for = find_reachable(dag.reverse(copy=False), before)
        return [kernels[i] for i in sorted(totals - waited_for)]

    def _find_bucket_operands(self, kernels: list[Kernel]) -> dict[str, list[Kernel]]:
        """Returns for each bucket the maps that compute its operands and nothing else, such as
        casts of gradients."""
        if not self.fusion.can_batch_updates:
            return {}
        readers: dict[str, set[str]] = {}
        for k in kernels:
            for name in k.inputs:
                readers.setdefault(self.flow.base[name], set()).add(k.name)
        found: dict[str, list[Kernel]] = {}
        buckets = {k.name for k in kernels if k.kind == "collective" and len(k.outputs) > 1}
        for k in kernels:
            read_by = {r for o in k.outputs for r in readers.get(o, ())}
            has_reduction = any(self.flow.op_kind(n) == "reduce" for n in k.nodes)
            is_plain_map = k.kind == "map" and not self.flow.roots.intersection(k.outputs)
            if is_plain_map and not has_reduction and len(read_by) == 1 and read_by <= buckets:
                found.setdefault(f"operands of {read_by.pop()}", []).append(k)
        return found

    def _find_late_updates(self, kernels: list[Kernel]) -> list[Kernel]:
        """Returns the updates that nothing else depends on."""
        flow = self.flow
        read = {flow.base[i] for k in kernels for i in k.inputs}
        output_bases = {flow.base[v] for v in flow.graph.outputs.values()}
        free = {flow.base[v] for v in flow.graph.updates.values()} - read - output_bases
        last = [k for k in kernels if k.kind == "map" and free.issuperset(k.outputs)]
        return [k for k in last if not any(flow.op_kind(n) == "reduce" for n in k.nodes)]

    def _batch_kernels(self, name: str, parts: list[Kernel], kernels: list[Kernel]) -> list[Kernel]:
        """Replaces `parts` by one launch over many small domains, at the position of the first of
        them."""
        if len(parts) < 2:
            return kernels
        batched_names = {k.name for k in parts}
        at = min(i for i, k in enumerate(kernels) if k.name in batched_names)
        launch, rest = (
            self._make_batched_kernel(name, parts),
            [k for k in kernels if k.name not in batched_names],
        )
        return [*rest[:at], launch, *rest[at:]]

    def _make_batched_kernel(self, name: str, parts: list[Kernel]) -> Kernel:
        def merge_field(field: str) -> tuple[str, ...]:
            found = {v for k in parts for v in getattr(k, field)}
            return tuple(sorted(found, key=self.flow.position.__getitem__))

        return Kernel(
            name,
            "map",
            merge_field("nodes"),
            merge_field("inputs"),
            merge_field("outputs"),
            tuple(parts),
        )

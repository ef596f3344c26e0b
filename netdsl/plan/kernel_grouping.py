"""Grouping: which stored values share a kernel.

A kernel's depth is one more than that of every kernel that it reads from. Only kernels of equal
depth are merged, so there is never a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.kernel import KernelKind
from netdsl.plan.kernel_body import KernelBodies, KernelBody


@dataclass(eq=False)
class KernelGroup:
    """A kernel under construction: the stored values (`sinks`) that it computes.
    `epilogue_operands` are the tensors of its tile's size that an epilogue reads, `reads`
    everything that a map reads."""

    depth: int
    region: str
    domain_size: int
    kind: KernelKind
    sinks: list[str] = field(default_factory=list)
    reduction_key: tuple[object, ...] | None = None
    epilogue_operands: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)


_BUCKET_DEPTH = 1_000_000
"""Depth of the collectives of buckets: no kernel computes both an operand of one, however late, and
something that reads its results."""
_KERNEL_KINDS: dict[str, KernelKind] = {
    "elementwise": "map",
    "reduce": "map",
    "anchor": "anchor",
    "copy": "copy",
    "collective": "collective",
}


def find_kernel_kind(flow: DataflowGraph, name: str) -> KernelKind:
    """Returns the kind of kernel that computes a node."""
    return _KERNEL_KINDS.get(flow.op_kind(name), "opaque")


class KernelGrouping:
    """The groups of all stored values, formed in graph order."""

    def __init__(self, bodies: KernelBodies, fusion: FusionOptions) -> None:
        self.flow = bodies.flow
        self.bodies = bodies
        self.fusion = fusion
        self.groups: list[KernelGroup] = []
        self.group_by_sink: dict[str, KernelGroup] = {}
        self._groups_by_domain: dict[tuple[int, int, str], list[KernelGroup]] = {}
        for name in self.flow.edges:
            if name in bodies.stored:
                self._assign_group(name)

    def _assign_group(self, sink: str) -> None:
        """Assigns a stored value to a kernel: one that computes what it reads, a sibling that reads
        the same, or a new one."""
        body = self.bodies.build([sink])
        fusable = self._find_fusable_reads(sink, body)
        depth = max((self._find_depth(b) + (b not in fusable) for b in body.bases), default=0)
        if self.flow.nodes[sink].attrs.get("bucket"):
            depth = max(depth, _BUCKET_DEPTH)
        near = sorted(b for b in fusable if self._find_depth(b) == depth)
        hosts = {id(self.group_by_sink[b]): self.group_by_sink[b] for b in near}
        host = self._find_host(list(hosts.values()), sink, body)
        if host is None and fusable:
            host, depth = self._find_delayed_product(fusable, sink, body, depth)
        if host is None and any(self._find_depth(b) == depth for b in fusable):
            depth += 1
        if host is None and self.flow.op_kind(sink) in ("elementwise", "reduce"):
            host = self._find_sibling(sink, body, max(depth, 1))
        self._join_group(host or self._add_group(sink, max(depth, 1)), sink, body)

    def _find_depth(self, base: str) -> int:
        group = self.group_by_sink.get(base)
        return group.depth if group else 0

    def _find_fusable_reads(self, sink: str, body: KernelBody) -> set[str]:
        """Returns the values that a sink reads elementwise everywhere, from kernels that can take
        more nodes, so that the same launch could compute them."""
        if self.flow.op_kind(sink) not in ("elementwise", "reduce"):
            return set()
        is_one_to_one: dict[str, bool] = {}
        domain = self.flow.domain_size(sink)
        for e in body.reads.values():
            is_full_domain = e.is_one_to_one and self.flow.nodes[e.base].type.size == domain
            is_one_to_one[e.base] = is_one_to_one.get(e.base, True) and is_full_domain
        region = self.flow.nodes[sink].region
        return {
            b
            for b, is_full in is_one_to_one.items()
            if is_full
            and b in self.group_by_sink
            and self.group_by_sink[b].kind in ("map", "anchor")
            and self.group_by_sink[b].region == region
            and self.flow.op_kind(b) in ("elementwise", "anchor")
        }

    def _find_host(
        self, hosts: list[KernelGroup], sink: str, body: KernelBody
    ) -> KernelGroup | None:
        """Returns the kernel that the sink joins; merges several maps into one."""
        if not hosts or not all(self._can_join(g, sink, body) for g in hosts):
            return None
        if len(hosts) == 1:
            return hosts[0]
        reduction_keys = {g.reduction_key for g in hosts} - {None}
        if any(g.kind == "anchor" for g in hosts) or len(reduction_keys) > 1:
            return None
        return self._merge_groups(hosts)

    def _merge_groups(self, groups: list[KernelGroup]) -> KernelGroup:
        first, *rest = groups
        for other in rest:
            first.sinks += other.sinks
            first.reduction_key = first.reduction_key or other.reduction_key
            first.reads |= other.reads
            for sink in other.sinks:
                self.group_by_sink[sink] = first
            self.groups.remove(other)
            self._groups_by_domain[other.depth, other.domain_size, other.region].remove(other)
        return first

    def _can_join(self, group: KernelGroup, sink: str, body: KernelBody) -> bool:
        reduction_key = self.flow.reduction_key(sink)
        if group.kind == "map":
            return reduction_key is None or group.reduction_key in (None, reduction_key)
        return self._can_fuse_epilogue(group, sink, body)

    def _can_fuse_epilogue(self, group: KernelGroup, sink: str, body: KernelBody) -> bool:
        """Returns whether a product can compute the sink from its tiles before it writes them."""
        flow, domain = self.flow, self.flow.domain_size(sink)
        epilogue_operands = self._find_epilogue_operands(group, domain, body)
        if len(epilogue_operands) > self.fusion.max_epilogue_operands:
            return False
        if flow.op_kind(sink) == "reduce":
            return self._can_fuse_sum(group, sink)
        ops = [flow.nodes[n] for n in body.nodes if n in flow.edges]
        epilogue_ops = self.fusion.find_epilogue_ops(flow.nodes[group.sinks[0]])
        return all(n.op in epilogue_ops and n.type.size == domain for n in ops)

    def _find_epilogue_operands(
        self, group: KernelGroup, domain: int, body: KernelBody
    ) -> set[str]:
        """Returns the tensors of the tile's size that an epilogue reads besides its tile."""
        full_size = {b for b in body.bases if self.flow.nodes[b].type.size >= domain}
        return (full_size - set(group.sinks)) | group.epilogue_operands

    def _can_fuse_sum(self, group: KernelGroup, sink: str) -> bool:
        """Returns whether a product accumulates this sum in its epilogue. It does not if another
        pass over its result reads the same value and need not wait for the sum."""
        flow = self.flow
        value, reader = flow.edges[sink][0].base, sink
        if "cast" in self.fusion.epilogue_reductions and self._is_only_summed(value, sink):
            value, reader = flow.edges[value][0].base, value
        can_reduce = flow.nodes[
            sink
        ].op in self.fusion.epilogue_reductions and flow.is_channel_reduction(sink)
        if not can_reduce or value not in group.sinks:
            return False
        passes = (r for r in flow.readers[value] if flow.op_kind(r) in ("elementwise", "reduce"))
        return all(r == reader or sink in self.bodies.build([r]).bases for r in passes)

    def _is_only_summed(self, value: str, sink: str) -> bool:
        is_inlined_cast = self.bodies.is_inlined(value) and self.flow.nodes[value].op == "cast"
        return is_inlined_cast and self.flow.readers[value] == [sink]

    def _find_delayed_product(
        self, fusable: set[str], sink: str, body: KernelBody, depth: int
    ) -> tuple[KernelGroup | None, int]:
        """Delays a product that only the sink reads until everything else that the sink reads is
        available. Returns it with the new depth, or None with the old one."""
        for base in sorted(fusable, key=lambda b: self.flow.position[b], reverse=True):
            group = self.group_by_sink[base]
            is_bare_product = (
                group.kind == "anchor" and group.sinks == [base] and base not in self.flow.roots
            )
            if not is_bare_product or self.bodies.find_stored_readers(base) != {sink}:
                continue
            if self._can_join(group, sink, body):
                others = body.bases - {base}
                group.depth = max(group.depth, *(self._find_depth(b) + 1 for b in others))
                return group, group.depth
        return None, depth

    def _find_sibling(self, sink: str, body: KernelBody, depth: int) -> KernelGroup | None:
        """Returns a map of the same domain and depth that reads one of the same tensors."""
        domain, region = self.flow.domain_size(sink), self.flow.nodes[sink].region
        full_size = {b for b in body.bases if self.flow.nodes[b].type.size >= domain}
        found = [
            g
            for g in self._groups_by_domain.get((depth, domain, region), ())
            if g.kind == "map"
            and self._can_join(g, sink, body)
            and full_size & self.bodies.build(g.sinks).bases
        ]
        reduction_keys = {g.reduction_key for g in found} - {None}
        if not found:
            return None
        return self._merge_groups(found) if len(reduction_keys) < 2 else found[0]

    def _add_group(self, sink: str, depth: int) -> KernelGroup:
        flow = self.flow
        kind = find_kernel_kind(flow, sink)
        group = KernelGroup(depth, flow.nodes[sink].region, flow.domain_size(sink), kind)
        self.groups.append(group)
        self._groups_by_domain.setdefault((depth, group.domain_size, group.region), []).append(
            group
        )
        return group

    def _join_group(self, group: KernelGroup, sink: str, body: KernelBody) -> None:
        if group.kind == "anchor" and group.sinks:
            group.epilogue_operands = self._find_epilogue_operands(group, group.domain_size, body)
        group.sinks.append(sink)
        group.reads |= body.bases
        group.reduction_key = group.reduction_key or self.flow.reduction_key(sink)
        self.group_by_sink[sink] = group

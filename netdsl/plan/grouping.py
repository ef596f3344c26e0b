"""Grouping: which stored values one kernel computes.

Kernels have a depth, one more than that of every kernel that they read from, and only what is
equally deep is joined: so there is never a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from netdsl.plan.bodies import Bodies, Body
from netdsl.plan.fusion import Fusion
from netdsl.plan.kernel import KernelKind


@dataclass(eq=False)
class Group:
    """A kernel in the making: the stored values (`sinks`) that it computes. `beside` are tensors
    of its tile's size that an epilogue reads, `reads` all that a map reads."""

    depth: int
    region: str
    domain: int
    kind: KernelKind
    sinks: list[str] = field(default_factory=list)
    reduced: tuple[object, ...] | None = None
    beside: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)


class Grouping:
    """The groups of all stored values, made in the order of the graph."""

    def __init__(self, bodies: Bodies, fusion: Fusion) -> None:
        self.flow = bodies.flow
        self.bodies = bodies
        self.fusion = fusion
        self.groups: list[Group] = []
        self.group: dict[str, Group] = {}
        self._near: dict[tuple[int, int, str], list[Group]] = {}
        for name in self.flow.edges:
            if name in bodies.stored:
                self._place(name)

    def _place(self, sink: str) -> None:
        """Gives a stored value its kernel: one that computes what it reads, one beside it that
        reads the same, or its own."""
        body = self.bodies.body([sink])
        joins = self._joinable(sink, body)
        depth = max((self._depth(b) + (b not in joins) for b in body.bases), default=0)
        near = sorted(b for b in joins if self._depth(b) == depth)
        hosts = {id(self.group[b]): self.group[b] for b in near}
        host = self._host(list(hosts.values()), sink, body)
        if host is None and joins:
            host, depth = self._delayed(joins, sink, body, depth)
        if host is None and any(self._depth(b) == depth for b in joins):
            depth += 1
        if host is None and self.flow.kind(sink) in ("elementwise", "reduce"):
            host = self._beside(sink, body, max(depth, 1))
        self._join(host or self._new(sink, max(depth, 1)), sink, body)

    def _depth(self, base: str) -> int:
        group = self.group.get(base)
        return group.depth if group else 0

    def _joinable(self, sink: str, body: Body) -> set[str]:
        """What a sink reads that the same launch could compute: element by element everywhere, in
        a kernel that takes more."""
        if self.flow.kind(sink) not in ("elementwise", "reduce"):
            return set()
        full: dict[str, bool] = {}
        domain = self.flow.domain(sink)
        for e in body.reads.values():
            whole = e.full and self.flow.nodes[e.base].type.size == domain
            full[e.base] = full.get(e.base, True) and whole
        region = self.flow.nodes[sink].region
        return {
            b
            for b, yes in full.items()
            if yes
            and b in self.group
            and self.group[b].kind in ("map", "anchor")
            and self.group[b].region == region
            and self.flow.kind(b) in ("elementwise", "anchor")
        }

    def _host(self, hosts: list[Group], sink: str, body: Body) -> Group | None:
        """The kernel that the sink joins; several maps become one."""
        if not hosts or not all(self._admits(g, sink, body) for g in hosts):
            return None
        if len(hosts) == 1:
            return hosts[0]
        keys = {g.reduced for g in hosts} - {None}
        if any(g.kind == "anchor" for g in hosts) or len(keys) > 1:
            return None
        return self._merged(hosts)

    def _merged(self, groups: list[Group]) -> Group:
        first, *rest = groups
        for other in rest:
            first.sinks += other.sinks
            first.reduced = first.reduced or other.reduced
            first.reads |= other.reads
            for sink in other.sinks:
                self.group[sink] = first
            self.groups.remove(other)
            self._near[other.depth, other.domain, other.region].remove(other)
        return first

    def _admits(self, group: Group, sink: str, body: Body) -> bool:
        reduced = self.flow.reduced(sink)
        if group.kind == "map":
            return reduced is None or group.reduced in (None, reduced)
        return self._fits_epilogue(group, sink, body)

    def _fits_epilogue(self, group: Group, sink: str, body: Body) -> bool:
        """Whether a product can compute the sink from its tiles before it writes them."""
        flow, domain = self.flow, self.flow.domain(sink)
        beside = self._tensors_beside(group, domain, body)
        if len(beside) > self.fusion.operands:
            return False
        if flow.kind(sink) == "reduce":
            return self._sums(group, sink)
        ops = [flow.nodes[n] for n in body.nodes if n in flow.edges]
        known = self.fusion.applied(flow.nodes[group.sinks[0]])
        return all(n.op in known and n.type.size == domain for n in ops)

    def _tensors_beside(self, group: Group, domain: int, body: Body) -> set[str]:
        """The tensors of the tile's size that an epilogue reads besides its tile."""
        wide = {b for b in body.bases if self.flow.nodes[b].type.size >= domain}
        return (wide - set(group.sinks)) | group.beside

    def _sums(self, group: Group, sink: str) -> bool:
        """Whether a product takes this sum on the way: not where another pass over its result
        reads the same and need not wait for the sum."""
        flow = self.flow
        value, reader = flow.edges[sink][0].base, sink
        if "cast" in self.fusion.sums and self._only_summed(value, sink):
            value, reader = flow.edges[value][0].base, value
        able = flow.nodes[sink].op in self.fusion.sums and flow.along_channels(sink)
        if not able or value not in group.sinks:
            return False
        passes = (r for r in flow.readers[value] if flow.kind(r) in ("elementwise", "reduce"))
        return all(r == reader or sink in self.bodies.body([r]).bases for r in passes)

    def _only_summed(self, value: str, sink: str) -> bool:
        cast = self.bodies.inlined(value) and self.flow.nodes[value].op == "cast"
        return cast and self.flow.readers[value] == [sink]

    def _delayed(
        self, joins: set[str], sink: str, body: Body, depth: int
    ) -> tuple[Group | None, int]:
        """A product that only the sink reads may wait until all else that the sink reads is there.
        Returns it with the new depth, or None with the old one."""
        for base in sorted(joins, key=lambda b: self.flow.place[b], reverse=True):
            group = self.group[base]
            alone = group.kind == "anchor" and group.sinks == [base] and base not in self.flow.roots
            if not alone or self.bodies.stored_readers(base) != {sink}:
                continue
            if self._admits(group, sink, body):
                others = body.bases - {base}
                group.depth = max(group.depth, *(self._depth(b) + 1 for b in others))
                return group, group.depth
        return None, depth

    def _beside(self, sink: str, body: Body, depth: int) -> Group | None:
        """A map over the same domain, equally deep, that reads one of the same tensors."""
        domain, region = self.flow.domain(sink), self.flow.nodes[sink].region
        wide = {b for b in body.bases if self.flow.nodes[b].type.size >= domain}
        found = [
            g
            for g in self._near.get((depth, domain, region), ())
            if g.kind == "map"
            and self._admits(g, sink, body)
            and wide & self.bodies.body(g.sinks).bases
        ]
        keys = {g.reduced for g in found} - {None}
        if not found:
            return None
        return self._merged(found) if len(keys) < 2 else found[0]

    def _new(self, sink: str, depth: int) -> Group:
        flow = self.flow
        kinds: dict[str, KernelKind] = {"elementwise": "map", "reduce": "map", "anchor": "anchor"}
        kind = kinds.get(flow.kind(sink), "copy" if sink in flow.copies else "opaque")
        group = Group(depth, flow.nodes[sink].region, flow.domain(sink), kind)
        self.groups.append(group)
        self._near.setdefault((depth, group.domain, group.region), []).append(group)
        return group

    def _join(self, group: Group, sink: str, body: Body) -> None:
        if group.kind == "anchor" and group.sinks:
            group.beside = self._tensors_beside(group, group.domain, body)
        group.sinks.append(sink)
        group.reads |= body.bases
        group.reduced = group.reduced or self.flow.reduced(sink)
        self.group[sink] = group

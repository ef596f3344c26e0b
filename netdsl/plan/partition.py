"""The partitioner: which nodes one launch computes, decided by the bytes that it saves.

Some values must lie in memory: results of products, reductions and opaque operators, what those
read, and what a step gives out. Every other value is computed where it is needed, again in each
kernel, unless storing it moves fewer bytes. Kernels have a depth, one more than that of every
kernel they read from, and only what is equally deep is joined: so there is never a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from netdsl.plan.flow import Edge, Flow
from netdsl.plan.fusion import Fusion, cheap, repeatable
from netdsl.plan.kernel import Kernel, KernelKind
from netdsl.types import Graph

_MOST_READS = 8
"""A value made from more tensors of its size than this is stored, so that kernels stay small."""
_ROUNDS = 3


@dataclass(eq=False)
class _Group:
    """A kernel in the making: the stored values (`sinks`) that it computes."""

    depth: int
    region: str
    domain: int
    kind: KernelKind
    sinks: list[str] = field(default_factory=list)
    reduced: tuple[object, ...] | None = None
    beside: set[str] = field(default_factory=set)


@dataclass
class _Body:
    """What a kernel computes and reads: nodes (views among them), and operands by their names."""

    nodes: set[str]
    reads: dict[str, Edge]

    @property
    def bases(self) -> set[str]:
        return {e.base for e in self.reads.values()}


def partition(graph: Graph, fusion: Fusion) -> tuple[Kernel, ...]:
    """The kernels of a graph, in the order of its nodes.

    Every value that an output, an update or another kernel needs is written by exactly one.
    """
    flow = Flow(graph)
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
        self.must = set(self._needed_in_memory())
        self.stored = self.must | set(self._worth_storing())
        self.groups: list[_Group] = []
        self.group: dict[str, _Group] = {}
        self._near: dict[tuple[int, int, str], list[_Group]] = {}

    def kernels(self) -> tuple[Kernel, ...]:
        for _ in range(_ROUNDS):
            self._assign()
            if not self._improve():
                break
        else:
            self._assign()
        return tuple(self._finish())

    # which values lie in memory

    def _needed_in_memory(self) -> Iterator[str]:
        flow = self.flow
        reach: dict[str, int] = {}
        for name in reversed(list(flow.edges)):
            size, widest = flow.nodes[name].type.size, reach.get(name, 0)
            stretched = widest > size and not repeatable(flow.nodes[name].op)
            inside = flow.kind(name) == "elementwise" and name not in flow.roots
            if not inside or stretched or reach.get(name) == -1:
                yield name
                widest = 0
            for e in flow.edges[name]:
                if not e.pointwise:
                    reach[e.base] = -1
                elif reach.get(e.base) != -1:
                    reach[e.base] = max(reach.get(e.base, 0), widest, flow.domain(name))

    def _worth_storing(self) -> Iterator[str]:
        """A first guess: values with several readers that are made from many tensors."""
        flow = self.flow
        sources: dict[str, set[str]] = {}
        for name, edges in flow.edges.items():
            size = flow.nodes[name].type.size
            found: set[str] = set()
            for e in edges:
                found |= sources.get(e.base, {e.base})
            found = {s for s in found if flow.nodes[s].type.size >= size}
            several = len(flow.readers.get(name, ())) > 1 and len(found) > 2
            if name in self.must or several or len(found) > _MOST_READS:
                if name not in self.must:
                    yield name
                found = {name}
            sources[name] = found

    # which stored values one kernel computes

    def body(
        self, sinks: Iterable[str], own: Iterable[str] = (), inline: str | None = None
    ) -> _Body:
        """All that a kernel computes and reads for these sinks; `own` are stored values that it
        computes besides, `inline` is taken as not stored."""
        todo = list(sinks)
        own = {*todo, *own}
        found = _Body(set(), {})
        while todo:
            name = todo.pop()
            if name in found.nodes:
                continue
            found.nodes.add(name)
            for e in self.flow.edges[name]:
                inner = e.base in own or self._inlined(e.base) or e.base == inline
                if inner and e.pointwise:
                    found.nodes.update(self.flow.views(e.arg))
                    todo.append(e.base)
                else:
                    found.reads[e.arg] = e
        return found

    def _inlined(self, base: str) -> bool:
        return base in self.flow.edges and base not in self.stored

    def _assign(self) -> None:
        self.groups, self.group, self._near = [], {}, {}
        for name in self.flow.edges:
            if name in self.stored:
                self._place(name)

    def _place(self, sink: str) -> None:
        """Gives a stored value its kernel: one that computes what it reads, one beside it that
        reads the same, or its own."""
        body = self.body([sink])
        joins = self._joinable(sink, body)
        depth = max((self._depth(b) + (b not in joins) for b in body.bases), default=0)
        hosts = {id(self.group[b]): self.group[b] for b in joins if self._depth(b) == depth}
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

    def _joinable(self, sink: str, body: _Body) -> set[str]:
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

    def _host(self, hosts: list[_Group], sink: str, body: _Body) -> _Group | None:
        """The kernel that the sink joins; several maps become one."""
        if not hosts or not all(self._admits(g, sink, body) for g in hosts):
            return None
        if len(hosts) == 1:
            return hosts[0]
        keys = {g.reduced for g in hosts} - {None}
        if any(g.kind == "anchor" for g in hosts) or len(keys) > 1:
            return None
        return self._merged(hosts)

    def _merged(self, groups: list[_Group]) -> _Group:
        first, *rest = groups
        for other in rest:
            first.sinks += other.sinks
            first.reduced = first.reduced or other.reduced
            for sink in other.sinks:
                self.group[sink] = first
            self.groups.remove(other)
            self._near[other.depth, other.domain, other.region].remove(other)
        return first

    def _admits(self, group: _Group, sink: str, body: _Body) -> bool:
        reduced = self.flow.reduced(sink)
        if group.kind == "map":
            return reduced is None or group.reduced in (None, reduced)
        return self._fits_epilogue(group, sink, body)

    def _fits_epilogue(self, group: _Group, sink: str, body: _Body) -> bool:
        """Whether a product can compute the sink from its tiles before it writes them."""
        flow, domain = self.flow, self.flow.domain(sink)
        beside = self._tensors_beside(group, domain, body)
        if len(beside) > self.fusion.operands:
            return False
        ops = {n: flow.nodes[n] for n in body.nodes if n != sink and n in flow.edges}
        if flow.kind(sink) == "reduce":
            if ops or not self._sums(group, sink):
                return False
        else:
            ops[sink] = flow.nodes[sink]
        return all(n.op in self.fusion.epilogue and n.type.size == domain for n in ops.values())

    def _tensors_beside(self, group: _Group, domain: int, body: _Body) -> set[str]:
        """The tensors of the tile's size that an epilogue reads besides its tile."""
        wide = {b for b in body.bases if self.flow.nodes[b].type.size >= domain}
        return (wide - set(group.sinks)) | group.beside

    def _sums(self, group: _Group, sink: str) -> bool:
        """Whether a product takes this sum on the way: not where another pass over its result
        reads the same and need not wait for the sum."""
        flow = self.flow
        value = flow.edges[sink][0].base
        able = flow.nodes[sink].op in self.fusion.sums and flow.along_channels(sink)
        if not able or value not in group.sinks:
            return False
        passes = (r for r in flow.readers[value] if flow.kind(r) in ("elementwise", "reduce"))
        return all(r == sink or sink in self.body([r]).bases for r in passes)

    def _delayed(
        self, joins: set[str], sink: str, body: _Body, depth: int
    ) -> tuple[_Group | None, int]:
        """A product that only the sink reads may wait until all else that the sink reads is there.
        Returns it with the new depth, or None with the old one."""
        for base in sorted(joins, key=lambda b: self.flow.place[b], reverse=True):
            group = self.group[base]
            alone = group.kind == "anchor" and group.sinks == [base] and base not in self.flow.roots
            if not alone or self._stored_readers(base) != {sink}:
                continue
            if self._admits(group, sink, body):
                others = body.bases - {base}
                group.depth = max(group.depth, *(self._depth(b) + 1 for b in others))
                return group, group.depth
        return None, depth

    def _beside(self, sink: str, body: _Body, depth: int) -> _Group | None:
        """A map over the same domain, equally deep, that reads one of the same tensors."""
        domain, region = self.flow.domain(sink), self.flow.nodes[sink].region
        wide = {b for b in body.bases if self.flow.nodes[b].type.size >= domain}
        found = [
            g
            for g in self._near.get((depth, domain, region), ())
            if g.kind == "map" and self._admits(g, sink, body) and wide & self.body(g.sinks).bases
        ]
        keys = {g.reduced for g in found} - {None}
        if not found:
            return None
        return self._merged(found) if len(keys) < 2 else found[0]

    def _new(self, sink: str, depth: int) -> _Group:
        flow = self.flow
        kinds: dict[str, KernelKind] = {"elementwise": "map", "reduce": "map", "anchor": "anchor"}
        kind = kinds.get(flow.kind(sink), "copy" if sink in flow.copies else "opaque")
        group = _Group(depth, flow.nodes[sink].region, flow.domain(sink), kind)
        self.groups.append(group)
        self._near.setdefault((depth, group.domain, group.region), []).append(group)
        return group

    def _join(self, group: _Group, sink: str, body: _Body) -> None:
        if group.kind == "anchor" and group.sinks:
            group.beside = self._tensors_beside(group, group.domain, body)
        group.sinks.append(sink)
        group.reduced = group.reduced or self.flow.reduced(sink)
        self.group[sink] = group

    # fewer bytes

    def _improve(self) -> bool:
        """Stores or stops storing values one by one where that moves fewer bytes."""
        users: dict[str, list[_Group]] = {}
        for g in self.groups:
            for name in self._settled(g.sinks, g).nodes:
                users.setdefault(name, []).append(g)
        changed = False
        for name in self.flow.edges:
            if name in self.must or len(self.flow.readers.get(name, ())) < 2:
                continue
            if name in self.stored:
                changed |= self._unstore(name)
            elif len(users.get(name, ())) > 1:
                changed |= self._store(name, users[name])
        return changed

    def _store(self, name: str, users: list[_Group]) -> bool:
        first = min(g.depth for g in users)
        later = [g for g in users if g.depth > first]
        before = sum(self._bytes_read(g.sinks, g) for g in later)
        self.stored.add(name)
        after = sum(self._bytes_read(g.sinks, g) for g in later) + self.flow.nbytes(name)
        if not later or after >= before:
            self.stored.discard(name)
            return False
        return True

    def _unstore(self, name: str) -> bool:
        own = self.group[name]
        placed = (s for s in self._stored_readers(name) if s in self.group)
        users = {id(self.group[s]): self.group[s] for s in placed}
        others = [g for g in users.values() if g is not own]
        rest = [s for s in own.sinks if s != name]
        before = sum(self._bytes_read(g.sinks, g) for g in (*others, own))
        self.stored.discard(name)
        after = sum(self._bytes_read(g.sinks, g) for g in others) + self._bytes_read(rest, own)
        if own.kind == "anchor" or after >= before + self.flow.nbytes(name):
            self.stored.add(name)
            return False
        return True

    def _stored_readers(self, name: str) -> set[str]:
        """The stored values that are computed from a value without another one between."""
        found: set[str] = set()
        seen = set()
        todo = [name]
        while todo:
            for reader in self.flow.readers.get(todo.pop(), ()):
                if reader in self.stored:
                    found.add(reader)
                elif reader not in seen:
                    seen.add(reader)
                    todo.append(reader)
        return found

    def _bytes_read(self, sinks: list[str], group: _Group) -> int:
        return sum(self.flow.nbytes(b) for b in self._settled(sinks, group).bases)

    def _settled(self, sinks: list[str], group: _Group) -> _Body:
        """What a kernel computes and reads in the end: stored values are computed again where it
        reads all that they are made of."""
        flow = self.flow
        body = self.body(sinks, group.sinks)
        if group.kind != "map" or not sinks:
            return body
        domain = max(flow.domain(s) for s in sinks)
        for e in list(body.reads.values()):
            full = e.full and flow.nodes[e.base].type.size == domain and e.base in flow.edges
            if not full or flow.kind(e.base) != "elementwise":
                continue
            if flow.nodes[e.base].region != flow.nodes[sinks[0]].region:
                continue
            trial = self.body(sinks, group.sinks, e.base)
            added = trial.nodes - body.nodes
            wide = {b for b in trial.bases if flow.nodes[b].type.size >= domain}
            if wide <= body.bases - {e.base} and all(cheap(flow.nodes[n].op) for n in added):
                body = trial
        return body

    # kernels

    def _finish(self) -> list[Kernel]:
        """The groups as kernels, without what turned out not to be needed."""
        needed = set(self.flow.roots)
        found: list[Kernel] = []
        for g in sorted(self.groups, key=lambda g: g.depth, reverse=True):
            outputs = [s for s in g.sinks if s in needed]
            if outputs:
                body = self._settled(outputs, g)
                needed |= body.bases
                found.append(self._kernel(g, body, outputs))
        if self.fusion.batch:
            found = self._batched(found)
        place = self.flow.place
        return sorted(found, key=lambda k: max(place[o] for o in k.outputs))

    def _kernel(self, group: _Group, body: _Body, outputs: list[str]) -> Kernel:
        place = self.flow.place
        nodes = tuple(sorted(body.nodes, key=place.__getitem__))
        anchors = [n for n in nodes if group.kind == "anchor" and self.flow.kind(n) == "anchor"]
        inputs = tuple(sorted(body.reads, key=place.__getitem__))
        written = tuple(sorted(outputs, key=place.__getitem__))
        return Kernel(anchors[0] if anchors else written[-1], group.kind, nodes, inputs, written)

    def _batched(self, kernels: list[Kernel]) -> list[Kernel]:
        """The updates that nothing else waits for as one launch over many small domains."""
        flow = self.flow
        read = {flow.base[i] for k in kernels for i in k.inputs}
        shown = {flow.base[v] for v in flow.graph.outputs.values()}
        free = {flow.base[v] for v in flow.graph.updates.values()} - read - shown
        last = [k for k in kernels if k.kind == "map" and free.issuperset(k.outputs)]
        last = [k for k in last if not any(flow.kind(n) == "reduce" for n in k.nodes)]
        if len(last) < 2:
            return kernels
        return [*(k for k in kernels if k not in last), self._launch("updates", last)]

    def _launch(self, name: str, parts: list[Kernel]) -> Kernel:
        def joined(field: str) -> tuple[str, ...]:
            found = {v for k in parts for v in getattr(k, field)}
            return tuple(sorted(found, key=self.flow.place.__getitem__))

        return Kernel(
            name, "map", joined("nodes"), joined("inputs"), joined("outputs"), tuple(parts)
        )

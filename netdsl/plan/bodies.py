"""What a kernel computes and reads, given which values lie in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netdsl.plan.flow import Edge, Flow
from netdsl.plan.fusion import Fusion, repeatable

_MOST_READS = 8
"""A value made from more tensors of its size than this is stored, so that kernels stay small."""


@dataclass
class Body:
    """Nodes that a kernel computes (views among them), and the operands that it reads, by name."""

    nodes: set[str]
    reads: dict[str, Edge]

    @property
    def bases(self) -> set[str]:
        return {e.base for e in self.reads.values()}


class Bodies:
    """Bodies of kernels under a choice of what is `stored`; of that, `must` cannot be otherwise."""

    def __init__(self, flow: Flow, fusion: Fusion) -> None:
        self.flow = flow
        self.must = set(_needed_in_memory(flow))
        self.stored = self.must | set(_worth_storing(flow, self.must))
        self.must |= {v for s in self._stretching() for v in self._read_by_epilogue(s, fusion)}
        self.stored |= self.must

    def body(
        self, sinks: Iterable[str], own: Iterable[str] = (), inline: Iterable[str] = ()
    ) -> Body:
        """All that a kernel computes and reads for these sinks; `own` are stored values that it
        computes besides, `inline` are taken as not stored."""
        todo = list(sinks)
        own, known = {*todo, *own}, set(inline)
        found = Body(set(), {})
        while todo:
            name = todo.pop()
            if name in found.nodes:
                continue
            found.nodes.add(name)
            for e in self.flow.edges[name]:
                inner = e.base in own or self.inlined(e.base) or e.base in known
                if inner and e.pointwise:
                    found.nodes.update(self.flow.views(e.arg))
                    todo.append(e.base)
                else:
                    found.reads[e.arg] = e
        return found

    def _stretching(self) -> set[str]:
        """The stored values for which a smaller one is computed on the way."""
        nodes = self.flow.nodes
        small = {
            e.base
            for name, edges in self.flow.edges.items()
            for e in edges
            if self.inlined(e.base) and nodes[e.base].type.size < nodes[name].type.size
        }
        return {s for name in small for s in self.stored_readers(name)}

    def _read_by_epilogue(self, sink: str, fusion: Fusion) -> Iterator[str]:
        """What a product that computes the sink from its tiles would compute again for each of
        their elements: values for each channel, which it reads instead."""
        nodes, body, domain = self.flow.nodes, self.body([sink]), self.flow.domain(sink)
        wide = [n for n in body.nodes if n in self.flow.edges and nodes[n].type.size == domain]
        ops = {nodes[n].op for n in wide}
        bases = {e.base for e in body.reads.values() if e.full}
        if any(ops <= fusion.applied(nodes[b]) for b in bases):
            small = {e.base for n in wide for e in self.flow.edges[n]} & body.nodes
            yield from small - set(wide)

    def inlined(self, base: str) -> bool:
        return base in self.flow.edges and base not in self.stored

    def stored_readers(self, name: str) -> set[str]:
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


def _needed_in_memory(flow: Flow) -> Iterator[str]:
    """Results of products, reductions and opaque operators, what those read, what is given out, and
    what would be computed over and over for a larger domain."""
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


def _worth_storing(flow: Flow, must: set[str]) -> Iterator[str]:
    """A first guess: values with several readers that are made from many tensors."""
    sources: dict[str, set[str]] = {}
    for name, edges in flow.edges.items():
        size = flow.nodes[name].type.size
        found: set[str] = set()
        for e in edges:
            found |= sources.get(e.base, {e.base})
        found = {s for s in found if flow.nodes[s].type.size >= size}
        several = len(flow.readers.get(name, ())) > 1 and len(found) > 2
        if name in must or several or len(found) > _MOST_READS:
            if name not in must:
                yield name
            found = {name}
        sources[name] = found

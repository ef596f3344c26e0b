"""Kernel bodies: what a kernel computes and reads, given which values are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netdsl.plan.dataflow import DataflowGraph, Edge
from netdsl.plan.fusion import FusionOptions, is_repeatable

_MAX_READS = 8
"""A value computed from more tensors of its size than this is stored, so that kernels stay
small."""


@dataclass
class KernelBody:
    """The nodes that a kernel computes (including views), and the operands that it reads, by
    name."""

    nodes: set[str]
    reads: dict[str, Edge]

    @property
    def bases(self) -> set[str]:
        return {e.base for e in self.reads.values()}


class KernelBodies:
    """Kernel bodies for a choice of `stored` values; the `required` ones among them must be
    stored."""

    def __init__(self, flow: DataflowGraph, fusion: FusionOptions) -> None:
        self.flow = flow
        self.required = set(_find_required_values(flow))
        self.stored = self.required | set(_find_values_worth_storing(flow, self.required))
        self.required |= {
            v for s in self._find_broadcast_sinks() for v in self._find_epilogue_reads(s, fusion)
        }
        self.stored |= self.required

    def build(
        self, sinks: Iterable[str], own: Iterable[str] = (), inline: Iterable[str] = ()
    ) -> KernelBody:
        """Returns everything that a kernel computes and reads for these sinks. `own` are stored
        values that it also computes, `inline` are treated as not stored."""
        worklist = list(sinks)
        own, known = {*worklist, *own}, set(inline)
        found = KernelBody(set(), {})
        while worklist:
            name = worklist.pop()
            if name in found.nodes:
                continue
            found.nodes.add(name)
            for e in self.flow.edges[name]:
                is_computed = e.base in own or self.is_inlined(e.base) or e.base in known
                if is_computed and e.is_pointwise:
                    found.nodes.update(self.flow.find_views(e.arg))
                    worklist.append(e.base)
                else:
                    found.reads[e.arg] = e
        return found

    def _find_broadcast_sinks(self) -> set[str]:
        """Returns the stored values whose computation includes a smaller inlined value."""
        nodes = self.flow.nodes
        small = {
            e.base
            for name, edges in self.flow.edges.items()
            for e in edges
            if self.is_inlined(e.base) and nodes[e.base].type.size < nodes[name].type.size
        }
        return {s for name in small for s in self.find_stored_readers(name)}

    def _find_epilogue_reads(self, sink: str, fusion: FusionOptions) -> Iterator[str]:
        """Yields what a product that computes the sink from its tiles would recompute for each of
        their elements: per-channel values, which it reads from memory instead."""
        nodes, body, domain = self.flow.nodes, self.build([sink]), self.flow.domain_size(sink)
        full_size = [n for n in body.nodes if n in self.flow.edges and nodes[n].type.size == domain]
        ops = {nodes[n].op for n in full_size}
        bases = {e.base for e in body.reads.values() if e.is_one_to_one}
        if any(ops <= fusion.find_epilogue_ops(nodes[b]) for b in bases):
            small = {e.base for n in full_size for e in self.flow.edges[n]} & body.nodes
            yield from small - set(full_size)

    def is_inlined(self, base: str) -> bool:
        return base in self.flow.edges and base not in self.stored

    def find_stored_readers(self, name: str) -> set[str]:
        """Returns the stored values computed from a value with no other stored value in between."""
        found: set[str] = set()
        seen = set()
        worklist = [name]
        while worklist:
            for reader in self.flow.readers.get(worklist.pop(), ()):
                if reader in self.stored:
                    found.add(reader)
                elif reader not in seen:
                    seen.add(reader)
                    worklist.append(reader)
        return found


def _find_required_values(flow: DataflowGraph) -> Iterator[str]:
    """Yields the results of products, reductions and opaque operators, what those read, the roots,
    and what would be recomputed many times for a larger domain."""
    widest_domains: dict[str, int] = {}
    for name in reversed(list(flow.edges)):
        size, widest = flow.nodes[name].type.size, widest_domains.get(name, 0)
        is_recomputed = widest > size and not is_repeatable(flow.nodes[name].op)
        can_inline = flow.op_kind(name) == "elementwise" and name not in flow.roots
        if not can_inline or is_recomputed or widest_domains.get(name) == -1:
            yield name
            widest = 0
        for e in flow.edges[name]:
            if not e.is_pointwise:
                widest_domains[e.base] = -1
            elif widest_domains.get(e.base) != -1:
                widest_domains[e.base] = max(
                    widest_domains.get(e.base, 0), widest, flow.domain_size(name)
                )


def _find_values_worth_storing(flow: DataflowGraph, required: set[str]) -> Iterator[str]:
    """Yields a first guess: values with several readers that are computed from many tensors."""
    sources: dict[str, set[str]] = {}
    for name, edges in flow.edges.items():
        size = flow.nodes[name].type.size
        found: set[str] = set()
        for e in edges:
            found |= sources.get(e.base, {e.base})
        found = {s for s in found if flow.nodes[s].type.size >= size}
        has_many_sources = len(flow.readers.get(name, ())) > 1 and len(found) > 2
        if name in required or has_many_sources or len(found) > _MAX_READS:
            if name not in required:
                yield name
            found = {name}
        sources[name] = found

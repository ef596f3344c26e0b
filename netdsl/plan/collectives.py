"""Collectives in a plan: the values of a bucket as one kernel, and when its results are awaited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.kernel import Kernel


def merge_buckets(flow: DataflowGraph, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Replaces the collectives of each bucket by one kernel, in the place of the last of them."""
    buckets: dict[int, list[Kernel]] = {}
    for k in kernels:
        if k.kind == "collective" and _bucket(flow, k):
            buckets.setdefault(_bucket(flow, k), []).append(k)
    merged = {parts[-1].name: _merge(bucket, parts) for bucket, parts in buckets.items()}
    absorbed = {k.name for parts in buckets.values() for k in parts} - merged.keys()
    return tuple(merged.get(k.name, k) for k in kernels if k.name not in absorbed)


def _bucket(flow: DataflowGraph, kernel: Kernel) -> int:
    return int(flow.nodes[kernel.name].attrs["bucket"])


def _merge(bucket: int, parts: Sequence[Kernel]) -> Kernel:
    nodes = tuple(v for k in parts for v in k.nodes)
    inputs = tuple(dict.fromkeys(v for k in parts for v in k.inputs))
    return Kernel(f"bucket {bucket}", "collective", nodes, inputs, nodes)


def find_waits(flow: DataflowGraph, kernels: Sequence[Kernel]) -> Mapping[int, tuple[int, ...]]:
    """Returns for each kernel that reads results of collectives which of these, by number, it is
    the first one to read; under the number after the last kernel those that only outputs read.

    Reducing takes place while the kernels in between run."""
    first_reader = {
        i: next((j for j in range(i + 1, len(kernels)) if _reads(flow, kernels[j], k)), None)
        for i, k in enumerate(kernels)
        if k.kind == "collective"
    }
    waits: dict[int, tuple[int, ...]] = {}
    for i, reader in first_reader.items():
        at = len(kernels) if reader is None else reader
        waits[at] = (*waits.get(at, ()), i)
    return waits


def _reads(flow: DataflowGraph, reader: Kernel, collective: Kernel) -> bool:
    return not {flow.base[name] for name in reader.inputs}.isdisjoint(collective.outputs)

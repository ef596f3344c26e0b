"""Kernel scheduling: program order, as far as operands and overwritten states allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx

from netdsl.errors import internal_error
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.kernel import Kernel
from netdsl.plan.kernel_dag import build_kernel_dag


def schedule_kernels(
    flow: DataflowGraph, kernels: Sequence[Kernel], in_place_updates: Mapping[str, str]
) -> tuple[list[Kernel], set[str]]:
    """Returns the kernels in an executable order, and the states whose updates must be deferred.

    Among the kernels that are ready, collectives run first, since other kernels run while they
    are reduced, then the first in program order; batched updates run last. `in_place_updates` maps
    each state that a kernel overwrites to the value written there; such a kernel runs after all
    other readers of its state. Where that is impossible (two states that swap values), the states
    concerned are returned and the order ignores them.
    """
    dag = build_kernel_dag(flow, kernels)
    anti_dependencies = _find_anti_dependencies(flow, kernels, in_place_updates)
    waiting = _find_cyclic_states(dag, anti_dependencies)
    for state in anti_dependencies.keys() - waiting:
        dag.add_edges_from(anti_dependencies[state])
    priority = [_find_priority(k, bool(dag[i])) for i, k in enumerate(kernels)]
    try:
        order = list(nx.lexicographical_topological_sort(dag, lambda i: (priority[i], i)))
    except nx.NetworkXUnfeasible:
        names = ", ".join(kernels[i].name for i, _ in nx.find_cycle(dag))
        raise internal_error(f"kernels wait for each other: {names}") from None
    return [kernels[i] for i in order], waiting


def _find_priority(kernel: Kernel, has_readers: bool) -> int:
    """The place of a kernel among those that are ready: the lowest number runs first."""
    if kernel.kind == "collective":
        return -1
    return int(bool(kernel.parts) and not has_readers)


AntiDependencies = Mapping[str, Sequence[tuple[int, int]]]
"""For each state, pairs of a reader and the kernel that overwrites it."""


def _find_anti_dependencies(
    flow: DataflowGraph, kernels: Sequence[Kernel], in_place_updates: Mapping[str, str]
) -> AntiDependencies:
    writer = {o: i for i, k in enumerate(kernels) for o in k.outputs}
    anti_dependencies: dict[str, list[tuple[int, int]]] = {state: [] for state in in_place_updates}
    for i, k in enumerate(kernels):
        for state in {flow.base[a] for a in k.inputs} & anti_dependencies.keys():
            if writer[in_place_updates[state]] != i:
                anti_dependencies[state].append((i, writer[in_place_updates[state]]))
    return anti_dependencies


def _find_cyclic_states(dag: nx.DiGraph, anti_dependencies: AntiDependencies) -> set[str]:
    """Returns the states that no order allows their kernels to overwrite: these would have to run
    both before and after another reader."""
    whole = nx.DiGraph(dag.edges)
    whole.add_edges_from(pair for pairs in anti_dependencies.values() for pair in pairs)
    components = enumerate(nx.strongly_connected_components(whole))
    component = {i: number for number, found in components for i in found}
    return {
        s
        for s, pairs in anti_dependencies.items()
        if any(component[i] == component[j] for i, j in pairs)
    }

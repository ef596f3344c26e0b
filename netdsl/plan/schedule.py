"""The order of the kernels: program order, as far as operands and overwritten states allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx

from netdsl.errors import internal_error
from netdsl.plan.dag import kernel_dag
from netdsl.plan.flow import Flow
from netdsl.plan.kernel import Kernel


def schedule(
    flow: Flow, kernels: Sequence[Kernel], direct: Mapping[str, str]
) -> tuple[list[Kernel], set[str]]:
    """The kernels in an order in which they can run, and the states whose update has to wait.

    Of all that is ready, always what stands first; updates in one launch go last. `direct` names
    the states that a kernel writes over and the values that it writes there: such a kernel follows
    all other readers of its state. Where that is impossible (two states that trade places), the
    states concerned come back and the order is without them.
    """
    dag = kernel_dag(flow, kernels)
    turns = _turns(flow, kernels, direct)
    waiting = _trading(dag, turns)
    for state in turns.keys() - waiting:
        dag.add_edges_from(turns[state])
    last = [bool(k.parts) and not dag[i] for i, k in enumerate(kernels)]
    try:
        order = list(nx.lexicographical_topological_sort(dag, lambda i: (last[i], i)))
    except nx.NetworkXUnfeasible:
        names = ", ".join(kernels[i].name for i, _ in nx.find_cycle(dag))
        raise internal_error(f"kernels wait for each other: {names}") from None
    return [kernels[i] for i in order], waiting


Turns = Mapping[str, Sequence[tuple[int, int]]]
"""For each state, its readers, each with the kernel that writes over it."""


def _turns(flow: Flow, kernels: Sequence[Kernel], direct: Mapping[str, str]) -> Turns:
    writer = {o: i for i, k in enumerate(kernels) for o in k.outputs}
    turns: dict[str, list[tuple[int, int]]] = {state: [] for state in direct}
    for i, k in enumerate(kernels):
        for state in {flow.base[a] for a in k.inputs} & turns.keys():
            if writer[direct[state]] != i:
                turns[state].append((i, writer[direct[state]]))
    return turns


def _trading(dag: nx.DiGraph, turns: Turns) -> set[str]:
    """The states that no order lets their kernels write over: these come before and behind one of
    the other readers."""
    whole = nx.DiGraph(dag.edges)
    whole.add_edges_from(pair for pairs in turns.values() for pair in pairs)
    circles = enumerate(nx.strongly_connected_components(whole))
    circle = {i: number for number, found in circles for i in found}
    return {s for s, pairs in turns.items() if any(circle[i] == circle[j] for i, j in pairs)}

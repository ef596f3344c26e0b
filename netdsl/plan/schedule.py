"""The order of the kernels: program order, as far as operands and overwritten states allow."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from netdsl.errors import internal
from netdsl.plan.flow import Flow
from netdsl.plan.kernel import Kernel


def schedule(
    flow: Flow, kernels: Sequence[Kernel], direct: Mapping[str, str]
) -> tuple[list[Kernel], set[str]]:
    """The kernels in an order in which they can run, and the states whose update has to wait.

    `direct` names the states that a kernel writes over and the values that it writes there: such a
    kernel follows all other readers of its state. Where that is impossible (two states that trade
    places), the states concerned come back and the order is without them.
    """
    direct = dict(direct)
    waiting: set[str] = set()
    while True:
        order = _order(kernels, _before(flow, kernels, direct))
        if len(order) == len(kernels):
            return order, waiting
        stuck = {o for k in kernels if k not in order for o in k.outputs}
        caught = {state for state, value in direct.items() if value in stuck}
        if not caught:
            raise internal(f"kernels wait for each other: {', '.join(sorted(stuck))}")
        waiting |= caught
        direct = {s: v for s, v in direct.items() if s not in caught}


def _before(flow: Flow, kernels: Sequence[Kernel], direct: Mapping[str, str]) -> list[set[int]]:
    """For each kernel, which ones it has to follow."""
    writer = {o: i for i, k in enumerate(kernels) for o in k.outputs}
    before: list[set[int]] = [set() for _ in kernels]
    over = {state: writer[value] for state, value in direct.items()}
    for i, k in enumerate(kernels):
        for base in {flow.base[a] for a in k.inputs}:
            if base in writer:
                before[i].add(writer[base])
            if base in over and over[base] != i:
                before[over[base]].add(i)
    return before


def _order(kernels: Sequence[Kernel], before: Sequence[set[int]]) -> list[Kernel]:
    """Of all that is ready, always what stands first; updates in one launch go last. Kernels in a
    cycle are left out."""
    after: list[list[int]] = [[] for _ in kernels]
    missing = [len(b) for b in before]
    for i, those in enumerate(before):
        for j in those:
            after[j].append(i)
    last = [bool(k.parts) and not after[i] for i, k in enumerate(kernels)]
    ready = [(last[i], i) for i, n in enumerate(missing) if n == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, i = heapq.heappop(ready)
        order.append(kernels[i])
        for j in after[i]:
            missing[j] -= 1
            if missing[j] == 0:
                heapq.heappush(ready, (last[j], j))
    return order

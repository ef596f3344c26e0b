"""The executor: plans a graph and binds its kernels once, then runs them without a decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from netdsl.backends.base import Backend, Refreshed, Thunk
from netdsl.dump import dump_stage
from netdsl.errors import internal_error
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.plan_printer import format_kernels, format_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.runtime.state import State
from netdsl.types import Array, Graph

_MOST_SMALL = 1 << 16
"""Bytes of an input that is brought to the device together with others."""


class Workspace:
    """The plans of `graphs` that never run at the same time, and one arena for all of them, which
    is as large as the largest one needs."""

    def __init__(self, backend: Backend, graphs: Iterable[Graph]) -> None:
        self._backend = backend
        self._planned = [(graph, make_plan(graph, backend.fusion)) for graph in graphs]
        self._size = max(plan.arena_bytes for _, plan in self._planned)
        self._arena = backend.allocate(self._size)

    def plan(self, graph: Graph) -> Plan:
        """The plan of a graph, of those that it was made for or another one."""
        for known, plan in self._planned:
            if known is graph:
                return plan
        return make_plan(graph, self._backend.fusion)

    def arena(self, nbytes: int) -> Array:
        """Memory of at least so many bytes, whatever it holds."""
        if nbytes > self._size:
            self._arena, self._size = self._backend.allocate(nbytes), nbytes
        return self._arena


class Executor:
    """Runs one graph on one backend, with the states of one store, always at the same addresses.

    Only what outputs and updates need is run; constants are computed once. What `run` returns
    stays where the step wrote it: it is good until the next one, of any executor that has the same
    `workspace`. Where states are `settled`, they change only before a `refresh`, which must come
    before the first run too.
    """

    def __init__(
        self,
        graph: Graph,
        backend: Backend,
        state: State,
        settled: bool = False,
        workspace: Workspace | None = None,
    ) -> None:
        self.graph = graph
        self.backend = backend
        workspace = workspace or Workspace(backend, [graph])
        plan = verify_plan(workspace.plan(graph))
        own = {n.name for n in graph.states} - graph.updates.keys()
        self.plan = replace(plan, frozen_states=frozenset(own)) if settled else plan
        dump_stage("plan", lambda: format_plan(self.plan))
        dump_stage("kernels", lambda: format_kernels(self.plan))
        dump_stage("source", lambda: backend.source(self.plan))
        self._small = _small(self.plan, backend)
        memory = _memory(self.plan, backend, state, self._small)
        memory[ARENA] = workspace.arena(plan.arena_bytes)
        self.reads = tuple(n for n in self.plan.buffers if self.plan.graph[n].op == "state")
        self._inputs = {
            name: _array(self.plan, backend, memory, name)
            for name in self.plan.buffers
            if self.plan.graph[name].op == "input" and name not in self._small.views
        }
        self._outputs = {
            label: _array(self.plan, backend, memory, name)
            for label, name in self.plan.graph.outputs.items()
        }
        self.kernels = [backend.bind(self.plan, kernel, memory) for kernel in self.plan.kernels]
        self._step = backend.capture(self.kernels)

    def refresh(self) -> None:
        """Makes again what kernels keep of settled states."""
        for kernel in self.kernels:
            if isinstance(kernel, Refreshed):
                kernel.refresh()

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The outputs by name, on the backend; inputs that the graph does not read are ignored."""
        for name, target in (*self._inputs.items(), *self._small.views.items()):
            if inputs[name].shape != target.shape:
                raise internal_error(f"{name} is given {inputs[name].shape}, not {target.shape}")
        for name, target in self._inputs.items():
            self.backend.write(target, inputs[name])
        for name, view in self._small.views.items():
            view[...] = inputs[name]
        if self._small.views:
            self.backend.write(self._small.there, self._small.here)
        self.launch()
        return self._outputs

    def launch(self) -> None:
        """One run on the inputs that are there."""
        # overflow and NaN are seen in the results, not told by NumPy in the middle
        with np.errstate(all="ignore"):
            self._step()


@dataclass(frozen=True)
class _Small:
    """Inputs of a few bytes side by side: written `here`, by name, they come `there` in one copy;
    `memory` are their parts of that."""

    here: Array
    there: Array
    views: Mapping[str, Array]
    memory: Mapping[str, Array]


def _small(plan: Plan, backend: Backend) -> _Small:
    """Labels, weights of samples, rates and counters."""
    parts, at = dict[str, slice](), 0
    for name, size in plan.buffers.items():
        node = plan.graph[name]
        if node.op == "input" and node.type.rank < 2 and size <= _MOST_SMALL:
            begin = -(-at // backend.fusion.alignment) * backend.fusion.alignment
            at = begin + size
            parts[name] = slice(begin, at)
    here, there, views = np.zeros(at, np.uint8), backend.allocate(at), {}
    for name, part in parts.items():
        kind = plan.graph[name].type
        views[name] = here[part].view(dtype_of(kind.dtype)).reshape(kind.shape)
    return _Small(here, there, views, {name: there[part] for name, part in parts.items()})


def _memory(plan: Plan, backend: Backend, state: State, small: _Small) -> dict[str, Array]:
    """The buffers of a plan: an input's own, a state's array, a constant's value."""
    memory = dict(small.memory)
    for name, size in plan.buffers.items():
        node = plan.graph[name]
        if node.op == "state":
            memory[name] = state.array(name)
        elif node.op == "const":
            value = OPS["const"].reference(np, **node.attrs)
            memory[name] = backend.upload(value)
        elif name not in memory:
            memory[name] = backend.allocate(size)
    return memory


def _array(plan: Plan, backend: Backend, memory: Mapping[str, Array], name: str) -> Array:
    place = plan.placements[name]
    return backend.view(memory[place.buffer], place.dtype, place.layout)


class FoldedExecutor:
    """Runs a folded graph. `refresh` computes the folded states from those of `state` as they are
    now; it is to be called before `run` whenever these have changed."""

    def __init__(
        self,
        folded: FoldedGraph,
        backend: Backend,
        state: State,
        workspace: Workspace | None = None,
    ) -> None:
        own = State(backend, inside=state)
        kept = set(folded.prepare.updates)
        own.initialise((n for n in folded.prepare.states if n.name in kept), seed=0)
        workspace = workspace or Workspace(backend, [folded.prepare, folded.main])
        self._prepare = Executor(folded.prepare, backend, own, workspace=workspace)
        self.main = Executor(folded.main, backend, own, settled=True, workspace=workspace)

    @property
    def plan(self) -> Plan:
        return self.main.plan

    @property
    def kernels(self) -> list[Thunk]:
        return self.main.kernels

    @property
    def backend(self) -> Backend:
        return self.main.backend

    def refresh(self) -> None:
        self._prepare.run({})
        self.main.refresh()

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """As Executor.run."""
        return self.main.run(inputs)

    def launch(self) -> None:
        """As Executor.launch."""
        self.main.launch()

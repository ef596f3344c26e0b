"""The executor: plans a graph and binds its kernels once, then runs them without further
decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from netdsl.backends.base import AsyncThunk, Backend, RefreshableThunk, Thunk
from netdsl.dump import dump_stage
from netdsl.errors import internal_error
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.plan_printer import format_kernels, format_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.runtime.state import State
from netdsl.types import Array, Graph

_MAX_SMALL_INPUT = 1 << 16
"""Largest input, in bytes, that is copied to the device together with others."""


class Workspace:
    """The plans of `graphs` that never run at the same time, with one shared arena as large as the
    largest of them needs."""

    def __init__(self, backend: Backend, graphs: Iterable[Graph]) -> None:
        self._backend = backend
        self._plans = [(graph, make_plan(graph, backend.fusion)) for graph in graphs]
        self._size = max(plan.arena_bytes for _, plan in self._plans)
        self._arena = backend.allocate(self._size)

    def find_plan(self, graph: Graph) -> Plan:
        """Returns the plan of a graph; makes a new one for a graph that it was not created with."""
        for planned_graph, plan in self._plans:
            if planned_graph is graph:
                return plan
        return make_plan(graph, self._backend.fusion)

    def reserve_arena(self, nbytes: int) -> Array:
        """Returns memory of at least this many bytes, with arbitrary content."""
        if nbytes > self._size:
            self._arena, self._size = self._backend.allocate(nbytes), nbytes
        return self._arena


class Executor:
    """Runs one graph on one backend, with the states of one store, always at the same addresses.

    Only what outputs and updates need is run; constants are computed once. The arrays that `run`
    returns are not copied: they are valid until the next run of any executor with the same
    `workspace`. With `has_frozen_states`, states change only before a `refresh`, which is also
    required before the first run.
    """

    def __init__(
        self,
        graph: Graph,
        backend: Backend,
        state: State,
        has_frozen_states: bool = False,
        workspace: Workspace | None = None,
    ) -> None:
        self.graph = graph
        self.backend = backend
        workspace = workspace or Workspace(backend, [graph])
        plan = verify_plan(workspace.find_plan(graph))
        frozen_states = {n.name for n in graph.states} - graph.updates.keys()
        self.plan = (
            replace(plan, frozen_states=frozenset(frozen_states)) if has_frozen_states else plan
        )
        dump_stage("plan", lambda: format_plan(self.plan))
        dump_stage("kernels", lambda: format_kernels(self.plan))
        dump_stage("source", lambda: backend.generate_source(self.plan))
        self._small_inputs = _pack_small_inputs(self.plan, backend)
        memory = _allocate_buffers(self.plan, backend, state, self._small_inputs)
        memory[ARENA] = workspace.reserve_arena(plan.arena_bytes)
        self.state_names = tuple(n for n in self.plan.buffers if self.plan.graph[n].op == "state")
        self._inputs = {
            name: _view_array(self.plan, backend, memory, name)
            for name in self.plan.buffers
            if self.plan.graph[name].op == "input" and name not in self._small_inputs.host_views
        }
        self._outputs = {
            label: _view_array(self.plan, backend, memory, name)
            for label, name in self.plan.graph.outputs.items()
        }
        with pause_garbage_collection():
            self.kernels = [_bind(backend, self.plan, k, memory) for k in self.plan.kernels]
        self._step = backend.capture(list(_interleave(self.plan, self.kernels)))

    def refresh(self) -> None:
        """Recomputes what kernels derive from frozen states."""
        for kernel in self.kernels:
            if isinstance(kernel, RefreshableThunk):
                kernel.refresh()

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns the outputs by name, on the backend; ignores inputs that the graph does not
        read."""
        for name, target in (*self._inputs.items(), *self._small_inputs.host_views.items()):
            if inputs[name].shape != target.shape:
                raise internal_error(f"{name} has shape {inputs[name].shape}, not {target.shape}")
        for name, target in self._inputs.items():
            self.backend.write(target, inputs[name])
        for name, view in self._small_inputs.host_views.items():
            view[...] = inputs[name]
        if self._small_inputs.host_views:
            self.backend.write(self._small_inputs.device, self._small_inputs.host)
        self.launch()
        return self._outputs

    def launch(self) -> None:
        """Runs once on the current inputs."""
        # overflow and NaN show in the results; NumPy need not warn of them
        with np.errstate(all="ignore"):
            self._step()


def _bind(backend: Backend, plan: Plan, kernel: Kernel, memory: Mapping[str, Array]) -> Thunk:
    bind = backend.bind_collective if kernel.kind == "collective" else backend.bind
    return bind(plan, kernel, memory)


def _interleave(plan: Plan, thunks: Sequence[Thunk]) -> Iterator[Thunk]:
    """Yields the thunks of a plan's kernels in order, and the wait for a collective before the
    first of its readers."""
    for i, thunk in enumerate((*thunks, None)):
        for awaited in (thunks[j] for j in plan.waits.get(i, ())):
            assert isinstance(awaited, AsyncThunk)
            yield awaited.wait
        if thunk is not None:
            yield thunk.start if isinstance(thunk, AsyncThunk) else thunk


@dataclass(frozen=True)
class _SmallInputs:
    """Small inputs packed together: written by name to `host_views` of `host`, then copied to
    `device` at once; `device_views` are their parts of that."""

    host: Array
    device: Array
    host_views: Mapping[str, Array]
    device_views: Mapping[str, Array]


def _pack_small_inputs(plan: Plan, backend: Backend) -> _SmallInputs:
    """Packs labels, sample weights, rates and counters."""
    parts, offset = dict[str, slice](), 0
    for name, size in plan.buffers.items():
        node = plan.graph[name]
        if node.op == "input" and node.type.rank < 2 and size <= _MAX_SMALL_INPUT:
            begin = -(-offset // backend.fusion.alignment) * backend.fusion.alignment
            offset = begin + size
            parts[name] = slice(begin, offset)
    host, device, host_views = np.zeros(offset, np.uint8), backend.allocate(offset), {}
    for name, part in parts.items():
        tensor_type = plan.graph[name].type
        host_views[name] = host[part].view(dtype_of(tensor_type.dtype)).reshape(tensor_type.shape)
    return _SmallInputs(
        host, device, host_views, {name: device[part] for name, part in parts.items()}
    )


def _allocate_buffers(
    plan: Plan, backend: Backend, state: State, small_inputs: _SmallInputs
) -> dict[str, Array]:
    """Returns the buffers of a plan: a new one per input, a state's array, a constant's value."""
    memory = dict(small_inputs.device_views)
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


def _view_array(plan: Plan, backend: Backend, memory: Mapping[str, Array], name: str) -> Array:
    placement = plan.placements[name]
    return backend.view(memory[placement.buffer], placement.dtype, placement.layout)


class FoldedExecutor:
    """Runs a folded graph. `refresh` computes the folded states from the current states of `state`;
    call it before `run` whenever these have changed."""

    def __init__(
        self,
        folded: FoldedGraph,
        backend: Backend,
        state: State,
        workspace: Workspace | None = None,
    ) -> None:
        folded_state = State(backend, parent=state)
        folded_names = set(folded.prepare.updates)
        folded_state.initialise(
            (n for n in folded.prepare.states if n.name in folded_names), seed=0
        )
        workspace = workspace or Workspace(backend, [folded.prepare, folded.main])
        self._prepare = Executor(folded.prepare, backend, folded_state, workspace=workspace)
        self.main = Executor(
            folded.main, backend, folded_state, has_frozen_states=True, workspace=workspace
        )

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
        """Like Executor.run."""
        return self.main.run(inputs)

    def launch(self) -> None:
        """Like Executor.launch."""
        self.main.launch()

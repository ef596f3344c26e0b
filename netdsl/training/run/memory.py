"""Predicts a run's memory before anything is allocated, and advises if there is too little."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

from netdsl.data.prefetch import PREFETCH_DEPTH
from netdsl.errors import NetError, fail
from netdsl.ir.views import strip_views
from netdsl.ops import OPS
from netdsl.plan.fusion import NO_FUSION, FusionOptions
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan, make_plan
from netdsl.training.job import Job
from netdsl.types import Array, Node, format_bytes

MAX_TENSORS = 6
"""How many tensors an out-of-memory error lists."""
_COPIES = 2
"""Copies of all states on the host: the last good snapshot, and the one being saved."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a run in bytes, by use; without that of Python and the kernels' own code.

    `states` are those other than the weights. `step` is what is live at once during an update.
    `evaluation` is what evaluation needs beyond that, since both share one arena: its own folded
    and packed weights, and the difference in arena size if its arena is larger. On the host are
    `copies` of all states, and `data`: the images in memory and the prefetched batches."""

    weights: int
    states: int
    step: int
    evaluation: int
    copies: int
    data: int

    @property
    def device(self) -> int:
        """The bytes on the device."""
        return self.weights + self.states + self.step + self.evaluation

    @property
    def total(self) -> int:
        return self.device + self.copies + self.data

    def parts(self) -> dict[str, int]:
        """The bytes of each part; they add up to the total."""
        return asdict(self)


@dataclass(frozen=True)
class _Plans:
    """The plans of all graphs of a run."""

    step: tuple[Plan, ...]
    evaluation: tuple[Plan, ...]

    @staticmethod
    def of(job: Job, fusion: FusionOptions) -> _Plans:
        both = (job.training_graphs, job.evaluation_graphs)
        return _Plans(*(tuple(make_plan(g, fusion) for g in graphs) for graphs in both))

    @property
    def largest(self) -> Plan:
        """The plan with the largest arena."""
        return max((*self.step, *self.evaluation), key=lambda plan: plan.arena_bytes)


def predict_memory(job: Job, fusion: FusionOptions = NO_FUSION) -> Memory:
    """The memory that a job needs on a backend that offers `fusion`, without the kernels' own
    scratch memory."""
    return _estimate(job, _Plans.of(job, fusion))


def _estimate(job: Job, plans: _Plans) -> Memory:
    states = job.step_graph.states
    weights = sum(n.type.nbytes for n in states if n.attrs["trainable"])
    others = sum(n.type.nbytes for n in states) - weights
    step = max(plan.arena_bytes for plan in plans.step)
    evaluation = max(plan.arena_bytes for plan in plans.evaluation)
    return Memory(
        weights=weights,
        states=others,
        step=step + sum(map(_buffer_bytes, plans.step)),
        evaluation=max(0, evaluation - step)
        + sum(map(_buffer_bytes, plans.evaluation))
        + _evaluation_bytes(job),
        copies=_COPIES * (weights + others),
        data=_data_bytes(job),
    )


def _buffer_bytes(plan: Plan) -> int:
    """The bytes outside the arena: inputs and constants."""
    return sum(size for name, size in plan.buffers.items() if plan.graph[name].op != "state")


def _evaluation_bytes(job: Job) -> int:
    """The states of the evaluation: separate averages, folded weights, and packed copies of the
    operands of products."""
    folded = job.folded_evaluation
    own = _nbytes(job.evaluation_graph.states) if job.recipe.ema else 0
    kept = [n for n in folded.prepare.states if n.name in folded.prepare.updates]
    packed = [n for n in folded.main.states if n.type.rank > 1]
    return own + _nbytes(kept) + _nbytes(packed)


def _nbytes(nodes: Iterable[Node]) -> int:
    return sum(n.type.nbytes for n in nodes)


def _data_bytes(job: Job) -> int:
    """Images in memory, each array counted once, and prefetched batches."""
    read_test = job.dataset.read_test
    parts = [job.dataset.train, job.train, job.validation, *([read_test()] if read_test else [])]
    arrays: dict[int, Array] = {id(s.images): s.images for s in parts}
    held = sum(a.nbytes for a in arrays.values() if isinstance(a, np.ndarray))
    image = int(np.prod(job.network.image_shape)) * (4 if job.train.are_floats else 1)
    batches = max(job.images_per_update, job.evaluation_network.batch) * (PREFETCH_DEPTH + 2)
    return held + image * batches


def out_of_memory_error(
    job: Job, fusion: FusionOptions, free_bytes: int | None, with_batch: Callable[[int], Job]
) -> NetError:
    """The error for a job that does not fit: how much it needs, its largest tensors with their
    source lines, and the batch size that fits into `free_bytes`. `with_batch` returns the job with
    another batch size. If `free_bytes` is None, the memory is the host's, which also holds copies
    and data."""

    def needed(memory: Memory) -> int:
        return memory.total if free_bytes is None else memory.device

    plans = _Plans.of(job, fusion)
    memory, batch = _estimate(job, plans), job.recipe.data.batch
    wanted = needed(memory)
    there = f", but only {format_bytes(free_bytes)} are free" if free_bytes is not None else ""
    parts = ", ".join(f"{k} {format_bytes(v)}" for k, v in memory.parts().items())
    notes = [parts, *(_tensor_line(node) for node in largest_tensors(plans.largest))]
    fits = None
    if free_bytes is not None:
        fits = _find_batch(
            wanted, free_bytes, batch, lambda size: needed(predict_memory(with_batch(size), fusion))
        )
    help = _advice(job, memory, on_host=free_bytes is None)
    if fits:
        help = (
            f"setting `data.batch={fits}` fits; `precision = mixed` or `recompute` uses less memory"
        )
    return fail(f"a run needs {format_bytes(wanted)} of memory{there}", notes=notes, help=help)


def _advice(job: Job, memory: Memory, on_host: bool) -> str:
    """Advice on how to reduce the largest part."""
    states = memory.weights + memory.states + memory.copies * on_host
    judged = job.evaluation_network.batch
    taken = {
        "use a smaller `batch`, `precision = mixed` or `recompute`": memory.step,
        "use fewer weights, or an optimizer with fewer states, such as `sgd`": states,
        f"{judged:,} images are evaluated at once; use smaller images or fewer channels": (
            memory.evaluation
        ),
        "use fewer or smaller images": memory.data * on_host,
    }
    return max(taken, key=lambda advice: taken[advice])


def largest_tensors(plan: Plan) -> list[Node]:
    """The largest distinct values in a plan's arena, largest first."""
    kept = {
        strip_views(plan.graph, name).name
        for name, place in plan.placements.items()
        if place.buffer == ARENA
    }
    nodes = [plan.graph[n] for n in kept if OPS[plan.graph[n].op].kind != "leaf"]
    return sorted(nodes, key=lambda n: (-n.type.nbytes, n.name))[:MAX_TENSORS]


def _tensor_line(node: Node) -> str:
    where = ""
    if node.span is not None:
        where = f", {node.span.source.name}:{node.span.position[0]}"
    return f"`{node.name}` {node.type}, {format_bytes(node.type.nbytes)}{where}"


def _find_batch(
    wanted: int, free_bytes: int, batch: int, needed: Callable[[int], int]
) -> int | None:
    """Finds a batch size that fits, by planning ever smaller ones."""
    size = batch
    while size > 1:
        # the guess is too large, as some parts do not shrink with the batch; so it is repeated
        size = min(size - 1, max(1, size * free_bytes // wanted))
        wanted = needed(size)
        if wanted <= free_bytes:
            return size
    return None

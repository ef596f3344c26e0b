"""When each gradient of a training step is ready: the plan's kernels one after the other, each with
its minimum time on a device."""

from __future__ import annotations

from collections.abc import Iterator

from netdsl.backends.roofline import Ceilings
from netdsl.insight.profiler import count_kernel_work
from netdsl.insight.scaling import ReadyGradient, StepTimeline
from netdsl.language.network import Network
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.plan import Plan, make_plan
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.step.compile import compile_gradients
from netdsl.training.step.graphs import GRADIENT_PREFIX, training_graph
from netdsl.types import Graph


def predict_timeline(
    network: Network, recipe: Recipe, fusion: FusionOptions, ceilings: Ceilings
) -> StepTimeline:
    """The update of one GPU at the ceilings, by the plan of a batch whose gradients are written to
    memory, as an all-reduce needs them."""
    plan = make_plan(compile_gradients(network, recipe), fusion)
    clock, written = 0.0, dict[str, float]()
    for kernel in plan.kernels:
        clock += count_kernel_work(plan.graph, kernel).min_seconds(ceilings)
        written |= dict.fromkeys(kernel.outputs, clock)
    gradients = tuple(_find_gradients(plan, written, clock))
    update = _count_update_bytes(training_graph(network, recipe), plan.graph)
    return StepTimeline(
        network.batch,
        clock,
        (update + sum(g.size for g in gradients)) / ceilings.bandwidth,
        gradients,
        recipe.accumulate,
    )


def _find_gradients(plan: Plan, written: dict[str, float], end: float) -> Iterator[ReadyGradient]:
    """The gradients of a plan, each with the time at which the kernel that writes it ends; one that
    no kernel writes as a whole is ready at the end of the batch."""
    for output, node in plan.graph.outputs.items():
        if output.startswith(GRADIENT_PREFIX):
            ready = written.get(plan.flow.base[node], end)
            size = plan.graph[node].type.nbytes
            yield ReadyGradient(output.removeprefix(GRADIENT_PREFIX), size, ready)


def _count_update_bytes(step: Graph, gradients: Graph) -> int:
    """The bytes of weights and optimizer states that an update reads and writes besides the
    gradients: the states that a step updates and a batch does not."""
    updated = (n for n in step.states if n.name in step.updates)
    return 2 * sum(n.type.nbytes for n in updated if n.name not in gradients.updates)

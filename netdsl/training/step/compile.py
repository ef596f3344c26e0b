"""Compiles an elaborated net: the passes before and after differentiation, and folding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from netdsl.globs import match_globs
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.language.network import Network
from netdsl.passes import pass_manager
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.passes.pass_manager import Pass, PassObserver
from netdsl.passes.recompute import recompute
from netdsl.training.recipe.precision import low_precision
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.step.graphs import (
    accumulating_graph,
    evaluation_graph,
    gradient_graph,
    prediction_graph,
    training_graph,
)
from netdsl.types import Graph


@pause_garbage_collection()
def compile_step(
    network: Network,
    recipe: Recipe,
    watch: PassObserver | None = None,
    forward: tuple[Pass, ...] = pass_manager.FORWARD_PASSES,
    counter: str | None = None,
) -> Graph:
    """One optimizer step, ready for planning: runs the passes `forward` and those of the recipe's
    precision on the net, builds gradients and updates, then simplifies the whole step."""

    def build(n: Network) -> Graph:
        return _apply_recompute(training_graph(n, recipe, counter), n, recipe)

    return _compile(build, network, watch, (*forward, *_precision_passes(recipe)))


def compile_accumulation(network: Network, recipe: Recipe) -> Graph:
    """A batch whose gradients are only accumulated, ready for planning."""
    return _compile_batch(accumulating_graph, network, recipe)


def compile_gradients(network: Network, recipe: Recipe) -> Graph:
    """A batch with its gradients as outputs, ready for planning."""
    return _compile_batch(gradient_graph, network, recipe)


@pause_garbage_collection()
def _compile_batch(
    make: Callable[[Network, Recipe], Graph], network: Network, recipe: Recipe
) -> Graph:
    """A batch without an update of the weights, compiled like a step."""

    def build(n: Network) -> Graph:
        return _apply_recompute(make(n, recipe), n, recipe)

    passes = (*pass_manager.FORWARD_PASSES, *_precision_passes(recipe))
    return _compile(build, network, None, passes)


def _precision_passes(recipe: Recipe) -> tuple[Pass, ...]:
    low = low_precision(recipe.precision)
    return (
        (pass_manager.make_mixed_precision_pass(low.name), pass_manager.ALGEBRAIC_PASS)
        if low
        else ()
    )


def _apply_recompute(step: Graph, network: Network, recipe: Recipe) -> Graph:
    """The step with the blocks that `recompute` names recomputed in the backward pass. A nested
    block belongs to the outer one. Raises NetError if a glob matches nothing."""
    if not recipe.recompute:
        return step
    span = recipe.spans.get("recompute")
    hits = match_globs(
        recipe.recompute, list(network.nodes_by_path), "recompute", span, noun="place"
    )
    outermost = sorted({p for places in hits.values() for p in places}, key=len)
    regions = {}
    for name in network.graph.nodes:
        inside = (p for p in outermost if name.startswith(f"{p}."))
        region = next(inside, None)
        if region is not None:
            regions[name] = region
    return recompute(step, network.graph.nodes.keys(), regions)


@pause_garbage_collection()
def compile_evaluation(
    network: Network, recipe: Recipe, watch: PassObserver | None = None
) -> FoldedGraph:
    """The evaluation of a batch, and the graph that prepares its folded weights."""
    return pass_manager.prepare_inference(evaluation_graph(network, recipe), watch)


def compile_prediction(network: Network, recipe: Recipe) -> FoldedGraph:
    """The scores and probabilities of a batch, and the graph that prepares its folded weights."""
    return pass_manager.prepare_inference(prediction_graph(network, recipe))


def _compile(
    build: Callable[[Network], Graph],
    network: Network,
    watch: PassObserver | None,
    forward: tuple[Pass, ...],
) -> Graph:
    lowered = pass_manager.run_passes(network.graph, forward, watch)
    step = build(replace(network, graph=lowered))
    pass_manager.report_pass(watch, "grad", lowered, step)
    return pass_manager.run_passes(step, pass_manager.TRAINING_STEP_PASSES, watch)

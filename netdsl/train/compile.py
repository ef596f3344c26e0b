"""From an elaborated net to what is run: the passes around the gradient, and folding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from netdsl.language.network import Network
from netdsl.passes import pipeline
from netdsl.passes.fold import Folded
from netdsl.passes.pipeline import Pass, Watch
from netdsl.train.recipe import Recipe
from netdsl.train.step import accumulating_graph, evaluation_graph, training_graph
from netdsl.types import Graph


def compile_step(
    network: Network,
    recipe: Recipe,
    watch: Watch | None = None,
    forward: tuple[Pass, ...] = pipeline.FORWARD,
    counter: str | None = None,
) -> Graph:
    """One optimizer step, ready to be planned: the net meets the passes `forward`, then gradient
    and updates are built, then the whole step is simplified."""
    return _compiled(lambda n: training_graph(n, recipe, counter), network, watch, forward)


def compile_accumulation(network: Network, recipe: Recipe) -> Graph:
    """A batch whose gradients are only summed, ready to be planned."""
    return _compiled(lambda n: accumulating_graph(n, recipe), network, None, pipeline.FORWARD)


def compile_evaluation(network: Network, recipe: Recipe, watch: Watch | None = None) -> Folded:
    """The evaluation of a batch, and what prepares its folded weights."""
    return pipeline.inference(evaluation_graph(network, recipe), watch)


def _compiled(
    build: Callable[[Network], Graph],
    network: Network,
    watch: Watch | None,
    forward: tuple[Pass, ...],
) -> Graph:
    lowered = pipeline.run(network.graph, forward, watch)
    return pipeline.run(build(replace(network, graph=lowered)), pipeline.STEP, watch)

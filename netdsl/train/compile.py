"""From an elaborated net to what is run: the passes around the gradient, and folding."""

from __future__ import annotations

from dataclasses import replace

from netdsl.language.network import Network
from netdsl.passes import pipeline
from netdsl.passes.fold import Folded
from netdsl.passes.pipeline import Pass, Watch
from netdsl.train.recipe import Recipe
from netdsl.train.step import evaluation_graph, training_graph
from netdsl.types import Graph


def compile_step(
    network: Network,
    recipe: Recipe,
    watch: Watch | None = None,
    forward: tuple[Pass, ...] = pipeline.FORWARD,
) -> Graph:
    """One optimizer step, ready to be planned: the net meets the passes `forward`, then gradient
    and updates are built, then the whole step is simplified."""
    lowered = pipeline.run(network.graph, forward, watch)
    step = training_graph(replace(network, graph=lowered), recipe)
    return pipeline.run(step, pipeline.STEP, watch)


def compile_evaluation(network: Network, recipe: Recipe, watch: Watch | None = None) -> Folded:
    """The evaluation of a batch, and what prepares its folded weights."""
    return pipeline.inference(evaluation_graph(network, recipe), watch)

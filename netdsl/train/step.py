"""The training step and the evaluation as graphs: loss, gradients, clipping, updates; all IR."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.errors import fail
from netdsl.ir.builder import Builder
from netdsl.ir.grad import grad
from netdsl.ir.verify import verify
from netdsl.language.network import Network
from netdsl.train.losses import class_scores, loss_of, weighted_mean
from netdsl.train.optimizers import Update, update
from netdsl.train.recipe import Recipe
from netdsl.types import Graph, Node, TensorType


def _targets(b: Builder, batch: int) -> tuple[Node, Node]:
    labels = b.input("labels", TensorType((batch,), "int32"))
    return labels, b.input("weights", TensorType((batch,), b.dtype))


def training_graph(network: Network, recipe: Recipe) -> Graph:
    """One optimizer step. Inputs: the net's, `labels`, `weights`, `lr`, and `step` and `seed` where
    something asks for them. Outputs: `loss` (all outputs, weighted), `main_loss`, `accuracy`."""
    b = Builder(network.graph, network.dtype)
    labels, weights = _targets(b, network.batch)
    losses: dict[str, Node] = {}
    for name, node in network.graph.outputs.items():
        with b.at(None, f"loss.{name}"):
            scores = class_scores(b, network.graph[node])
            losses[name] = weighted_mean(b, loss_of(b, recipe.loss, scores, labels), weights)
            if name == "main":
                total = losses[name]
                accuracy = weighted_mean(b, b.top_hit(scores, labels, k=1), weights)
            else:
                total = b.add(total, b.mul(losses[name], b.const(network.weights[name])))
    updates = {state: b.nodes[node] for state, node in network.graph.updates.items()}
    updates |= _optimize(b, network, recipe, total)
    results = {"loss": total, "main_loss": losses["main"], "accuracy": accuracy}
    return verify(b.graph(results, updates, f"{network.name}.train"))


def _optimize(b: Builder, network: Network, recipe: Recipe, loss: Node) -> dict[str, Node]:
    if not network.parameters:
        raise fail(f"`{network.name}` has nothing to learn", help="a `conv` or `fc` has weights")
    gradients = grad(b, loss, network.parameters)
    if recipe.clip is not None:
        gradients = _clipped(b, gradients, recipe.clip)
    updates: dict[str, Node] = {}
    for weight in network.parameters:
        with b.at(weight.span, f"update.{weight.name}"):
            part = Update(b, weight, gradients[weight.name], updates)
            updates[weight.name] = update(part, recipe.optimizer)
    return updates


def _clipped(b: Builder, gradients: dict[str, Node], most: float) -> dict[str, Node]:
    """All gradients scaled so that their joint norm is at most `most` (Pascanu et al. 2013)."""
    with b.at(None, "clip"):
        norm = b.sqrt(_total([_square_sum(b, g) for g in gradients.values()], b))
        factor = b.minimum(b.div(b.const(most), b.add(norm, b.const(1e-6))), b.const(1.0))
        return {name: b.mul(g, factor) for name, g in gradients.items()}


def _square_sum(b: Builder, g: Node) -> Node:
    return b.reduce_sum(b.mul(g, g), axes=tuple(range(g.type.rank)))


def _total(parts: Sequence[Node], b: Builder) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = b.add(total, part)
    return total


def evaluation_graph(network: Network, recipe: Recipe) -> Graph:
    """Sums over a batch, by weight: `loss`, `top1`, `top5`, `count`; and the `scores`."""
    b = Builder(network.graph, network.dtype)
    labels, weights = _targets(b, network.batch)
    with b.at(None, "score"):
        scores = class_scores(b, network.graph[network.graph.outputs["main"]])
        results = {
            "loss": loss_of(b, recipe.loss, scores, labels),
            "top1": b.top_hit(scores, labels, k=1),
            "top5": b.top_hit(scores, labels, k=5),
        }
        sums = {k: b.reduce_sum(b.mul(v, weights), axes=(0,)) for k, v in results.items()}
        ready = network.graph[network.graph.outputs["main"]].op == "softmax"
        sums |= {
            "count": b.reduce_sum(weights, axes=(0,)),
            "scores": scores if ready else b.softmax(scores),
        }
    return verify(b.graph(sums, name=f"{network.name}.eval"))

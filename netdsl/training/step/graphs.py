"""The training step and the evaluation as graphs: loss, gradients, clipping, updates; all IR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.globs import match_globs, matches_any_glob, matches_glob
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.ir.verifier import verify_graph
from netdsl.ir.views import strip_views
from netdsl.language.network import Network
from netdsl.training.recipe.losses import Probabilities, class_scores, pairwise_sum, weighted_mean
from netdsl.training.recipe.optimizers import Update, emit_update
from netdsl.training.recipe.precision import has_loss_scale, low_precision
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.recipe.targets import LABEL_THRESHOLD, Targets
from netdsl.training.step.loss_scale import SCALE, SKIP_FLAG, LossScale
from netdsl.training.step.rank_reduction import (
    reduce_gradients,
    reduce_results,
    sort_by_readiness,
)
from netdsl.training.step.targets import declare_targets
from netdsl.types import Graph, Node, TensorType

SUM_SUFFIX = ".gradient"
"""The suffix of states that accumulate gradients. They hold zeros between two updates."""

GRADIENT_PREFIX = "gradient."
"""The prefix of outputs that are gradients."""


@dataclass(frozen=True)
class Forward:
    """A net with its loss: the reported results and the state updates."""

    b: Builder
    results: dict[str, Node]
    updates: dict[str, Node]

    @property
    def loss(self) -> Node:
        return self.results["loss"]


def build_forward(network: Network, recipe: Recipe) -> Forward:
    """Builds the net, its losses and the states that it updates without a gradient."""
    b = Builder(network.graph, network.dtype)
    targets = declare_targets(b, recipe, network, training=True)
    losses: dict[str, Node] = {}
    for name, node in network.graph.outputs.items():
        with b.at(None, f"loss.{name}"):
            scores = class_scores(b, network.graph[node])
            if targets.distribution is not None or recipe.loss.class_weights:
                _check_score_count(name, network.graph[node], targets.classes)
            losses[name] = recipe.loss.mean(b, scores, targets)
            if name == "main":
                total = losses[name]
                hits = _emit_hits(b, network, recipe, scores, targets)
                accuracy = weighted_mean(b, hits, targets)
            else:
                total = b.add(total, b.mul(losses[name], b.const(network.loss_weights[name])))
    updates = {state: b.nodes[node] for state, node in network.graph.updates.items()}
    return Forward(b, {"loss": total, "main_loss": losses["main"], "accuracy": accuracy}, updates)


def _check_score_count(name: str, output: Node, classes: int) -> None:
    """Raises NetError if a side output does not give as many scores as the main one."""
    if output.type.shape[-1] != classes:
        raise fail(
            f"the output `{name}` gives {output.type.shape[-1]:,} scores, but the net's end gives "
            f"{classes:,}",
            output.span,
            help="all outputs of a net must have the same classes",
        )


@pause_garbage_collection()
def training_graph(network: Network, recipe: Recipe, counter: str | None = None) -> Graph:
    """One update of the weights. Inputs: the net's, those of its targets and of class weights,
    `lr`, and as needed `step` (batches so far), `seed`, `ema_rate`, and `counter`, which counts
    updates: `step` unless an update takes several batches. Outputs: `loss` (all outputs, weighted),
    `main_loss`, `accuracy`; with a scaled loss also `left_out` and the new `loss_scale`. On several
    ranks, these and the gradients are means over all, and `signals` are an input and an output."""
    f = build_forward(network, recipe)
    b, learnt = f.b, trainable_weights(network, recipe)
    scale = _loss_scale(f, recipe)
    gradients = _scaled_gradients(f, learnt, scale)
    if network.ranks > 1:
        gradients = sort_by_readiness(b, gradients)
    updates = dict(f.updates)
    if recipe.accumulate > 1:
        gradients = _unscale(gradients, scale)
        gradients = _mean_gradients(b, gradients, recipe.accumulate, updates)
        gradients = reduce_gradients(b, gradients, network.ranks)
    else:  # what unscales them is part of the updates
        gradients = _unscale(reduce_gradients(b, gradients, network.ranks), scale)
    finite = scale.all_finite(gradients) if scale else None
    if recipe.clip is not None:
        gradients = _clip_gradients(b, gradients, recipe.clip)
    counter = counter or ("update" if recipe.accumulate > 1 else "step")
    for weight in learnt:
        with b.at(weight.span, f"update.{weight.name}"):
            share = _rate_scale(weight.name, recipe)
            skipped = scale.skipped_steps if scale else None
            part = Update(b, weight, gradients[weight.name], updates, share, counter, skipped)
            updates[weight.name] = emit_update(part, recipe.optimizer)
            if recipe.ema is not None:
                _update_ema(b, weight, updates)
    results = reduce_results(b, f.results, network.ranks)
    if scale and finite:
        sums = {name: new for name, new in updates.items() if name.endswith(SUM_SUFFIX)}
        renewed = scale.next_states(finite)
        updates = scale.skip_unless_finite(finite, updates) | sums | renewed
        results |= {SKIP_FLAG: scale.skip_flag(finite), SCALE: renewed[SCALE]}
    return verify_graph(b.build(results, updates, f"{network.name}.train"))


@pause_garbage_collection()
def accumulating_graph(network: Network, recipe: Recipe) -> Graph:
    """One batch whose gradients are only added to the states that the next update reads."""
    f = build_forward(network, recipe)
    scale = _loss_scale(f, recipe)
    learnt = trainable_weights(network, recipe)
    gradients = _unscale(_scaled_gradients(f, learnt, scale), scale)
    updates = dict(f.updates)
    results = reduce_results(f.b, f.results, network.ranks)
    if scale:
        finite = scale.all_finite(gradients, network.ranks)
        updates = scale.skip_unless_finite(finite, updates)
        results |= {SKIP_FLAG: scale.skip_flag(finite), SCALE: scale.scale}
    for name, g in gradients.items():
        slot = _gradient_sum(f.b, name, g)
        updates[slot.name] = f.b.add(slot, g)
    return verify_graph(f.b.build(results, updates, f"{network.name}.accumulate"))


@pause_garbage_collection()
def gradient_graph(network: Network, recipe: Recipe) -> Graph:
    """A batch whose gradients, as the backward pass gives them and in the order of their readiness,
    are outputs: `gradient.NAME` of each weight that is trained. The weights stay as they are."""
    f = build_forward(network, recipe)
    scale, learnt = _loss_scale(f, recipe), trainable_weights(network, recipe)
    gradients = sort_by_readiness(f.b, _scaled_gradients(f, learnt, scale))
    outputs = {f"{GRADIENT_PREFIX}{name}": g for name, g in gradients.items()}
    return verify_graph(f.b.build(f.results | outputs, f.updates, f"{network.name}.gradients"))


def trainable_weights(network: Network, recipe: Recipe) -> tuple[Node, ...]:
    """The weights that a recipe trains. Raises NetError if there are none or if a glob of the
    recipe matches nothing."""
    names = [n.name for n in network.parameters]
    match_globs(
        recipe.freeze, [n.name for n in network.graph.states], "freeze", recipe.spans.get("freeze")
    )
    match_globs([g for g, _ in recipe.lr_scale], names, "lr_scale", recipe.spans.get("lr_scale"))
    places, span = list(network.nodes_by_path), recipe.spans.get("recompute")
    match_globs(recipe.recompute, places, "recompute", span, noun="place")
    if not names:
        raise fail(
            f"`{network.name}` has no weights to train",
            help="add a layer with weights, such as `conv` or `fc`",
        )
    learnt = tuple(n for n in network.parameters if not matches_any_glob(n.name, recipe.freeze))
    if not learnt:
        raise fail(
            f"`freeze` leaves nothing to train in `{network.name}`", recipe.spans.get("freeze")
        )
    return learnt


def _loss_scale(f: Forward, recipe: Recipe) -> LossScale | None:
    low = low_precision(recipe.precision)
    return LossScale(f.b, low) if low and has_loss_scale(recipe.precision) else None


def _scaled_gradients(
    f: Forward, learnt: Sequence[Node], scale: LossScale | None
) -> dict[str, Node]:
    """The gradients of the loss, scaled if it is."""
    return grad(f.b, f.loss if scale is None else scale.scale_loss(f.loss), learnt)


def _unscale(gradients: dict[str, Node], scale: LossScale | None) -> dict[str, Node]:
    """The gradients of the unscaled loss."""
    return gradients if scale is None else scale.unscale_gradients(gradients)


def _rate_scale(name: str, recipe: Recipe) -> float:
    return ([1.0] + [factor for glob, factor in recipe.lr_scale if matches_glob(name, glob)])[-1]


def _gradient_sum(b: Builder, name: str, gradient: Node) -> Node:
    return b.state(f"{name}{SUM_SUFFIX}", gradient.type, ("constant", 0.0), trainable=False)


def _mean_gradients(
    b: Builder, gradients: dict[str, Node], batches: int, updates: dict[str, Node]
) -> dict[str, Node]:
    """Means over several batches: the accumulated sums plus this batch. Resets the sums."""
    means = {}
    with b.at(None, "accumulate"):
        for name, g in gradients.items():
            slot = _gradient_sum(b, name, g)
            means[name] = b.mul(b.add(slot, g), b.const(1 / batches))
            updates[slot.name] = b.broadcast(b.const(0.0), shape=g.type.shape)
    return means


def _update_ema(b: Builder, weight: Node, updates: dict[str, Node]) -> None:
    """Adds a moving average of the weight as a state: Polyak & Juditsky 1992, with a decay."""
    slot = b.state(f"{weight.name}.ema", weight.type, ("constant", 0.0), trainable=False)
    rate = b.input("ema_rate", TensorType((), b.dtype))
    updates[slot.name] = b.descend(slot, b.sub(slot, updates[weight.name]), rate)


def _clip_gradients(b: Builder, gradients: dict[str, Node], most: float) -> dict[str, Node]:
    """Scales all gradients so that their global norm is at most `most` (Pascanu et al. 2013)."""
    with b.at(None, "clip"):
        norm = b.sqrt(pairwise_sum(b, [_square_sum(b, g) for g in gradients.values()]))
        factor = b.minimum(b.div(b.const(most), b.add(norm, b.const(1e-6))), b.const(1.0))
        return {name: b.mul(g, factor) for name, g in gradients.items()}


def _square_sum(b: Builder, g: Node) -> Node:
    return b.reduce_sum(b.mul(g, g), axes=tuple(range(g.type.rank)))


@pause_garbage_collection()
def evaluation_graph(network: Network, recipe: Recipe) -> Graph:
    """The results of `_score_sums` for a batch."""
    b = Builder(network.graph, network.dtype)
    targets = declare_targets(b, recipe, network)
    with b.at(None, "score"):
        scores = class_scores(b, network.main_output)
        results = _score_sums(b, network, recipe, scores, targets)
    return verify_graph(b.build(results, name=f"{network.name}.eval"))


def prediction_graph(network: Network, recipe: Recipe) -> Graph:
    """The `scores` of a batch, [N, classes], and their `probabilities`. Raises NetError if the net
    gives more than one score per class."""
    b = Builder(network.graph, network.dtype)
    with b.at(None, "score"):
        scores = class_scores(b, network.main_output)
        probabilities = _emit_probabilities(b, network, recipe, scores)
    results = {"scores": scores, "probabilities": probabilities}
    return verify_graph(b.build(results, name=f"{network.name}.predict"))


def scoring_graph(network: Network, recipe: Recipe) -> Graph:
    """The results of `_score_sums` for given scores of a net, an input [batch, classes]."""
    b = Builder(dtype=network.dtype)
    targets = declare_targets(b, recipe, network)
    scores = b.input("scores", TensorType((network.batch, targets.classes), network.dtype))
    with b.at(None, "score"):
        results = _score_sums(b, network, recipe, scores, targets)
    return verify_graph(b.build(results, name="score"))


def find_probability_function(network: Network, recipe: Recipe) -> Probabilities | None:
    """The function that makes probabilities of scores, as the loss says; None for a net that ends
    in one itself."""
    if _find_end(network) in ("softmax", "sigmoid"):
        return None
    return recipe.loss.probabilities or "softmax"


def has_label_probabilities(network: Network, recipe: Recipe) -> bool:
    """Whether a trained net gives the probability of each label by itself, instead of those of
    classes of which an image has one: it ends in sigmoids, or its loss takes the sigmoid of each
    score."""
    return "sigmoid" in (_find_end(network), find_probability_function(network, recipe))


def _find_end(network: Network) -> str:
    """The operator that gives the main output."""
    return strip_views(network.graph, network.graph.outputs["main"]).op


def _emit_probabilities(b: Builder, network: Network, recipe: Recipe, scores: Node) -> Node:
    """The probabilities of classes or labels."""
    function = find_probability_function(network, recipe)
    if function is None:
        return scores
    return b.sigmoid(scores) if function == "sigmoid" else b.softmax(scores)


def _emit_hits(
    b: Builder, network: Network, recipe: Recipe, scores: Node, targets: Targets
) -> Node:
    """1 for each image that is right, else 0: [N]. With several labels per image, those count as
    found whose probability is above 0.5, and all must be right."""
    if targets.labels is not None:
        return b.top_hit(scores, targets.labels, k=1)
    zero, half, one = (b.const(v) for v in (0.0, LABEL_THRESHOLD, 1.0))
    found = _emit_probabilities(b, network, recipe, scores)
    absent = b.select(b.is_finite(found), one, zero)  # of a NaN, nothing is right
    wanted = b.greater(targets.smooth(b), half)
    if_found, if_absent = b.select(wanted, one, zero), b.select(wanted, zero, absent)
    right = b.select(b.greater(found, half), if_found, if_absent)
    count = b.reduce_sum(right, axes=(1,))
    return b.select(b.greater(count, b.const(targets.classes - 0.5)), one, zero)


def _score_sums(
    b: Builder, network: Network, recipe: Recipe, scores: Node, targets: Targets
) -> dict[str, Node]:
    """Weighted sums over a batch: `loss`, `top1`, `count`, and `top5` of data with one class an
    image; and the `scores` with their `probabilities`."""
    results = {
        "loss": recipe.loss.per_sample(b, scores, targets),
        "top1": _emit_hits(b, network, recipe, scores, targets),
    }
    if targets.labels is not None:
        results["top5"] = b.top_hit(scores, targets.labels, k=5)
    sums = {k: b.reduce_sum(b.mul(v, targets.weights), axes=(0,)) for k, v in results.items()}
    sums["count"] = b.reduce_sum(targets.weights, axes=(0,))
    probabilities = _emit_probabilities(b, network, recipe, scores)
    return sums | {"scores": scores, "probabilities": probabilities}

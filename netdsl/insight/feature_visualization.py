"""Feature visualisation: pictures that maximise the activation of a channel, by gradient ascent.

Erhan et al. 2009; the regularisers are those of Yosinski et al. 2015 (decay, blur) and Mordvintsev
et al. 2015 (jitter).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from netdsl.errors import fail
from netdsl.inference import Predictor
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.verifier import verify_graph
from netdsl.language.elaborate import Settings
from netdsl.language.network import Network
from netdsl.passes import pass_manager
from netdsl.runtime.executor import Executor
from netdsl.training.recipe.recipe import Recipe
from netdsl.types import Array, Graph, Node, TensorType, dims

CHOSEN, SCORE, GRADIENT = "chosen", "score", "gradient"
GREY = 127.5
_NOISE = 10.0


@dataclass(frozen=True)
class AscentSettings:
    """Settings of gradient ascent: `rate` in grey levels per step, `jitter` in pixels, `decay` the
    share of the contrast that each step removes, `blur` the initial standard deviation in pixels of
    the Gaussian smoothing; it shrinks to zero."""

    steps: int = 200
    rate: float = 6.0
    jitter: int = 2
    decay: float = 0.01
    blur: float = 1.0
    seed: int = 1


@dataclass(frozen=True)
class AscentResult:
    """Pictures [N,H,W,C] of grey levels from 0 to 255, and the first and last activation of
    each."""

    pictures: Array
    initial_activations: tuple[float, ...]
    final_activations: tuple[float, ...]


def ascent_graph(network: Network, place: str, image: str) -> Graph:
    """From pictures and `chosen` (one-hot, N x channels) to `score`, the mean of the chosen
    channel's map for each picture, and `gradient`, that of the sum of the scores by the
    pictures."""
    target = network.find_node(place)
    forward = pass_manager.run_passes(
        Graph(network.graph.nodes, {"y": target.name}, name=network.name),
        pass_manager.FORWARD_PASSES,
    )
    b = Builder(forward, network.dtype)
    y = b.nodes[forward.outputs["y"]]
    with b.at(None, "ascent"):
        means = _spatial_mean(b, y)
        chosen = b.input(CHOSEN, TensorType(means.type.shape, b.dtype))
        score = b.reduce_sum(b.mul(means, chosen), axes=(1,))
        total = b.reduce_sum(score, axes=(0,))
    gradient = grad(b, total, [b.nodes[image]])[image]
    graph = verify_graph(b.build({SCORE: score, GRADIENT: gradient}, name=f"{network.name}.ascent"))
    return pass_manager.run_passes(graph, pass_manager.TRAINING_STEP_PASSES)


def _spatial_mean(b: Builder, y: Node) -> Node:
    return b.reduce_mean(y, axes=tuple(range(1, y.type.rank - 1))) if y.type.rank > 2 else y


ScoreFunction = Callable[[Array], tuple[Array, Array]]
"""From pictures to their scores [N] and the gradient [N,H,W,C]."""


def ascend(
    score_function: ScoreFunction,
    shape: tuple[int, ...],
    settings: AscentSettings = AscentSettings(),
) -> AscentResult:
    """Maximises `score_function` over pictures [N,H,W,C], starting from grey noise. The length of a
    step does not depend on the size of the gradient; on small pictures the jitter is at most an
    eighth of their side."""
    jitter = min(settings.jitter, min(shape[1:3]) // 8)
    rng = np.random.default_rng(settings.seed)
    start = GREY + _NOISE * rng.standard_normal(shape)
    x = start = np.clip(start, 0, 255).astype(np.float32)
    for step in range(settings.steps):
        shift = rng.integers(-jitter, jitter + 1, size=2)
        _, g = score_function(np.roll(x, shift, axis=(1, 2)))
        g = np.roll(g, -shift, axis=(1, 2))
        x = x + settings.rate * g / (_root_mean_square(g) + 1e-12)
        x = GREY + (1 - settings.decay) * (x - GREY)
        x = np.clip(_blur(x, settings.blur * (1 - step / settings.steps)), 0, 255).astype(
            np.float32
        )
    before, after = (tuple(map(float, score_function(picture)[0])) for picture in (start, x))
    return AscentResult(x, before, after)


def _root_mean_square(g: Array) -> Any:
    """The root mean square of each picture's gradient."""
    return np.sqrt((g.astype(np.float64) ** 2).mean(axis=(1, 2, 3), keepdims=True))


def _blur(x: Array, deviation: float) -> Array:
    """Smooths pictures with a Gaussian truncated to the three nearest pixels; edge pixels are
    repeated beyond the edge."""
    if deviation < 0.1:
        return x
    weights = np.exp(-0.5 * (np.arange(-1, 2) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        low, high = (np.take(x, [i], axis=axis) for i in (0, -1))
        padded = np.concatenate([low, x, high], axis=axis)
        n = x.shape[axis]
        x = sum(w * padded.take(range(i, i + n), axis=axis) for i, w in enumerate(weights))
    return x


def visualize_channels(
    trained: Predictor, place: str, channel: int | None, max_channels: int, settings: AscentSettings
) -> tuple[tuple[int, ...], AscentResult]:
    """The pictures for one channel of a place, or for its first `max_channels`, optimised together.
    Raises NetError if there is no such place or channel."""
    count = _count_channels(trained.network(_elaboration_settings(trained.recipe, 1)), place)
    if channel is not None and channel >= count:
        message = f"`{place}` has no channel {channel}"
        raise fail(message, help=f"its {count} channels are numbered 0 to {count - 1}")
    channels = (channel,) if channel is not None else tuple(range(min(count, max_channels)))
    network = trained.network(_elaboration_settings(trained.recipe, len(channels)))
    image = network.image_input
    shape = network.graph[image].type.shape
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise fail(f"the net takes {dims(shape[1:])}; pictures have 1 or 3 channels")
    executor = Executor(ascent_graph(network, place, image), trained.backend, trained.state)
    chosen = np.eye(count, dtype=np.float32)[list(channels)]

    def score_function(pictures: Array) -> tuple[Array, Array]:
        out = executor.run({image: pictures, CHOSEN: chosen})
        score, gradient = (trained.backend.download(out[k]) for k in (SCORE, GRADIENT))
        return score, gradient

    return channels, ascend(score_function, shape, settings)


def _elaboration_settings(recipe: Recipe, batch: int) -> Settings:
    """As in evaluation, but for pictures with values between the grey levels."""
    return replace(recipe.settings(training=False, batch=batch), input_dtype="float32")


def _count_channels(network: Network, place: str) -> int:
    """The number of channels of a place's output. Raises NetError if there is no such place, or if
    no learnt weights precede it."""
    node = network.find_node(place)
    if not any(n.name in network.graph.backward_slice(node.name) for n in network.parameters):
        raise fail(f"`{place}` does not depend on any weights, so nothing is learned there")
    return node.type.shape[-1]

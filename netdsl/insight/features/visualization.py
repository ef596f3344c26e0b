"""Feature visualisation: pictures that activate the channels of a trained net most.

Erhan et al. 2009; the method is that of Olah et al. 2017, "Feature Visualization", Distill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.inference import Predictor
from netdsl.insight.features.ascent import AscentSettings, ascend
from netdsl.insight.features.fourier_pictures import FourierPictures
from netdsl.insight.features.objective import (
    CHOSEN,
    CHOSEN_BEFORE,
    GRADIENT,
    PAIRS,
    PEAK,
    SCORE,
    AscentGraph,
    FeatureObjective,
    build_ascent_graph,
    weigh_pairs,
)
from netdsl.language.elaborate import Settings
from netdsl.language.network import Network
from netdsl.runtime.executor import Executor
from netdsl.training.recipe.recipe import Recipe
from netdsl.types import Array, dims

MAX_BATCH = 8
"""The most pictures that are computed at once, unless more must differ from each other."""
_DIVERSITY_WEIGHT = 2.0
"""The weight of the similarity of pictures, relative to their activation."""


@dataclass(frozen=True)
class Feature:
    """The pictures of a channel, bytes [D,H,W,C]; the activation of each at the start and at the
    end of the ascent, and its largest value there."""

    channel: int
    pictures: Array
    before: tuple[float, ...]
    after: tuple[float, ...]
    peaks: tuple[float, ...]

    @property
    def is_dead(self) -> bool:
        """Whether the activation of no picture rose."""
        return not any(a > b for a, b in zip(self.after, self.before, strict=True))


@dataclass(frozen=True)
class FeatureRequest:
    """Which pictures to find: so many different ones (`diversity`) for each channel of a place, of
    height and width `size`, by default the net's."""

    place: str
    channels: tuple[int, ...]
    is_neuron: bool = False
    diversity: int = 1
    size: int | None = None


def visualize_features(
    trained: Predictor,
    request: FeatureRequest,
    settings: AscentSettings,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Feature]:
    """The features of the requested channels, in their order. `on_step` is called with the steps
    that are done, and their total. Raises NetError if there is no such place, or if the net does
    not take pictures, or none of the requested size."""
    count = request.diversity
    groups = _group_channels(request.channels, max(1, MAX_BATCH // count))
    total = len(groups) * settings.steps
    climber = _Climber(trained, request, len(groups[0]) * count)
    features: list[Feature] = []
    for i, channels in enumerate(groups):
        padded = (*channels, *[channels[-1]] * (len(groups[0]) - len(channels)))
        on_group_step = partial(_report_step, on_step, i * settings.steps, total)
        features += climber.climb(padded, settings, on_group_step)[: len(channels)]
    return features


def _report_step(on_step: Callable[[int, int], None], done: int, total: int, step: int) -> None:
    on_step(done + step, total)


def _group_channels(channels: Sequence[int], largest: int) -> list[tuple[int, ...]]:
    """The channels in as few groups as possible, all of about the same size."""
    groups = -(-len(channels) // largest)
    size = -(-len(channels) // groups)
    return [tuple(channels[i : i + size]) for i in range(0, len(channels), size)]


class _Climber:
    """A compiled ascent for a number of pictures."""

    def __init__(self, trained: Predictor, request: FeatureRequest, batch: int) -> None:
        network = _elaborate(trained, batch, request.size)
        self._image = network.image_input
        shape = network.graph[self._image].type.shape
        if len(shape) != 4 or shape[-1] not in (1, 3):
            raise fail(f"the net takes {dims(shape[1:])}; pictures have 1 or 3 channels")
        self._form = FourierPictures(*shape[1:])
        self._place, self._diversity = request.place, request.diversity
        objective = FeatureObjective(request.place, request.is_neuron, request.diversity > 1)
        self._graph = build_ascent_graph(network, objective)
        self._executor = Executor(self._graph.graph, trained.backend, trained.state)

    def climb(
        self, channels: Sequence[int], settings: AscentSettings, on_step: Callable[[int], None]
    ) -> list[Feature]:
        count = self._diversity
        wanted = np.repeat(channels, count)
        seeds = [(settings.seed, int(c), k) for c in channels for k in range(count)]
        landscape = _ChannelLandscape(self._graph, self._run, wanted)
        start, end = ascend(landscape, self._form, seeds, settings, on_step)
        before, _ = landscape.measure(start)
        after, peaks = landscape.measure(end)
        pictures: Array = np.round(end).astype(np.uint8)
        features = []
        for i, channel in enumerate(channels):
            part = slice(i * count, (i + 1) * count)
            values = (tuple(map(float, x[part])) for x in (before, after, peaks))
            features.append(Feature(channel, pictures[part], *values))
        return features

    def _run(self, inputs: dict[str, Array], pictures: Array) -> dict[str, Array]:
        given = {self._image: pictures.astype(np.float32), **inputs}
        out = self._executor.run(given)
        found = {k: self._executor.backend.download(v) for k, v in out.items()}
        if not all(np.isfinite(found[k]).all() for k in (SCORE, GRADIENT)):
            message = f"the gradient of `{self._place}` is not a finite number"
            raise fail(message, help="weights that are NaN or very large can be why")
        return found


class _ChannelLandscape:
    """The activations of one channel for each picture.

    Where an activation function blocks the gradient, a picture climbs the value before it: as long
    as its channel is 0 everywhere, and at the first step."""

    def __init__(
        self,
        graph: AscentGraph,
        run: Callable[[dict[str, Array], Array], dict[str, Array]],
        channels: Array,
    ) -> None:
        self._graph, self._run, self._channels = graph, run, channels
        self._one_hot = np.eye(graph.channels, dtype=np.float32)[channels]
        self._scores = np.zeros(len(channels), np.float32)

    def climb(self, pictures: Array) -> Array:
        found = self._evaluate(pictures, self._scores)
        self._scores = found[SCORE]
        return found[GRADIENT]

    def measure(self, pictures: Array) -> tuple[Array, Array]:
        """The activation of each picture's channel, and its largest value."""
        found = self._evaluate(pictures, self._scores)
        return found[SCORE], found[PEAK]

    def _evaluate(self, pictures: Array, scores: Array) -> dict[str, Array]:
        """The outputs of the graph, if the scores at the last step were these."""
        inputs = {CHOSEN: self._one_hot}
        if self._graph.has_value_before:
            inputs[CHOSEN_BEFORE] = self._one_hot * (scores <= 0)[:, None]
        if self._graph.is_diverse:
            weights = _DIVERSITY_WEIGHT * np.maximum(scores, 0)
            inputs[PAIRS] = weigh_pairs(self._channels, weights)
        return self._run(inputs, pictures)


def ascent_elaboration(recipe: Recipe, batch: int, size: int | None) -> Settings:
    """As in evaluation, but for pictures with values between the grey levels, of another size if
    `size` is given."""
    settings = replace(recipe.settings(training=False, batch=batch), input_dtype="float32")
    return settings if size is None else replace(settings, image_size=(size, size))


def _elaborate(trained: Predictor, batch: int, size: int | None) -> Network:
    """Raises NetError if the net does not take pictures of this size."""
    settings = ascent_elaboration(trained.recipe, batch, size)
    if size is None:
        return trained.network(settings)
    try:
        return trained.network(settings)
    except NetError as e:
        native = dims(trained.network(ascent_elaboration(trained.recipe, 1, None)).image_shape[:2])
        message = f"the net does not take pictures of {size}x{size}: {e.diagnostics[0].message}"
        help = f"without `--size`, pictures have the net's own size, {native}"
        raise fail(message, help=help) from None

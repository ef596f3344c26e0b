"""The features of chosen channels, with the strongest images of a data set beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.errors import fail, suggest_name
from netdsl.inference import Predictor
from netdsl.insight.features.ascent import AscentSettings
from netdsl.insight.features.sheets import FeatureRow, StrongestImages
from netdsl.insight.features.strongest_images import ImageSearch, Peaks, read_images
from netdsl.insight.features.visualization import Feature, FeatureRequest, visualize_features
from netdsl.limits import MAX_DEFAULT_FEATURES
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase

_PERCENTILE = 99.9


@dataclass(frozen=True)
class FeatureQuery:
    """Which features to find: of the `channels` of a place, as in `3,5`, or names of classes if
    the place gives the scores; without them, of the first few."""

    place: str
    channels: str | None
    is_neuron: bool = False
    diversity: int = 1
    size: int | None = None


@dataclass(frozen=True)
class FoundFeatures:
    """The features, and the channels that were left out because nothing changes their value."""

    rows: tuple[FeatureRow, ...]
    dead: tuple[int, ...]


class FeatureSearch:
    """Finds the features of a query."""

    def __init__(
        self,
        trained: Predictor,
        query: FeatureQuery,
        settings: AscentSettings,
        on_phase: OnPhase = ignore_phase,
    ) -> None:
        """Raises NetError if there is no such place or channel, if no learnt weights precede it,
        or if these are not finite."""
        self._trained, self._query, self._settings = trained, query, settings
        self._on_phase = on_phase
        network = trained.network(trained.recipe.settings(training=False, batch=1))
        node = network.find_node(query.place)
        before = network.graph.backward_slice(node.name)
        weights = [n.name for n in network.parameters if n.name in before]
        if not weights:
            message = f"`{query.place}` does not depend on any weights, so nothing is learned there"
            raise fail(message)
        values = trained.state.snapshot()
        broken = next((n for n in weights if not np.isfinite(values[n]).all()), None)
        if broken is not None:
            message = f"the weights `{broken}` are not finite: some are NaN or infinite"
            raise fail(message, help="use a checkpoint from before the training diverged")
        self._count = node.type.shape[-1]
        self._classes = trained.classes if node.name == network.main_output.name else ()
        self._chosen = None if query.channels is None else self._read_channels(query.channels)

    def run(self) -> FoundFeatures:
        """The features without a data set: a channel is dead if the ascent finds no way up."""
        channels = self._chosen or tuple(range(min(self._count, MAX_DEFAULT_FEATURES)))
        features = self._visualize(channels)
        rows = tuple(FeatureRow(self._name(f.channel), f) for f in features if not f.is_dead)
        return FoundFeatures(rows, tuple(f.channel for f in features if f.is_dead))

    def run_beside(self, dataset: str, folder: str | None, count: int) -> FoundFeatures:
        """The features beside the `count` strongest images of a data set (see `read_images`). A
        channel is dead if its value is the same for all images; the next ones take the place of
        dead ones that were not asked for."""
        samples = read_images(self._trained, dataset, folder)
        images = ImageSearch(self._trained, self._query.place, samples)
        peaks = images.find_peaks(self._on_phase)
        live = set(peaks.live_channels())
        wanted = self._chosen or tuple(range(self._count))
        channels = [c for c in wanted if c in live]
        if self._chosen is None:
            channels = channels[:MAX_DEFAULT_FEATURES]
        last = channels[-1] if channels and self._chosen is None else self._count
        dead = [c for c in wanted if c not in live and c <= last]
        features = self._visualize(channels) if channels else []
        rows = tuple(
            FeatureRow(self._name(f.channel), f, _find_strongest(images, peaks, f.channel, count))
            for f in features
        )
        return FoundFeatures(rows, tuple(dead))

    def _visualize(self, channels: Sequence[int]) -> list[Feature]:
        query = self._query
        request = FeatureRequest(
            query.place, tuple(channels), query.is_neuron, query.diversity, query.size
        )
        self._on_phase(Phase("compiling"))
        on_step = lambda done, total: self._on_phase(
            Phase("gradient ascent", done, total, unit="steps")
        )
        return visualize_features(self._trained, request, self._settings, on_step)

    def _name(self, channel: int) -> str:
        """The place and the channel; for the scores of classes, the name of the class too."""
        name = f"{self._query.place}:{channel}"
        if channel < len(self._classes) and self._classes[channel] != str(channel):
            return f"{name} {self._classes[channel]}"
        return name

    def _read_channels(self, text: str) -> tuple[int, ...]:
        words = [text] if text in self._classes and not text.isdecimal() else text.split(",")
        return tuple(dict.fromkeys(map(self._read_channel, words)))

    def _read_channel(self, word: str) -> int:
        if not word.isdecimal() and word in self._classes:
            return self._classes.index(word)
        if not word.isdecimal():
            advice = f"give integers from 0 up: `{self._query.place}:0,1`"
            help = suggest_name(word, self._classes, "its classes are") if self._classes else advice
            raise fail(f"`{word}` is not a channel", help=help)
        if len(word) > len(str(self._count)) or int(word) >= self._count:
            message = f"`{self._query.place}` has no channel {word[:20]}"
            help = f"its {self._count} channels are numbered 0 to {self._count - 1}"
            raise fail(message, help=help)
        return int(word)


def _find_strongest(images: ImageSearch, peaks: Peaks, channel: int, count: int) -> StrongestImages:
    numbers = peaks.strongest(channel, count)
    return StrongestImages(
        tuple(images.cut(peaks, n, channel) for n in numbers),
        tuple(numbers),
        tuple(float(peaks.values[n, channel]) for n in numbers),
        len(peaks.values),
        peaks.percentile(channel, _PERCENTILE),
    )

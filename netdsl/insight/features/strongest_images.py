"""The images of a data set that activate a channel most, cut to what the channel sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netdsl.data import sources
from netdsl.data.folder_scan import find_pictures
from netdsl.data.pictures import pictures_from_paths
from netdsl.data.samples import Samples, evaluation_batches
from netdsl.inference import Predictor
from netdsl.insight.receptive_field import ReceptiveField, find_receptive_field
from netdsl.language.network import Network
from netdsl.passes import pass_manager
from netdsl.runtime.executor import Executor
from netdsl.training.checks import check_images, evaluation_transform
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase
from netdsl.types import Array, Graph, Node

_BATCH = 16
_OUTSIDE = 128


@dataclass(frozen=True)
class Peaks:
    """The largest value of each channel of a place for each image, [N,C], and its row and column,
    [N,C,2]."""

    values: Array
    positions: Array

    def live_channels(self) -> list[int]:
        """The channels whose value is not the same for all images. The others are dead for
        these."""
        return [int(c) for c in np.flatnonzero(np.ptp(self.values, axis=0) > 0)]

    def strongest(self, channel: int, count: int) -> list[int]:
        """The images with the largest values of a channel, the largest first."""
        return [int(i) for i in np.argsort(-self.values[:, channel], kind="stable")[:count]]

    def percentile(self, channel: int, share: float) -> float:
        """The value of a channel that `share` percent of the images stay below."""
        return float(np.percentile(self.values[:, channel], share))


class ImageSearch:
    """The images of a data set as a net sees them, and what a place of the net says of them."""

    def __init__(self, trained: Predictor, place: str, samples: Samples) -> None:
        """Raises NetError if there is no such place, or if the images do not fit the net."""
        batch = min(_BATCH, len(samples))
        network = trained.network(trained.recipe.settings(training=False, batch=batch))
        check_images(network, trained.recipe.data, samples.image_shape)
        node = network.find_node(place)
        self._image, self._batch, self._samples = network.image_input, batch, samples
        self._transform = evaluation_transform(network, trained.recipe.data)
        self._field = _find_field(network, node)
        graph = Graph(network.graph.nodes, {"value": node.name}, name=network.name)
        compiled = pass_manager.run_passes(graph, pass_manager.FORWARD_PASSES)
        self._executor = Executor(compiled, trained.backend, trained.state)

    def find_peaks(self, on_phase: OnPhase = ignore_phase) -> Peaks:
        """The peaks of all images. Raises BadPicture if a file is not a picture."""
        found, done = [], 0
        for batch in evaluation_batches(self._samples, self._batch, self._transform):
            count = min(self._batch, len(self._samples) - done)
            found.append(self._find_peaks(batch.images, count))
            done += count
            on_phase(Phase("searching the data set", done, len(self._samples)))
        values, positions = zip(*found, strict=True)
        return Peaks(np.concatenate(values), np.concatenate(positions))

    def _find_peaks(self, images: Array, count: int) -> tuple[Array, Array]:
        """The values [count, C] and positions [count, C, 2] of the peaks of the first images."""
        out = self._executor.run({self._image: images})["value"]
        value = np.array(self._executor.backend.download(out))[:count]
        maps = value.reshape(count, -1, value.shape[-1])
        width = value.shape[2] if value.ndim == 4 else 1
        best = maps.argmax(axis=1)
        peaks = np.take_along_axis(maps, best[:, None], axis=1)[:, 0]
        return peaks, np.stack([best // width, best % width], axis=-1)

    def cut(self, peaks: Peaks, image: int, channel: int) -> Array:
        """The part of an image that a channel sees where it is strongest, bytes [H,W,C]; grey where
        that lies outside the image."""
        pixels = np.asarray(self._transform(self._samples.take(np.array([image])).images))[0]
        if self._field is None:
            return pixels
        row, column = (int(p) for p in peaks.positions[image, channel])
        (top, left), (bottom, right) = self._field.window((row, column))
        height, width = pixels.shape[:2]
        if bottom - top >= height and right - left >= width:
            return pixels
        part = np.full((bottom - top, right - left, pixels.shape[2]), _OUTSIDE, np.uint8)
        inside = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        y, x = max(-top, 0), max(-left, 0)
        part[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        return part


def _find_field(network: Network, node: Node) -> ReceptiveField | None:
    """None if a value depends on the whole image."""
    if node.type.rank != 4:
        return None
    image, field = find_receptive_field(network.graph, node)
    sides = zip(field.size, image.type.shape[1:3], strict=True)
    return None if all(n >= whole for n, whole in sides) else field


def read_images(trained: Predictor, place: str, folder: str | None) -> Samples:
    """The images of a data set: `run` for the training images of the run, in `folder` if it is
    given, else a folder of pictures. Raises NetError if there are none."""
    if place == RUN_DATA:
        data = trained.recipe.data
        return sources.load(data.source, folder, data.is_skipping_bad_pictures).train
    paths = find_pictures(Path(place))
    return Samples(pictures_from_paths(paths), np.zeros(len(paths), np.int32))


RUN_DATA = "run"
"""Stands for the data set of the run."""

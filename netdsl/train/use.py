"""Trained weights put to use: evaluation on a data set, predictions for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netdsl.data import sources
from netdsl.data.pictures import read_picture
from netdsl.data.samples import Batch
from netdsl.errors import fail
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.plan.backend import Backend
from netdsl.runtime.executor import FoldedExecutor
from netdsl.runtime.state import State
from netdsl.train import checkpoint
from netdsl.train.compile import compile_evaluation
from netdsl.train.fit import check_classes, check_images, single_input
from netdsl.train.job import EVALUATION_BATCH
from netdsl.train.metrics import Score, evaluate
from netdsl.train.recipe import resolve
from netdsl.train.start import adopted, shapes
from netdsl.types import Array

TOP = 5
Top = list[tuple[str, float]]


@dataclass(frozen=True)
class Report:
    """An evaluation; `confusion[i, j]` counts images of class i that were called j."""

    score: Score
    classes: tuple[str, ...]
    confusion: Array


class Trained:
    """A checkpoint ready to run. Raises NetError where it does not fit its own net."""

    def __init__(self, path: Path, backend: Backend) -> None:
        best = path / "best.safetensors"
        self.checkpoint = checkpoint.load(best if path.is_dir() and best.exists() else path)
        self.backend = backend
        self.program = self.checkpoint.program()
        self.recipe = resolve(self.program)
        self.state = State(backend)
        self.classes = self.checkpoint.classes

    def network(self, settings: Settings) -> Network:
        """The recipe's net, elaborated anew; `state` then holds the weights that it needs."""
        network = elaborate(self.program, self.recipe.net, settings)
        given, origin = checkpoint.usable(self.checkpoint.states), self.checkpoint.origin
        states = network.graph.states
        self.state.load(given, adopted(states, shapes(given), (), origin), origin)
        return network

    def picture(self, network: Network, path: Path) -> Array:
        """A picture file as the net's one image input takes it: bytes [1,H,W,C]."""
        shape = network.graph[single_input(network)].type.shape[1:]
        if len(shape) != 3:
            raise fail("the net does not take pictures")
        return read_picture(path, (shape[0], shape[1], shape[2]))[None]

    def _executor(self, batch: int) -> tuple[FoldedExecutor, Network]:
        network = self.network(self.recipe.settings(training=False, batch=batch))
        check_classes(network, self.classes)
        folded = compile_evaluation(network, self.recipe)
        executor = FoldedExecutor(folded, self.backend, self.state)
        executor.refresh()
        return executor, network

    def evaluate(self, folder: str | None) -> Report:
        """The test images of the recipe's source (its training images where it has none)."""
        dataset = sources.load(self.recipe.data.source, folder)
        samples = dataset.read_test() if dataset.read_test else dataset.train
        executor, network = self._executor(EVALUATION_BATCH)
        check_images(network, samples.images.shape[1:])
        n = len(self.classes)
        confusion = np.zeros((n, n), dtype=np.int64)

        def count(batch: Batch, out: Mapping[str, Array]) -> None:
            said = self.backend.download(out["scores"]).argmax(axis=1)
            real = batch.weights > 0
            np.add.at(confusion, (batch.labels[real], said[real]), 1)

        score = evaluate(executor, single_input(network), samples, EVALUATION_BATCH, count)
        return Report(score, self.classes, confusion)

    def predict(self, images: Sequence[Path]) -> list[tuple[Path, Top]]:
        """The likeliest classes of each picture, with their probabilities."""
        executor, network = self._executor(1)
        name = single_input(network)
        found = []
        for path in images:
            given = {
                name: self.picture(network, path),
                "labels": np.zeros(1, np.int32),
                "weights": np.ones(1, np.float32),
            }
            scores = self.backend.download(executor.run(given)["scores"])[0]
            best = np.argsort(-scores, kind="stable")[:TOP]
            found.append((path, [(self.classes[i], float(scores[i])) for i in best]))
        return found

"""Inference with trained weights: evaluation on a data set and predictions for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from netdsl.backends.base import Backend
from netdsl.data import sources
from netdsl.data.augment import bind_augmentation
from netdsl.data.pictures import pictures_from_paths
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.revisions import REVISIONS, SPLIT
from netdsl.data.samples import Batch, Dataset, Samples, evaluation_batches
from netdsl.errors import fail
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.ops.loss import rank_classes
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.training.checks import (
    check_class_scores,
    check_images,
    evaluation_batch,
    evaluation_transform,
)
from netdsl.training.job import split_samples
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.recipe.recipe import recipe_of_weights
from netdsl.training.recipe.targets import LABEL_THRESHOLD
from netdsl.training.run.score import Score, evaluate, evaluate_views
from netdsl.training.step.compile import compile_evaluation, compile_prediction
from netdsl.training.step.graphs import has_label_probabilities, scoring_graph
from netdsl.training.store import checkpoint
from netdsl.training.store.pipeline_revisions import find_split_revision
from netdsl.types import Array

TOP_K = 5
TopClasses = list[tuple[str, float]]


@dataclass(frozen=True)
class PicturePrediction:
    """The most likely classes of a picture with their probabilities; none if its scores contain
    NaN. Of a net that gives the probability of each label by itself, all of them, and in `labels`
    those that the picture has; else None."""

    path: Path
    top: TopClasses
    labels: TopClasses | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation on the test, validation or training images (`images` says which). `note` says
    what is known about training images that the weights were learned from.

    `confusion[i, j]` counts the images of class i predicted as j. An image whose scores contain NaN
    has no prediction."""

    score: Score
    images: str
    classes: tuple[str, ...]
    confusion: Array
    note: str = ""
    skipped: tuple[str, ...] = ()
    """What is wrong with each skipped picture."""

    @property
    def unclassified(self) -> int:
        """The number of images without a prediction."""
        return self.score.images - int(self.confusion.sum())

    def confused_pairs(self) -> list[tuple[str, str, int]]:
        """Returns (class, predicted class, count) of the misclassified images, most frequent
        first."""
        pairs = ((int(i), int(j)) for i, j in np.argwhere(self.confusion) if i != j)
        ranked = sorted(pairs, key=lambda p: -self.confusion[p])
        return [(self.classes[i], self.classes[j], int(self.confusion[i, j])) for i, j in ranked]


@dataclass(frozen=True)
class _Part:
    """A part of a data set, and what is known about it."""

    name: str
    samples: Samples
    note: str = ""


_ALL_LEARNED = "the weights were learned from these images"
_PART_LEARNED = "the weights were learned from a part of these images, as `limit` says"
_OTHER_DATA = "the data are not those of the run, which may have learned from some of these images"
_OTHER_SPLIT = (
    "the weights were learned from most of these images; another version of netdsl held out the "
    "others"
)


class Predictor:
    """A checkpoint ready to run. Raises NetError if it does not fit its own net."""

    def __init__(self, path: Path, backend: Backend) -> None:
        self.checkpoint = checkpoint.load_best(path)
        self.backend = backend
        self.program = self.checkpoint.program()
        self.recipe = recipe_of_weights(self.program)
        self.state = State(backend)
        self.classes = self.checkpoint.classes

    def network(self, settings: Settings) -> Network:
        """Elaborates the recipe's net anew and loads the weights that it needs into `state`."""
        network = elaborate(self.program, self.recipe.net, settings)
        given, origin = checkpoint.inference_states(self.checkpoint.states), self.checkpoint.origin
        states = network.graph.states
        self.state.load(given, match_states(states, shapes_of(given), (), origin), origin)
        return network

    def load_picture(self, network: Network, path: Path) -> Array:
        """Returns a picture file as the network's image input expects it: bytes [1,H,W,C]."""
        return evaluation_transform(network, self.recipe.data)(pictures_from_paths([path]))

    def _network(self, batch: int) -> Network:
        network = self.network(self.recipe.settings(training=False, batch=batch))
        check_class_scores(network, self.recipe, self.classes, self.checkpoint.origin)
        return network

    def _executor(self, folded: FoldedGraph) -> FoldedExecutor:
        executor = FoldedExecutor(folded, self.backend, self.state)
        executor.refresh()
        return executor

    def evaluate(self, folder: str | None, sizes: Sequence[int] = ()) -> EvaluationReport:
        """Evaluates on the test images of the recipe's source, else on its validation images or
        those that the run held out, else on its training images. With `sizes`, each image is
        evaluated with its short side resized to each of them, and the scores are averaged as suits
        the loss."""
        data = self.recipe.data
        dataset = sources.load(data.source, folder, data.is_skipping_bad_pictures)
        part = self._choose_part(dataset)
        samples = self._with_known_labels(part.samples, dataset.classes)
        learning = elaborate(self.program, self.recipe.net, self.recipe.settings(training=True))
        network = self._network(evaluation_batch(learning, data))
        check_images(network, data, samples.image_shape)
        recipe = replace(self.recipe, is_multi_label=samples.is_multi_label)
        executor = self._executor(compile_evaluation(network, recipe))
        n = len(self.classes)
        confusion = np.zeros((n, n), dtype=np.int64)

        def count(batch: Batch, out: Mapping[str, Array]) -> None:
            said = rank_classes(self.backend.download(out["scores"]))[:, 0]
            called = (batch.weights > 0) & (said >= 0)
            np.add.at(confusion, (batch.labels[called], said[called]), 1)

        views = [
            evaluation_batches(samples, network.batch, transform)
            for transform in self._transforms(network, sizes)
        ]
        name = network.image_input
        if len(views) == 1:
            score = evaluate(executor, name, views[0], count)
        else:
            scoring = Executor(scoring_graph(network, recipe), self.backend, self.state)
            mean = recipe.loss.average_scores
            score = evaluate_views(executor, scoring, mean, name, views, count)
        return EvaluationReport(
            score, part.name, self.classes, confusion, part.note, dataset.picture_errors
        )

    def _transforms(self, network: Network, sizes: Sequence[int]) -> list[Preprocessing]:
        """Returns the preprocessing of the images, one per size."""
        if not sizes:
            return [evaluation_transform(network, self.recipe.data)]
        least = min(network.image_shape[:2])
        if min(sizes) < least:
            raise fail(
                f"pictures of {min(sizes)} pixels are smaller than the {least} that the net takes"
            )
        chosen = (
            [bind_augmentation("resize", size=n), bind_augmentation("center_crop")] for n in sizes
        )
        return [Preprocessing(tuple(c), network.image_shape) for c in chosen]

    def _choose_part(self, dataset: Dataset) -> _Part:
        """Chooses the images to evaluate on. Those that the run held out are known if the data and
        the way to split them are the same."""
        if dataset.read_test is not None:
            return _Part("test", dataset.read_test())
        if dataset.validation is not None:
            return _Part("validation", dataset.validation)
        learned = self.checkpoint.progress.get("data")
        if learned not in (dataset.fingerprint, dataset.name_fingerprint):
            return _Part("training", dataset.train, _OTHER_DATA)
        revision = find_split_revision(self.checkpoint)
        if revision is None:
            note = _PART_LEARNED if self.recipe.data.limit else _ALL_LEARNED
            return _Part("training", dataset.train, note)
        if revision != 1 + len(REVISIONS[SPLIT]):
            return _Part("training", dataset.train, _OTHER_SPLIT)
        return _Part("validation", split_samples(dataset, self.recipe)[1])

    def _with_known_labels(self, samples: Samples, classes: tuple[str, ...]) -> Samples:
        """The samples of data with these classes, with labels numbered as in the checkpoint. Raises
        NetError if the data has classes that the checkpoint lacks."""
        if classes == self.classes:
            return samples
        strange = [c for c in classes if c not in self.classes]
        if strange:
            known = ", ".join(self.classes[:8]) + ", ..." * (len(self.classes) > 8)
            message = f"{self.checkpoint.origin} has no class `{strange[0]}`, which the data has"
            raise fail(message, help=f"its classes are {known}")
        places = np.array([self.classes.index(c) for c in classes], np.int32)
        return Samples(samples.images, places[samples.labels])

    def predict(self, images: Sequence[Path]) -> list[PicturePrediction]:
        """Returns what the net says of each picture."""
        network = self._network(1)
        has_labels = has_label_probabilities(network, self.recipe)
        executor = self._executor(compile_prediction(network, self.recipe))
        found = []
        for path in images:
            out = executor.run({network.image_input: self.load_picture(network, path)})
            scores, shares = (self.backend.download(out[k]) for k in ("scores", "probabilities"))
            ranked = rank_classes(scores)[0]
            best = ranked if has_labels else ranked[:TOP_K]
            top = [(self.classes[i], float(shares[0, i])) for i in best if i >= 0]
            labels = [(name, p) for name, p in top if p > LABEL_THRESHOLD] if has_labels else None
            found.append(PicturePrediction(path, top, labels))
        return found

"""Inference with trained weights: evaluation on a data set and predictions for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.backends.base import Backend
from netdsl.backends.lazy_batch import materialize
from netdsl.data import sources
from netdsl.data.augment import bind_augmentation
from netdsl.data.pictures import BadPicture, Pictures, pictures_from_paths
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.revisions import REVISIONS, SPLIT
from netdsl.data.samples import Batch, Dataset, Samples, evaluation_batches
from netdsl.errors import NetError, fail
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.ops.loss import rank_classes
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.training.checks import (
    check_class_scores,
    check_images,
    check_targets,
    evaluation_batch,
    evaluation_transform,
)
from netdsl.training.job import split_samples
from netdsl.training.metrics.class_counts import can_count_pairs, check_matrix_memory
from netdsl.training.metrics.ranking import can_keep_scores
from netdsl.training.metrics.table import METRICS, Score
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.recipe.recipe import Recipe, recipe_of_weights
from netdsl.training.recipe.targets import LABEL_THRESHOLD
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase
from netdsl.training.run.score import Views, evaluate, evaluate_views
from netdsl.training.run.tally import Predictions, Tally
from netdsl.training.step.compile import compile_evaluation, compile_prediction
from netdsl.training.step.graphs import has_label_probabilities, scoring_graph
from netdsl.training.store import checkpoint
from netdsl.training.store.pipeline_revisions import find_split_revision
from netdsl.types import Array, dims

TOP_K = 5
TopClasses = list[tuple[str, float]]
OnImagePredictions = Callable[[Samples, Predictions], None]
"""Called with all the images of an evaluation, and with what is predicted for some of them."""


@dataclass(frozen=True)
class ClassResult:
    """The metrics of one class, by name, None where undefined; and the number of images that have
    it."""

    name: str
    images: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class PicturePrediction:
    """The most likely classes of a picture with their probabilities; none if its scores contain
    NaN. Of a net that gives the probability of each label by itself, all of them, and in `labels`
    those that the picture has; else None. `error` says why a file could not be used."""

    path: Path
    top: TopClasses
    labels: TopClasses | None = None
    error: NetError | None = None


def describe_sizes(sizes: Sequence[int], image_shape: tuple[int, ...]) -> str:
    """What to know about sizes of pictures of which a net, of images `image_shape` (height, width,
    channels), sees less than half of the short side; empty if there are none."""
    seen = max(image_shape[:2])
    large = [n for n in sizes if n > 2 * seen]
    if not large:
        return ""
    listed = " and ".join(map(str, large))
    middle = dims(image_shape[:2])
    return f"of pictures of {listed} pixels, the net sees only the middle, {middle} pixels"


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation on the test, validation or training images (`images` says which). `note` says
    what is known about training images that the weights were learned from, and about sizes of
    which the net sees little.

    `confusion[i, j]` counts the images of class i predicted as j; there is none for images with
    several labels, nor for so many classes that it would be too large. An image whose scores
    contain NaN has no prediction."""

    score: Score
    images: str
    classes: tuple[str, ...]
    confusion: Array | None
    note: str = ""
    skipped: tuple[str, ...] = ()
    """What is wrong with each skipped picture."""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.score.top5 is None

    @property
    def unclassified(self) -> int:
        """The number of images without a prediction."""
        return 0 if self.confusion is None else self.score.images - int(self.confusion.sum())

    @property
    def means(self) -> dict[str, float | None]:
        """The metrics of all classes, by name."""
        return {name: m.measure(self.score) for name, m in METRICS.items()}

    def class_results(self) -> list[ClassResult]:
        """The metrics of each class, in the order of the classes."""
        columns = {
            name: m.measure_classes(self.score)
            for name, m in METRICS.items()
            if m.measure_classes is not None
        }
        return [
            ClassResult(
                name,
                int(self.score.counts.actual[i]),
                {k: _value_at(values, i) for k, values in columns.items()},
            )
            for i, name in enumerate(self.classes)
        ]

    def as_json(self) -> dict[str, Any]:
        results = self.class_results()
        classes = [{"name": r.name, "images": r.images, **r.metrics} for r in results]
        return {
            **self.means,
            "images": self.score.images,
            "part": self.images,
            "bad_pictures": list(self.skipped),
            "classes": classes,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }

    def confused_pairs(self) -> list[tuple[str, str, int]]:
        """Returns (class, predicted class, count) of the misclassified images, most frequent
        first."""
        if self.confusion is None:
            return []
        counts = {(i, j): int(self.confusion[i, j]) for i, j in np.argwhere(self.confusion)}
        ranked = sorted((p for p in counts if p[0] != p[1]), key=lambda p: -counts[p])
        return [(self.classes[i], self.classes[j], counts[i, j]) for i, j in ranked]


def _value_at(values: Array | None, i: int) -> float | None:
    return None if values is None or np.isnan(values[i]) else float(values[i])


@dataclass(frozen=True)
class _Part:
    """A part of a data set, and what is known about it."""

    name: str
    samples: Samples
    note: str = ""


_ALL_LEARNED = "the weights were learned from these images"
_PART_LEARNED = "the weights were learned from part of these images, because of `limit`"
_OTHER_DATA = (
    "the data set is not that of the run, which may have been trained on some of these images"
)
_OTHER_SPLIT = (
    "the weights were learned from most of these images; another version of netdsl held out the "
    "others"
)


class Predictor:
    """A checkpoint ready to run. Raises NetError if it does not fit its own net."""

    def __init__(self, weights: Path | checkpoint.Checkpoint, backend: Backend) -> None:
        self.checkpoint = checkpoint.load_best(weights) if isinstance(weights, Path) else weights
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

    def evaluate(
        self,
        folder: str | None,
        sizes: Sequence[int] = (),
        flip: bool = False,
        needs_confusion: bool = False,
        on_predictions: OnImagePredictions | None = None,
        on_phase: OnPhase = ignore_phase,
    ) -> EvaluationReport:
        """Evaluates on the test images of the recipe's source, else on its validation images or
        those that the run held out, else on its training images. With `sizes`, each image is
        evaluated with its short side resized to each of them; with `flip`, each of these views is
        evaluated with its mirror image too. The scores of the views are averaged as suits the
        loss. `on_predictions` is called with all images and the predictions of every batch.
        Raises NetError if it `needs_confusion` and the data set has no confusion matrix, or
        one that is too large."""
        data = self.recipe.data
        learning = elaborate(self.program, self.recipe.net, self.recipe.settings(training=True))
        network = self._network(evaluation_batch(learning, data))
        transforms = self._transforms(network, sizes)
        if flip:
            _check_mirror(network)
        on_phase(Phase("reading data"))
        dataset = sources.load(data.source, folder, data.is_skipping_bad_pictures)
        part = self._choose_part(dataset)
        samples = self._with_known_labels(part.samples, dataset.classes)
        check_images(network, data, samples.image_shape)
        recipe = replace(self.recipe, is_multi_label=samples.is_multi_label)
        check_targets(network, recipe, samples)
        if needs_confusion:
            _check_confusion(samples, len(self.classes))
        tally = Tally(
            len(self.classes),
            samples.is_multi_label,
            keeps_scores=can_keep_scores(len(samples), len(self.classes)),
            has_matrix=not samples.is_multi_label and can_count_pairs(len(self.classes)),
            on_predictions=None
            if on_predictions is None
            else lambda found: on_predictions(samples, found),
        )
        on_phase(Phase("compiling kernels"))
        on_images = lambda done: on_phase(Phase("evaluating", done, len(samples)))
        batches = [evaluation_batches(samples, network.batch, t) for t in transforms]
        score = self._score(network, recipe, batches, flip, tally, on_images)
        notes = filter(None, (part.note, describe_sizes(sizes, network.image_shape)))
        return EvaluationReport(
            score,
            part.name,
            self.classes,
            tally.confusion,
            "\n".join(notes),
            dataset.picture_errors,
        )

    def _score(
        self,
        network: Network,
        recipe: Recipe,
        batches: Sequence[Iterator[Batch]],
        flip: bool,
        tally: Tally,
        on_images: Callable[[int], None],
    ) -> Score:
        """Evaluates the views of each image: those of `batches`, and with `flip` their mirror
        images."""
        executor = self._executor(compile_evaluation(network, recipe))
        if len(batches) == 1 and not flip:
            return evaluate(executor, network.image_input, batches[0], tally, on_images)
        scoring = Executor(scoring_graph(network, recipe), self.backend, self.state)
        views: Iterator[Views] = zip(*batches, strict=True)
        views = map(_add_mirror_images, views) if flip else views
        mean = recipe.loss.average_scores
        image_input = network.image_input
        return evaluate_views(executor, scoring, mean, image_input, views, tally, on_images)

    def _transforms(self, network: Network, sizes: Sequence[int]) -> list[Preprocessing]:
        """Returns the preprocessing of the images, one per size."""
        if not sizes:
            return [evaluation_transform(network, self.recipe.data)]
        least = min(network.image_shape[:2])
        if min(sizes) < least:
            raise fail(
                f"pictures of {min(sizes)} pixels are smaller than the {least} that the net needs"
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
        NetError if the data set has classes that the checkpoint lacks."""
        if classes == self.classes:
            return samples
        strange = [c for c in classes if c not in self.classes]
        if strange:
            known = ", ".join(self.classes[:8]) + ", ..." * (len(self.classes) > 8)
            message = (
                f"{self.checkpoint.origin} has no class `{strange[0]}`, which is in the data set"
            )
            raise fail(message, help=f"its classes are {known}")
        places = np.array([self.classes.index(c) for c in classes], np.int32)
        return samples.renumber(places, len(self.classes))

    def predict(self, images: Iterable[Path]) -> Iterator[PicturePrediction]:
        """Yields what the net says of each picture, and the error of each that cannot be used."""
        network = self._network(1)
        has_labels = has_label_probabilities(network, self.recipe)
        executor = self._executor(compile_prediction(network, self.recipe))

        def predict_one(path: Path) -> PicturePrediction:
            try:
                picture = self.load_picture(network, path)
            except BadPicture as e:
                return PicturePrediction(path, [], error=e)
            out = executor.run({network.image_input: picture})
            scores, shares = (self.backend.download(out[k]) for k in ("scores", "probabilities"))
            ranked = rank_classes(scores)[0]
            best = ranked if has_labels else ranked[:TOP_K]
            top = [(self.classes[i], float(shares[0, i])) for i in best if i >= 0]
            labels = [(name, p) for name, p in top if p > LABEL_THRESHOLD] if has_labels else None
            return PicturePrediction(path, top, labels)

        return map(predict_one, images)


def _check_confusion(samples: Samples, classes: int) -> None:
    """Raises NetError if the samples have no confusion matrix, or one that is too large."""
    if samples.is_multi_label:
        raise fail(
            "images with several labels have no confusion matrix",
            help="`--predictions FILE.csv` writes the labels of each image",
        )
    check_matrix_memory(classes)


def name_images(samples: Samples, numbers: Array) -> list[str]:
    """The paths of picture files, or the numbers of other images, counted from 0."""
    if isinstance(samples.images, Pictures):
        return list(map(str, samples.images[numbers].paths))
    return list(map(str, numbers))


def _check_mirror(network: Network) -> None:
    """Raises NetError if the net takes vectors, which has no mirror image."""
    if len(network.image_shape) != 3:
        raise fail(
            f"the input of the net is a vector of {dims(network.image_shape)}, which has no "
            f"mirror image",
            help="leave out `--flip`",
        )


def _add_mirror_images(views: Views) -> Views:
    """The views of a batch, and the mirror image of each."""
    return (*views, *(replace(v, images=materialize(v.images)[:, :, ::-1]) for v in views))

"""A net as a classifier of scikit-learn: for pipelines, cross-validation and grid searches."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from netdsl.api.arguments import format_settings
from netdsl.api.net import Net
from netdsl.api.training import fit_arrays
from netdsl.data.array_advice import SEVERAL_LABELS_ADVICE
from netdsl.data.arrays import dataset_from_arrays
from netdsl.data.samples import Dataset
from netdsl.language.override import parameter_names
from netdsl.language.program import Program
from netdsl.optional_imports import import_optional
from netdsl.training.recipe.recipe import net_name, resolve_recipe
from netdsl.training.recipe.targets import LABEL_THRESHOLD
from netdsl.types import Array

_NEED = ("netdsl.sklearn needs scikit-learn", "pip install 'netdsl[sklearn]'")
_base = import_optional("sklearn.base", *_NEED)
_multiclass = import_optional("sklearn.utils.multiclass", *_NEED)
_validation = import_optional("sklearn.utils.validation", *_NEED)
_sparse = import_optional("scipy.sparse", *_NEED)
_VALIDATION = "data.validation"
_CLASSES, _INPUTS = "classes", "inputs"
"""The parameters of a net that `fit` sets, if the net has them."""


class NetClassifier(_base.ClassifierMixin, _base.BaseEstimator):  # type: ignore[misc, name-defined]
    """Trains the net of a recipe in a .net file, on arrays instead of the recipe's source.

    `fit` sets the net's parameter `classes`, if it has one, to the number of classes, and `inputs`
    to the number of features, so that `net mlp(inputs=2, classes=2) { input(inputs) ... }` fits any
    table. Nothing is held out for validation, so the recipe's `best` does not apply: the best epoch
    is the one with the smallest training loss. With `set={"data.validation": 0.1}`, samples are
    held out and `best` applies. The recipe's expectations are not checked.

    If `y` has several labels per sample, as 0 and 1 [n, classes], the loss is `bce`, unless the
    recipe has another loss for several labels. `predict` then returns such an array, and
    `predict_proba` the independent probability of each label.

    Parameters: `file`, `FILE` or `FILE:RECIPE`; `epochs`, `batch`, `lr` and `seed`, those of the
    recipe unless given (a batch is never larger than the data); `set`, any other settings as in
    `netdsl.train`; `device`, as on the command line. Fitted attributes: `net_` (a `netdsl.Net`),
    `history_` (the metrics of every epoch), `classes_` and `n_features_in_`. A pickle contains the
    text of the net and its weights.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        epochs: int | None = None,
        batch: int | None = None,
        lr: float | None = None,
        seed: int | None = None,
        set: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        self.file = file
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.seed = seed
        self.set = set
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any) -> NetClassifier:
        """Trains on X, [n, features], which is reshaped to the net's input, channels last, or
        [n, *input]. Pictures as bytes (uint8) are normalised by the recipe; everything else is used
        unchanged. `y` contains one label per sample, or several, as 0 and 1 [n, classes]. Raises
        ValueError or NetError if they do not fit."""
        _check_integers(X)
        _check_lists(y)
        is_multi_label = _multiclass.type_of_target(y) == "multilabel-indicator"
        X, y = _validation.validate_data(
            self,
            X,
            y,
            multi_output=is_multi_label,
            allow_nd=True,
            dtype=[np.float32, np.uint8],
            ensure_min_samples=1,
        )
        _multiclass.check_classification_targets(y)
        if is_multi_label:
            labels = y.toarray() if _sparse.issparse(y) else y
            self.classes_ = np.arange(labels.shape[1])
        else:
            self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("NetClassifier needs at least two classes, and y has one class")
        self._is_multi_label = is_multi_label

        def choose_settings(program: Program, name: str | None) -> Sequence[str]:
            return [*format_settings(self._settings(program, name, X)), *format_settings(self.set)]

        def make_dataset(shape: tuple[int, ...]) -> Dataset:
            names, samples = list(map(str, self.classes_)), _shape_samples(X, shape)
            self._type = samples.dtype
            return dataset_from_arrays({"x_train": samples, "y_train": labels, "classes": names})

        with TemporaryDirectory(prefix="netdsl-") as folder:
            self.net_, self.history_ = fit_arrays(
                self.file, make_dataset, choose_settings, self.device, Path(folder)
            )
        return self

    def _settings(self, program: Program, name: str | None, X: Array) -> dict[str, Any]:
        """What is set in the recipe for these data."""
        recipe = resolve_recipe(program, name)
        given = {
            "train.epochs": self.epochs,
            "train.optimizer.lr": self.lr,
            "train.seed": self.seed,
        }
        found: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        batch = min(self.batch or recipe.data.batch, max(1, len(X) // recipe.accumulate))
        found["data.batch"] = batch
        if _VALIDATION not in (self.set or {}):
            found |= {_VALIDATION: 0, "train.best": None}
        if self._is_multi_label and recipe.loss.probabilities == "softmax":
            found["train.loss"] = "bce"
        known = {_CLASSES: len(self.classes_), _INPUTS: math.prod(X.shape[1:])}
        parameters = parameter_names(program.net_table, net_name(program, name) or recipe.net)
        return found | {k: v for k, v in known.items() if k in parameters}

    def predict(self, X: Any) -> Array:
        """The most likely class of each sample, [n], or its labels, 0 and 1 [n, classes]."""
        probabilities = self.predict_proba(X)
        if self._is_multi_label:
            return (probabilities > LABEL_THRESHOLD).astype(np.int64)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the classes, [n, classes], in the order of `classes_`; with
        several labels per sample, they are independent."""
        _validation.check_is_fitted(self)
        _check_integers(X)
        X = _validation.validate_data(
            self, X, reset=False, allow_nd=True, dtype=[np.float32, np.uint8]
        )
        if self._type == np.uint8 and X.dtype != np.uint8:
            raise ValueError(f"X is {X.dtype}, but NetClassifier was fitted on bytes (uint8)")
        net: Net = self.net_
        return net.probabilities(_shape_samples(X.astype(self._type, copy=False), net.input_shape))


def _shape_samples(X: Array, shape: tuple[int, ...]) -> Array:
    """Rows of features as the net's input, channels last, and images as features if the net takes
    these; an image of another shape stays as it is, to be refused. Bytes stay bytes only where the
    net takes pictures."""
    if len(shape) != 3:
        X = X.astype(np.float32, copy=False)
    can_reshape = X.ndim == 2 or len(shape) == 1
    fits = can_reshape and math.prod(X.shape[1:]) == math.prod(shape)
    return X.reshape(len(X), *shape) if fits else X


def _check_lists(y: Any) -> None:
    """Raises ValueError for lists of names, several labels a sample."""
    is_list = y.dtype.kind in "OUS" if isinstance(y, np.ndarray) else isinstance(y, Sequence)
    rows = y if is_list else ()
    if any(
        not isinstance(row, str)
        and isinstance(row, Sequence | Set | np.ndarray)
        and any(isinstance(name, str) for name in row)
        for row in rows
    ):
        raise ValueError(f"y contains lists of names; {SEVERAL_LABELS_ADVICE}")


def _check_integers(X: Any) -> None:
    """Raises ValueError for pictures of integers other than bytes, which would not be normalised.
    In a table, integers are numbers like others."""
    if isinstance(X, np.ndarray) and X.ndim > 2 and X.dtype.kind in "iu" and X.dtype != np.uint8:
        raise ValueError(
            f"pictures of {X.dtype} are neither bytes nor floats: X.astype(np.uint8) makes bytes, "
            "which are normalised"
        )

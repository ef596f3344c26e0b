"""`netdsl.sklearn.NetClassifier`, by scikit-learn's own checks and as its tools use it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from netdsl.errors import NetError
from netdsl.optional_imports import NotInstalledError
from netdsl.sklearn import NetClassifier
from tests.conftest import ROOT

MLP = str(ROOT / "tests" / "mlp.net")
X, Y = make_blobs(90, n_features=4, centers=3, cluster_std=2.0, random_state=0)
NAMES = np.array(["red", "green", "blue"])[Y]
QUICK = {
    "check_estimator_cloneable",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_n_features_in_after_fitting",
    "check_estimators_nan_inf",
    "check_classifiers_one_label",
    "check_fit2d_1sample",
    "check_estimators_unfitted",
    "check_requires_y_none",
}
"""The checks that are run every time: those that fit few nets."""


def checks() -> list[Any]:
    """All of scikit-learn's checks of a classifier; none is expected to fail."""
    found = estimator_checks_generator(NetClassifier(MLP))
    return [
        pytest.param(check, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for _, check in found
        for name in (check.func.__name__,)
    ]


@pytest.mark.parametrize("check", checks())
@pytest.mark.filterwarnings("ignore")
def test_what_scikit_learn_expects_holds(check: Callable[[Any], None]) -> None:
    check(NetClassifier(MLP))


def test_a_table_is_learned() -> None:
    model = make_pipeline(StandardScaler(), NetClassifier(MLP, epochs=20))
    assert model.fit(X, NAMES).score(X, NAMES) > 0.9
    net = model[-1].net_
    assert net.input_shape == (4,)
    assert net.classes == tuple(model.classes_) == ("blue", "green", "red")
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (model.predict(X) == model.classes_[probabilities.argmax(axis=1)]).all()
    assert len(model[-1].history_) == 20


def test_a_pickle_predicts_the_same_and_holds_no_code() -> None:
    model = NetClassifier(MLP, epochs=2).fit(X, NAMES)
    content = pickle.dumps(model)
    same = pickle.loads(content)
    np.testing.assert_array_equal(same.predict_proba(X), model.predict_proba(X))
    assert b"net mlp" in content
    assert same.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        clone(same).predict(X)


def test_seeds_and_settings_are_those_of_the_recipe() -> None:
    found = [
        NetClassifier(MLP, epochs=1, **options).fit(X, Y).history_[0]["train_loss"]
        for options in ({}, {"seed": 1}, {"seed": 2}, {"lr": 0.3}, {"set": {"train.clip": 0.01}})
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 4
    text = NetClassifier(MLP, epochs=1, batch=5, lr=0.5).fit(X, Y).net_.text
    assert "batch = 5" in text
    assert "lr=0.5" in text
    assert "validation = 0" in text
    choosing = NetClassifier(MLP, epochs=1, set={"train.best": "max(val_f1)"})
    with pytest.raises(NetError, match="`validation = 0` holds out no images"):
        choosing.fit(X, Y)
    held = {"train.best": "max(val_f1)", "data.validation": 0.2}
    assert "val_f1" in choosing.set_params(set=held).fit(X, Y).history_[0]
    assert len(NetClassifier(MLP, epochs=1, batch=1000).fit(X, Y).history_) == 1


def test_searches_and_cross_validation_run() -> None:
    search = GridSearchCV(NetClassifier(MLP), {"epochs": [1, 15]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"epochs": 15}
    assert cross_val_score(NetClassifier(MLP, epochs=15), X, Y, cv=2).mean() > 0.8


def test_pictures_of_every_shape_are_the_same_pictures() -> None:
    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)[:300]
    labels = digits.target[:300]
    model = NetClassifier(ROOT / "models" / "digits.net", epochs=1)
    model.fit(pictures, labels)
    wanted = model.predict_proba(pictures)
    for same in (pictures[..., None], pictures.reshape(300, 64)):
        again = clone(model).fit(same, labels)
        np.testing.assert_array_equal(again.predict_proba(same), wanted)
    floats = clone(model).fit(pictures / 255, labels)
    np.testing.assert_allclose(floats.predict_proba(pictures / 255), wanted, atol=1e-3)
    with pytest.raises(ValueError, match="was fitted on bytes"):
        model.predict(pictures / 255)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one class"):
        NetClassifier(MLP).fit(X, Y * 0)
    with pytest.raises(ValueError, match="3 features, but NetClassifier is expecting 4"):
        NetClassifier(MLP, epochs=1).fit(X, Y).predict(X[:, :3])
    with pytest.raises(NetError, match="the net needs 8x8x1"):
        NetClassifier(ROOT / "models" / "digits.net").fit(X, Y)
    channels_first = np.zeros((12, 1, 8, 8), np.uint8)
    with pytest.raises(NetError, match="1x8x8"):
        NetClassifier(ROOT / "models" / "digits.net").fit(channels_first, np.arange(12) % 10)
    with pytest.raises(ValueError, match="pictures of int64 are neither bytes nor floats"):
        NetClassifier(ROOT / "models" / "digits.net").fit(np.zeros((9, 8, 8), np.int64), Y[:9])
    with pytest.raises(NetError, match=r"cannot read nowhere\.net"):
        NetClassifier("nowhere.net").fit(X, Y)


def test_without_scikit_learn_the_import_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "netdsl.sklearn")
    for name in [n for n in sys.modules if n.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(NotInstalledError, match=r"needs scikit-learn, which is not installed") as e:
        import netdsl.sklearn  # noqa: F401
    assert "pip install 'netdsl[sklearn]'" in str(e.value)


REFERENCE = {"device": "reference"}
LABELS = np.stack([X[:, i] > np.median(X[:, i]) for i in range(3)], axis=1).astype(int)


def test_several_labels_a_sample_are_learned() -> None:
    """scikit-learn's multilabel indicators: the loss is `bce` unless the recipe suits them."""
    model = make_pipeline(StandardScaler(), NetClassifier(MLP, **REFERENCE, epochs=15)).fit(
        X, LABELS
    )
    assert "loss = bce" in model[-1].net_.text
    assert model[-1].net_.is_multi_label
    predicted, probabilities = model.predict(X), model.predict_proba(X)
    assert predicted.shape == probabilities.shape == (90, 3)
    np.testing.assert_array_equal(predicted, probabilities > 0.5)
    assert f1_score(LABELS, predicted, average="macro") > 0.85
    assert model.score(X, LABELS) == (predicted == LABELS).all(axis=1).mean()
    assert (probabilities.sum(axis=1) > 1.1).any()


def test_sparse_labels_are_the_same_labels() -> None:
    dense, sparse = (
        NetClassifier(MLP, **REFERENCE, epochs=1).fit(X, y) for y in (LABELS, csr_matrix(LABELS))
    )
    np.testing.assert_array_equal(dense.predict_proba(X), sparse.predict_proba(X))


def test_a_loss_for_labels_is_that_of_the_recipe() -> None:
    loss = "bce(smoothing=0.1)"
    model = NetClassifier(MLP, **REFERENCE, epochs=1, set={"train.loss": loss}).fit(X, LABELS)
    assert "bce(smoothing=0.1" in model.net_.text
    with pytest.raises(NetError, match="`loss = bce` learns each label independently"):
        NetClassifier(MLP, set={"train.loss": "focal"}).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"y should be a 1d array|[Mm]ulti-?output"):
        NetClassifier(MLP).fit(X, np.stack([Y, Y], axis=1))


def test_the_best_of_a_recipe_needs_samples_that_are_held_out(tmp_path: Path) -> None:
    text = Path(MLP).read_text().replace("train {", "train { best = max(val_f1),", 1)
    (tmp_path / "best.net").write_text(text)
    model = NetClassifier(tmp_path / "best.net", **REFERENCE, epochs=1)
    assert "best = none" in model.fit(X, Y).net_.text
    held_out = model.set_params(set={"data.validation": 0.2}).fit(X, Y)
    assert "best = max(val_f1)" in held_out.net_.text


@pytest.mark.parametrize(
    "rows", [[["a", "b"], ["c"]], [["a", "b"], ["c", "a"]], [{"a"}, {"b", "c"}]]
)
@pytest.mark.parametrize("make", [list, lambda x: np.array([*map(list, x), []], object)[:-1]])
def test_lists_of_names_are_answered_with_how_to_make_labels(rows: Any, make: Any) -> None:
    with pytest.raises(ValueError, match=r"lists of names; .*MultiLabelBinarizer"):
        NetClassifier(MLP).fit(X[:2], make(rows))

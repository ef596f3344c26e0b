"""Mixed batches against their definitions, and runs that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import netdsl
from netdsl.data.config import resolve_data
from netdsl.data.mixing import MIXINGS, blend, paste
from netdsl.data.samples import Batch
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.signature import BoundCall
from netdsl.training.job import prepare_job
from netdsl.training.run.trainer import Trainer
from netdsl.training.store.resume import load_continuation
from netdsl.types import Array
from netdsl.values import Argument, Symbol
from tests.mixed_batches import mix_batches
from tests.test_resume import REFERENCE, kept

SHARES = st.floats(0, 1)


def chosen(name: str, **arguments: Any) -> BoundCall:
    record = MIXINGS[name]
    given = [Argument(k, v) for k, v in arguments.items()]
    return BoundCall(name, record, record.signature.bind(given, None))


def noise(n: int, h: int, w: int, seed: int = 0, c: int = 2) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


def batch_of(n: int, classes: int, seed: int = 0) -> Batch:
    labels = np.random.default_rng(seed).integers(0, classes, n).astype(np.int32)
    return Batch(noise(n, 6, 5, seed), labels, np.ones(n, np.float32))


@given(SHARES, st.integers(1, 9), st.integers(0, 5))
def test_mixup_is_a_weighted_mean_of_pixels(share: float, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, partners = noise(n, 5, 4, seed), rng.permutation(n)
    mixed, exact = blend(images, partners, share, rng)
    assert abs(exact - share) <= 1 / 512
    wanted = exact * images + (1 - exact) * images[partners]
    assert mixed.dtype == np.uint8
    assert np.abs(mixed - wanted).max() <= 0.5
    floats, exact_too = blend((images / 255).astype(np.float32), partners, share, rng)
    assert (floats.dtype, exact_too) == (np.float32, exact)
    np.testing.assert_allclose(floats * 255, wanted, atol=1e-3)


def test_large_images_are_mixed_in_parts() -> None:
    images, partners = noise(7, 150, 200), np.arange(7)[::-1].copy()
    found = blend(images, partners, 0.25, np.random.default_rng(0))[0]
    wanted = images.astype(int) * 64 + images[partners].astype(int) * 192 + 128
    np.testing.assert_array_equal(found, wanted // 256)


@given(SHARES, st.integers(1, 12), st.integers(1, 12), st.integers(0, 50))
def test_cutmix_pastes_a_box(share: float, h: int, w: int, seed: int) -> None:
    """As in the code of its authors, with the same draws."""
    images = np.repeat(np.arange(3, dtype=np.uint8), h * w * 2).reshape(3, h, w, 2)
    partners = np.array([1, 2, 0])
    mixed, exact = paste(images, partners, share, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    cut = np.sqrt(1 - share)
    cut_h, cut_w = int(h * cut), int(w * cut)
    cy, cx = int(rng.integers(h)), int(rng.integers(w))
    y0, y1 = (int(np.clip(cy + k * (cut_h // 2), 0, h)) for k in (-1, 1))
    x0, x1 = (int(np.clip(cx + k * (cut_w // 2), 0, w)) for k in (-1, 1))
    wanted = images.copy()
    wanted[:, y0:y1, x0:x1] = images[partners][:, y0:y1, x0:x1]
    np.testing.assert_array_equal(mixed, wanted)
    assert np.isclose(exact, np.mean(mixed[0] == 0))
    assert exact >= share - 1e-12 or min(h, w) < 2


MIXED = st.lists(st.sampled_from(sorted(MIXINGS)), min_size=1, max_size=2)


@given(MIXED, st.integers(2, 10), st.integers(2, 5), st.floats(0, 1), st.integers(0, 99))
def test_targets_are_the_shares_of_the_pixels(
    names: list[str], n: int, classes: int, p: float, seed: int
) -> None:
    batch = batch_of(n, classes, seed)
    mixings = [chosen(name, p=p) for name in names]
    (mixed,) = mix_batches(iter([batch]), mixings, classes, seed, 1)
    assert mixed.targets is not None
    assert mixed.targets.dtype == np.float32
    np.testing.assert_allclose(mixed.targets.sum(axis=1), 1, atol=1e-6)
    assert (mixed.targets[np.arange(n), mixed.labels] >= 0.5 - 1e-6).all()
    if (mixed.targets.max(axis=1) == 1).all() and np.array_equal(mixed.images, batch.images):
        np.testing.assert_array_equal(mixed.labels, batch.labels)


def test_the_target_of_each_image_is_that_of_its_pixels() -> None:
    """Each image is of one level, 16 times its class; so is, on average, what is mixed of two."""
    n = 16
    labels = np.arange(n, dtype=np.int32)
    images = np.broadcast_to((16 * labels)[:, None, None, None], (n, 9, 7, 1)).astype(np.uint8)
    batch = Batch(images, labels, np.ones(n, np.float32))
    shares = []
    for epoch in range(20):
        mixings = [chosen("mixup", alpha=1), chosen("cutmix")]
        (mixed,) = mix_batches(iter([batch]), mixings, n, 1, epoch)
        assert mixed.targets is not None
        means = np.asarray(mixed.images).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(mixed.targets @ (16 * labels), means, atol=0.51)
        shares.append(mixed.targets.max(axis=1).min())
    assert len(set(shares)) > 8


def test_several_labels_are_mixed_too() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 1]] * 4, np.uint8)
    batch = Batch(noise(8, 6, 5), labels, np.ones(8, np.float32), labels.astype(np.float32))
    (mixed,) = mix_batches(iter([batch]), [chosen("mixup", alpha=1)], 3, 1, 1)
    assert mixed.targets is not None
    np.testing.assert_array_equal(mixed.targets[:, 2], 1)
    np.testing.assert_allclose(mixed.targets[:, 0] + mixed.targets[:, 1], 1, atol=1e-6)
    np.testing.assert_array_equal(mixed.labels[:, 0], mixed.targets[:, 0] >= 0.5)


def test_what_happens_to_a_batch_depends_on_its_number_alone() -> None:
    batches = [batch_of(6, 3, seed) for seed in range(8)]
    mixings = [chosen("mixup", alpha=1), chosen("cutmix", p=0.5)]
    whole = list(mix_batches(iter(batches), mixings, 3, 1, 4))
    part = list(mix_batches(iter(batches[5:]), mixings, 3, 1, 4, 5))
    for a, b in zip(whole[5:], part, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.targets, b.targets)
    other = list(mix_batches(iter(batches[5:]), mixings, 3, 1, 4))
    assert not all(np.array_equal(a.images, b.images) for a, b in zip(other, part, strict=True))


def test_probabilities_and_shares_are_as_said() -> None:
    """Half of 400 batches are mixed, by either; the shares of mixup are of Beta(2, 2)."""
    labels = np.arange(4, dtype=np.int32)
    batch = Batch(noise(4, 6, 6), labels, np.ones(4, np.float32))
    mixings = [chosen("mixup", alpha=2, p=0.5), chosen("cutmix", p=0.5)]
    found = list(mix_batches(iter([batch] * 400), mixings, 4, 1, 0))
    is_mixed = [not np.array_equal(m.images, batch.images) for m in found]
    assert 0.35 < np.mean(is_mixed) < 0.55  # a box may be empty, and partners themselves
    twice = [chosen("mixup", alpha=2)]
    targets = [m.targets for m in mix_batches(iter([batch] * 400), twice, 4, 1, 0)]
    shares = [t[0, 0] for t in targets if t is not None and t[0, 0] < 1]
    assert abs(np.mean(shares) - 0.5) < 0.05
    assert abs(np.var(shares) - 0.05) < 0.01


@pytest.mark.parametrize("name", MIXINGS)
def test_skipped_pictures_are_no_partners(name: str) -> None:
    """Their pixels are those of others, with a label that is not theirs."""
    n = 12
    labels = np.arange(n, dtype=np.int32)
    weights = (labels % 3 > 0).astype(np.float32)
    for epoch in range(10):
        batch = Batch(noise(n, 6, 6), labels, weights)
        (mixed,) = mix_batches(iter([batch]), [chosen(name)], n, 1, epoch)
        assert mixed.targets is not None
        used = mixed.targets[weights > 0]
        assert not used[:, weights == 0].any()
        np.testing.assert_array_equal(mixed.weights, weights)
        only = Batch(noise(n, 6, 6), labels, (labels == 4).astype(np.float32))
        (same,) = mix_batches(iter([only]), [chosen(name)], n, 1, epoch)
        assert same.targets is not None
        assert same.targets[4, 4] == 1


TEXT = """net a {{ input({shape}) -> fc(10) }}
data {{ source = digits, batch = {batch}, augment = [{augment}], sampling = {sampling} }}
train {{ epochs = 2, loss = {loss}, optimizer = adam(lr=0.01) }}"""


def text(augment: str, shape: str = "8x8x1", batch: int = 32, **others: str) -> str:
    words = {"loss": "cross_entropy", "sampling": "shuffled"} | others
    return TEXT.format(augment=augment, shape=shape, batch=batch, **words)


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_a_mixed_run_resumes_in_the_middle_of_an_epoch(sampling: str, tmp_path: Path) -> None:
    program = build_program(parse(text("cutmix, mixup, hflip", sampling=sampling)))

    def run(out: Path, updates: float) -> None:
        steps = iter(range(1000))
        trainer = Trainer(program, None, REFERENCE)
        stop = lambda: next(steps) >= updates
        trainer.run(out, lambda p: None, lambda m: None, should_stop=stop)

    run(tmp_path / "whole", 1000)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", 57)
    found = load_continuation(tmp_path / "half", ())
    again = Trainer(found.program, None, REFERENCE, saved=found.saved)
    again.run(tmp_path / "half", lambda p: None, lambda m: None)
    assert kept(tmp_path / "half") == kept(tmp_path / "whole")


@pytest.mark.parametrize(
    "loss", ["cross_entropy(smoothing=0.1)", "focal", "bce", "mse", "[(bce, 1), (mse, 0.5)]"]
)
def test_mixed_runs_learn(loss: str, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(text("mixup, cutmix", loss=loss))
    result = netdsl.train(
        tmp_path / "a.net", out=tmp_path / "run", device="reference", set={"train.epochs": 1}
    )
    assert result.metrics["test_accuracy"] > 0.4


def test_floats_are_mixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(90) % 3
    images = (np.eye(3, 5)[labels] + rng.normal(0, 0.1, (90, 5))).astype(np.float32)
    file = "net a { input(5) -> fc(3) }\ndata { batch = 9, augment = mixup }\ntrain { epochs = 10 }"
    (tmp_path / "a.net").write_text(file)
    data = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    result = netdsl.train(
        tmp_path / "a.net",
        data=data,
        out=tmp_path / "run",
        device="reference",
        set={"train.optimizer": "adam(lr=0.05)"},
    )
    assert result.metrics["test_accuracy"] > 0.6


@pytest.mark.parametrize(
    ("given", "message", "help"),
    [
        (text("mixup", batch=1), "`mixup` mixes the images of a batch", "larger `batch`"),
        (text("mixup, mixup(p=1)"), "`mixup` is listed twice", "`p` is the probability"),
        (text("cutmix", shape="64"), "`cutmix` cuts boxes out of pictures", "`mixup` also works"),
    ],
)
def test_what_cannot_be_mixed(given: str, message: str, help: str) -> None:
    with pytest.raises(NetError, match=message) as e:
        prepare_job(build_program(parse(given)), None)
    assert help in e.value.render()
    assert "augment = [" in e.value.render()


def test_evaluation_mixes_nothing() -> None:
    with pytest.raises(NetError, match="`mixup` is random, but evaluation must not be"):
        resolve_data([Argument("eval_transform", (Symbol("mixup"),))], None)

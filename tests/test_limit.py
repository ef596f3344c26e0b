"""The part of the training images that a run learns from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import netdsl
from netdsl.data.limit import Limit, LimitKind, limit_samples
from netdsl.data.samples import Samples
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.job import Job, prepare_job
from netdsl.types import Array

NAMES = ("a", "b", "c", "d")
LABELS = st.lists(st.integers(0, 3), min_size=4, max_size=60).filter(lambda x: len(set(x)) == 4)


def of_labels(labels: list[int]) -> Samples:
    return Samples(np.arange(len(labels)), np.array(labels, np.int32))


def kept_by(whole: Samples, limit: Limit, seed: int = 1) -> list[int]:
    found = limit_samples(whole, limit, NAMES, seed)
    assert isinstance(found.images, np.ndarray)
    np.testing.assert_array_equal(found.labels, whole.labels[found.images])
    assert found.images.tolist() == sorted(set(found.images.tolist()))
    return found.images.tolist()


@given(LABELS, st.integers(0, 3), st.data())
def test_a_larger_limit_keeps_what_a_smaller_one_does(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    whole, n = of_labels(labels), len(labels)
    small = data.draw(st.integers(4, n))
    large = data.draw(st.integers(small, n))
    few, many = kept_by(whole, small, seed), kept_by(whole, large, seed)
    assert (len(few), len(many)) == (small, large)
    assert set(few) <= set(many)
    if small < n:
        assert set(kept_by(whole, small / n, seed)) == set(few)
    name = NAMES[whole.labels[0]]
    size = labels.count(labels[0])
    some = kept_by(whole, ((name, data.draw(st.integers(1, size))),), seed)
    assert set(some) <= set(kept_by(whole, ((name, size),), seed)) == set(range(n))


@given(LABELS, st.data())
def test_a_limit_rounds_the_share_of_each_class(labels: list[int], data: st.DataObject) -> None:
    """As the method of Webster does, which gives each class at least one image here: what a class
    has more of than its share, one with less of it cannot claim."""
    count = data.draw(st.integers(4, len(labels)))
    sizes = np.bincount(labels, minlength=4)
    taken = np.bincount([labels[i] for i in kept_by(of_labels(labels), count)], minlength=4)
    assert (taken >= 1).all()
    assert (taken <= sizes).all()
    over = (taken - 0.5) / sizes  # the place of the last one that is in
    under = (taken + 0.5) / sizes  # the place of the first one that is out
    assert over[taken > 1].max(initial=0) <= under[taken < sizes].min(initial=1) + 1e-12


@given(LABELS, st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_a_limit_by_class_leaves_the_others_whole(labels: list[int], most: list[int]) -> None:
    sizes = np.bincount(labels, minlength=4)
    wanted = np.minimum(sizes, [*most[:2], len(labels), len(labels)])
    limit = tuple(zip(NAMES, map(int, wanted[:2]), strict=False))
    kept = kept_by(of_labels(labels), limit)
    np.testing.assert_array_equal(np.bincount([labels[i] for i in kept], minlength=4), wanted)


def indicators(seed: int, n: int = 80) -> Array:
    """Labels of several classes an image, each of which some image has."""
    shares = [0.7, 0.3, 0.2, 0.1]
    found = np.random.default_rng(seed).random((n, 4)) < shares
    found[:4] |= np.eye(4, dtype=bool)
    return found.astype(np.uint8)


@given(st.integers(0, 20), st.integers(8, 80), st.integers(8, 80))
def test_limits_of_images_with_several_labels(seed: int, first: int, second: int) -> None:
    labels = indicators(seed)
    whole, (few, many) = Samples(np.arange(80), labels), sorted((first, second))
    kept = kept_by(whole, few)
    assert len(kept) == few
    assert set(kept) <= set(kept_by(whole, many))
    assert labels[kept].any(axis=0).all()
    limit = (("a", 0.5), ("b", 3)) if labels[:, 1].sum() > 2 else (("a", 0.5),)
    by_class = labels[kept_by(whole, limit)].sum(axis=0)
    assert by_class[0] <= round(labels[:, 0].sum() / 2)
    assert len(limit) == 1 or by_class[1] <= 3


def test_rare_sets_of_labels_are_as_likely_as_common_ones() -> None:
    """Half of the images have a set of labels of their own."""
    labels = np.zeros((128, 8), np.uint8)
    labels[:64] = np.unpackbits(np.arange(64, dtype=np.uint8)[:, None], axis=1) | [1] + [0] * 7
    names = [str(i) for i in range(8)]
    whole = Samples(np.arange(128), labels)
    rare = [np.mean(limit_samples(whole, 0.25, names, seed).images < 64) for seed in range(20)]
    assert abs(np.mean(rare) - 0.5) < 0.1


def test_another_seed_keeps_others() -> None:
    whole = of_labels([0, 1, 2, 3] * 20)
    assert len({tuple(kept_by(whole, 20, seed)) for seed in range(5)}) == 5


def test_all_images_are_no_limit() -> None:
    kind = LimitKind()
    assert [kind.accept(x) for x in (None, 1.0, (), 0.5, 7)] == [None, None, None, 0.5, 7]
    assert kind.accept((("a", 1.0), ("b", None))) == (("a", None), ("b", None))


def text_of(limit: str, data: str = "", batch: int = 8) -> str:
    return f"""net a {{ input(8x8x1) -> fc(10) }}
data {{ source = digits, batch = {batch}, limit = {limit} {data} }}
train {{ epochs = 1 }}"""


def job_of(limit: str, data: str = "", batch: int = 8) -> Job:
    return prepare_job(build_program(parse(text_of(limit, data, batch))), None)


@pytest.mark.parametrize(
    ("limit", "message", "help"),
    [
        ("5000", "asks for 5,000 training images, but there are only 1,294", "`none` takes all"),
        ('[("8", 200)]', "asks for 200 training images of `8`, but there are only 114", "held out"),
        ("0.0001", "a share of 0.0001 of 1,294 training images rounds to 0", "larger `limit`"),
        ("9", "leaves no training images of", "there are 10"),
        ("1", "leaves no training images of", "`1.0` and `none` take all images"),
        ("12", "a batch of 16 is larger than the 12 images", "a larger `limit`"),
    ],
)
def test_limits_that_do_not_fit(limit: str, message: str, help: str) -> None:
    with pytest.raises(NetError) as e:
        job_of(limit, batch=16)
    assert message in e.value.render()
    assert help in e.value.render()
    assert limit == "12" or f"limit = {limit}" in e.value.render()


def test_a_limit_comes_after_the_images_that_are_held_out() -> None:
    whole, part = job_of("none"), job_of("100")
    assert part.validation.images is not whole.validation.images
    np.testing.assert_array_equal(part.validation.images, whole.validation.images)
    assert part.data_fingerprint == whole.data_fingerprint
    assert part.steps_per_epoch == 12
    assert part.inventory.as_json()["unlimited"] == 1294
    assert whole.inventory.as_json()["unlimited"] is None
    own = job_of('[("8", 0.05)]', ", validation = 0")
    assert own.inventory.counts["to learn from"][8] == 6  # of 128


def test_a_limited_run_resumes(netdsl: Any, tmp_path: Path) -> None:
    run, more = str(tmp_path / "run"), ("--set", "train.epochs=2")
    (tmp_path / "a.net").write_text(text_of('[("8", 0.05)]'))
    code, _, err = netdsl("train", "a.net", "-o", run)
    assert code == 0, err
    assert "1,186 of 1,294, by `limit`" in err
    code, _, err = netdsl("train", "--resume", run, "--set", "data.limit=none", *more)
    assert code == 2
    assert "`data.limit` cannot be changed in the middle of a run" in err
    code, _, err = netdsl("train", "--resume", run, *more)
    assert code == 0, err
    code, out, _ = netdsl("train", "a.net", "--dry-run", "--json")
    assert json.loads(out)["main"]["images"] == 1186
    code, out, _ = netdsl("train", "a.net", "--dry-run")
    assert "1,186 of 1,294, by `limit`" in out
    assert 'limit = [("8", 0.05)]' in out


def test_arrays_are_limited(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images, labels = rng.random((60, 5), np.float32), np.arange(60) % 3
    text = "net a { input(5) -> fc(3) }\ndata { batch = 5 }\ntrain { epochs = 1 }"
    data = {"x_train": images, "y_train": labels, "x_val": images[:9], "y_val": labels[:9]}
    (tmp_path / "a.net").write_text(text)
    place = {"file": tmp_path / "a.net", "out": tmp_path / "run"}
    result = netdsl.train(**place, data=data, set={"data.limit": 20})
    assert result.history[0]["step"] == 4


def test_a_float_in_a_message_looks_like_one() -> None:
    with pytest.raises(NetError, match="must be a number of images") as e:
        job_of("1e6")
    assert e.value.diagnostics[0].message.endswith("not 1000000.0")

"""A run goes on only with the order, the split and the crops that it was begun with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends.lazy_batch import materialize
from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.augment import bind_augmentation as chosen
from netdsl.data.limit import limit_samples
from netdsl.data.mixing import MIXINGS
from netdsl.data.pictures import Pictures, SkippedPictures, write_picture
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.revisions import (
    BALANCED_ORDER,
    DRAWS,
    FIT,
    LIMIT,
    ORDER,
    REVISIONS,
    SKIPPED,
    SPLIT,
    Revision,
)
from netdsl.data.samples import Batch, Samples, split, training_batches
from netdsl.data.sampling import BALANCED, epoch_order
from netdsl.data.spatial_ops import cover_and_center_crop
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.signature import BoundCall
from netdsl.training.job import Job, prepare_job
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.pipeline_revisions import (
    PIPELINE_KEY,
    check_pipeline,
    pipeline_revisions,
)
from tests.forged_checkpoints import rewrite_progress
from tests.mixed_batches import mix_batches
from tests.test_folder import write
from tests.torch_values import noise_image

NET = """net a {{ input({side}x{side}x{channels}) -> globalavgpool -> fc({classes}) }}
data {{ source = {source}, batch = 8, validation = {held}
       augment = [{augment}], eval_transform = [{judged}] }}
train {{ epochs = 2, optimizer = sgd(lr=0.01) }}"""


def text(
    source: str, augment: str = "", judged: str = "", side: int | None = None, held: float = 0.1
) -> str:
    found, channels, classes = (8, 1, 10) if source == "digits" else (12, 3, 2)
    where = {"source": source, "side": side or found, "channels": channels, "classes": classes}
    where["held"] = held
    return NET.format(augment=augment, judged=judged, **where)


def job_of(*given: Any) -> Job:
    return prepare_job(build_program(parse(text(*given))), None)


def begun(job: Job, **progress: Any) -> Checkpoint:
    """What a run that is under way has saved; by a version that recorded no revisions unless some
    are given."""
    return Checkpoint({}, job.net_text, (), {}, progress, "runs/a/last.safetensors")


def refusal(job: Job, saved: Checkpoint) -> str:
    """What is said where a run may not go on; nothing where it may."""
    try:
        check_pipeline(saved, job)
    except NetError as e:
        return e.render()
    return ""


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `pictures` of the folder that the test runs in."""
    folder = tmp_path / "pictures"
    write(folder / "train", 8)
    write(folder / "val", 2, seed=1)
    monkeypatch.chdir(tmp_path)
    return folder


FOLDER = 'folder("pictures")'
GONE_ON: list[tuple[str, str, str, int | None]] = [
    ("digits", "", "", None),
    ("digits", "random_crop(1), hflip(0.2), cutout(2)", "", None),
    ("digits", "color_jitter", "", None),
    ("digits", "resize(10x9), random_crop", "resize(8x8)", None),
    (FOLDER, "resize(12x12), hflip, color_jitter, lighting", "resize(12x12)", None),
    (FOLDER, "resize(15x14), random_crop(0)", "resize(12x12)", None),
]
REFUSED: list[tuple[str, str, str, int | None, list[str]]] = [
    ("digits", "random_resized_crop", "", None, ["random_resized_crop"]),
    ("digits", "scale_jitter([8, 10]), random_crop", "", None, ["scale_jitter"]),
    ("digits", "resize(9), random_crop", "", None, ["resize"]),
    ("digits", "resize, hflip", "", None, ["resize"]),
    ("digits", "", "resize(9), center_crop", None, ["resize", "center_crop"]),
    ("digits", "center_crop", "center_crop", None, ["center_crop"]),
    ("digits", "random_crop", "resize(9x9)", 9, [FIT]),
    (FOLDER, "", "resize(12x12)", None, [FIT]),
    (FOLDER, "resize(12x12)", "", None, [FIT]),
    (FOLDER, "random_crop", "resize(12x12)", None, [FIT]),
    (FOLDER, "random_resized_crop", "resize(12x12)", None, ["random_resized_crop"]),
    (FOLDER, "resize(12x12)", "resize(14), center_crop", None, ["resize", "center_crop"]),
]


@pytest.mark.parametrize(("source", "augment", "judged", "side"), GONE_ON)
@pytest.mark.usefixtures("photographs")
def test_runs_of_the_first_version_that_go_on(
    source: str, augment: str, judged: str, side: int | None
) -> None:
    job = job_of(source, augment, judged, side, 0)
    assert refusal(job, begun(job)) == ""
    assert FIT not in pipeline_revisions(job)
    assert SPLIT not in pipeline_revisions(job)
    job = job_of(source, augment, judged, side)
    assert (SPLIT in pipeline_revisions(job)) == (source == "digits")
    assert (
        "validation split: the same share of each class is held out" in refusal(job, begun(job))
    ) == (source == "digits")


@pytest.mark.parametrize(("source", "augment", "judged", "side", "names"), REFUSED)
@pytest.mark.usefixtures("photographs")
def test_runs_of_the_first_version_that_are_refused(
    source: str, augment: str, judged: str, side: int | None, names: list[str]
) -> None:
    job = job_of(source, augment, judged, side)
    words = refusal(job, begun(job))
    assert (
        'start a new run from these weights with `init = weights("runs/a/last.safetensors")`'
        in words
    )
    told = {name for name in (*REVISIONS, *AUGMENTATIONS) if f"  {name}: " in words}
    assert told == {*names, *([SPLIT] if source == "digits" else [])}
    assert refusal(job, begun(job, **{PIPELINE_KEY: pipeline_revisions(job)})) == ""


@pytest.mark.usefixtures("photographs")
def test_a_run_that_skipped_pictures_otherwise_is_refused() -> None:
    """One that skipped none so far may begin to."""
    plain = text(FOLDER, "resize(12x12)", "resize(12x12)")
    skipping = plain.replace("batch", "on_bad_picture = skip, batch")
    first, job = (prepare_job(build_program(parse(x)), None) for x in (plain, skipping))
    recorded = pipeline_revisions(first)
    assert SKIPPED not in recorded
    for progress in ({}, {PIPELINE_KEY: recorded}):
        assert refusal(job, begun(first, **progress)) == ""
        assert "skipped pictures: the next of the batch" in refusal(job, begun(job, **progress))
        assert refusal(first, begun(job, **progress)) == ""
    assert refusal(job, begun(job, **{PIPELINE_KEY: pipeline_revisions(job)})) == ""


def test_what_is_recorded() -> None:
    job = job_of("digits", "hflip, random_resized_crop")
    assert pipeline_revisions(job) == {
        ORDER: 1,
        SPLIT: 2,
        DRAWS: 1,
        "hflip": 1,
        "random_resized_crop": 2,
    }


@pytest.mark.parametrize("name", [ORDER, SPLIT, DRAWS, "hflip"])
def test_a_later_revision_of_anything_is_refused(name: str) -> None:
    job = job_of("digits", "hflip")
    now = pipeline_revisions(job)
    later = begun(job, **{PIPELINE_KEY: {**now, name: now[name] + 1}})
    words = f"{name}: revision {now[name] + 1}, which this version does not know"
    assert words in refusal(job, later)
    assert refusal(job, begun(job, **{PIPELINE_KEY: {**now, "other": 7}})) == ""


@pytest.mark.parametrize("name", [ORDER, SPLIT, DRAWS, "hflip"])
def test_any_change_of_the_program_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a version to come, in which it was changed."""
    job = job_of("digits", "hflip")
    saved = begun(job, **{PIPELINE_KEY: pipeline_revisions(job)})
    new = Revision("it is done the other way round")
    changes = (*REVISIONS.get(name, ()), new)
    if name in REVISIONS:
        monkeypatch.setitem(REVISIONS, name, changes)  # type: ignore[arg-type]
    else:
        monkeypatch.setitem(AUGMENTATIONS, name, replace(AUGMENTATIONS[name], revisions=changes))
        job = job_of("digits", "hflip")
    assert f"{name}: it is done the other way round" in refusal(job, saved)


@pytest.mark.parametrize("odd", [3, [], {"hflip": "x"}, {"hflip": 0}, {"hflip": True}])
def test_an_odd_record_is_told(odd: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", begun(job_of("digits", "hflip")))
    rewrite_progress(tmp_path / "x", **{PIPELINE_KEY: odd})
    with pytest.raises(NetError, match=r"damaged: `metadata\.progress\.pipeline"):
        checkpoint.load(tmp_path / "x")


def test_a_run_is_refused_by_name_and_goes_on_without_the_crop(netdsl: Any, tmp_path: Path) -> None:
    """Through the command line: begun with a crop that has changed since."""
    (tmp_path / "a.net").write_text(text("digits", "random_resized_crop", held=0))
    device = ("--device", "reference")
    assert netdsl("train", "a.net", "--out", "run", "--set", "train.epochs=1", *device)[0] == 0
    path = tmp_path / "run" / "last.safetensors"
    saved = checkpoint.load(path)
    assert saved.progress[PIPELINE_KEY]["random_resized_crop"] == 2
    old = {k: v for k, v in saved.progress.items() if k != PIPELINE_KEY}
    checkpoint.save(path, replace(saved, progress=old))
    before = path.read_bytes()
    code, _, err = netdsl("train", "--resume", "run", "--set", "train.epochs=2", *device)
    assert code == 2
    assert "cannot be resumed: another version of netdsl started the run" in err
    assert "random_resized_crop: a box that does not fit is drawn again" in err
    assert path.read_bytes() == before
    assert netdsl("eval", "run", *device)[0] == 0
    (tmp_path / "b.net").write_text(
        text("digits", "random_resized_crop", held=0).replace(
            "epochs", 'init = weights("run"), epochs'
        )
    )
    assert netdsl("train", "b.net", "--out", "new", *device)[0] == 0
    other = ("--set", "train.epochs=2", "--set", "data.augment=hflip")
    assert netdsl("train", "--resume", "run", *other, *device)[0] == 0
    assert checkpoint.load(path).progress[PIPELINE_KEY] == {ORDER: 1, DRAWS: 1, "hflip": 1}


# ---- whoever changes an order, a split or an image has to add a line to its changes

SIDE, WINDOW, NUMBERS = (21, 32), (12, 16), (0.27, 0.81, 0.44, 0.62)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "resize": {"size": 11},
    "hflip": {"p": 0.3},
    "scale_jitter": {"sides": (11, 14)},
}
IMAGES: dict[str, tuple[int, list[int]]] = {
    "resize": (2, [11, 16, 141, 149, 140, 113, 103, 134, 106, 124]),
    "center_crop": (3, [12, 16, 128, 254, 116, 240, 25, 84, 205, 43]),
    "hflip": (1, [21, 32, 43, 100, 36, 250, 73, 32, 63, 108]),
    "random_crop": (1, [12, 16, 150, 138, 75, 41, 236, 240, 132, 5]),
    "random_resized_crop": (2, [12, 16, 112, 105, 180, 120, 119, 162, 133, 72]),
    "scale_jitter": (2, [12, 18, 148, 101, 68, 148, 122, 156, 132, 103]),
    "color_jitter": (1, [21, 32, 96, 160, 92, 108, 6, 139, 92, 81]),
    "lighting": (1, [21, 32, 124, 187, 117, 134, 4, 164, 119, 103]),
    "cutout": (1, [21, 32, 122, 185, 115, 128, 2, 162, 117, 101]),
}
"""Revision, and some bytes, of what each makes of one picture with the same draws."""
OTHERS: dict[str, tuple[int, list[int]]] = {
    ORDER: (1, [5, 4, 3, 11, 6, 2, 9, 0, 1, 8, 7, 10]),
    SKIPPED: (2, [1, 1, 0, 4, 3, 1]),
    SPLIT: (2, [3, 5, 6, 7]),
    DRAWS: (1, [0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0]),
    FIT: (2, [12, 16, 134, 101, 87, 148, 96, 156, 147, 103]),
    LIMIT: (1, [2, 3, 4, 5, 7, 8, 9]),
    BALANCED_ORDER: (1, [8, 4, 0, 9, 6, 7, 4, 1, 2, 9, 3, 5]),
}
MIXED: dict[str, tuple[int, list[int]]] = {
    "mixup": (1, [4, 8, 127, 102, 22, 172, 149, 204, 167, 100, 90, 910, 0]),
    "cutmix": (1, [4, 8, 126, 92, 54, 165, 128, 238, 172, 136, 625, 375, 0]),
}


def made_of(name: str) -> list[int]:
    record = AUGMENTATIONS[name]
    draws = np.array([NUMBERS[: record.draw_count]])
    given = chosen(name, **ARGUMENTS.get(name, {})).arguments
    return some_bytes(record.apply(noise_image(SIDE)[None], draws, WINDOW, **given))


def some_bytes(images: Any) -> list[int]:
    flat = np.asarray(images).reshape(-1)
    return [*images.shape[1:3], *(int(x) for x in flat[:: len(flat) // 8])]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_those_of_their_revision(name: str) -> None:
    """Within one level, by which versions of Pillow differ."""
    revision, expected = IMAGES[name]
    assert 1 + len(AUGMENTATIONS[name].revisions) == revision
    np.testing.assert_allclose(made_of(name), expected, atol=1)


def some_skipped(folder: Path) -> list[int]:
    """The numbers of the pictures in a batch of six, two of which are bad."""
    for i in range(6):
        write_picture(folder / f"{i}.png", np.full((1, 1, 1), i, np.uint8))
    for i in (2, 5):
        (folder / f"{i}.png").write_bytes(b"")
    names = np.array([f"{i}.png" for i in range(6)], dtype=object)
    samples = Samples(Pictures(folder, names, SkippedPictures()), np.arange(6, dtype=np.int32))
    (batch,) = training_batches(samples, 6, 3, 2, augment=Preprocessing((), (1, 1, 1)))
    return materialize(batch.images).ravel().tolist()


def test_order_split_draws_and_fit_are_those_of_their_revision(tmp_path: Path) -> None:
    images = np.tile(np.array([0, 1], np.uint8), (12, 1))[:, None, :, None]
    samples = Samples(images, np.arange(12, dtype=np.int32))
    thirds = Samples(samples.labels, samples.labels % 3)
    flip = Preprocessing((chosen("random_crop", pad=0), chosen("hflip")))
    (batch,) = training_batches(samples, 12, 3, 2)
    (drawn,) = training_batches(samples, 12, 3, 2, augment=flip)
    found = {
        ORDER: batch.labels.tolist(),
        SKIPPED: some_skipped(tmp_path),
        SPLIT: split(thirds, 4, 3)[1].images.tolist(),
        DRAWS: np.asarray(drawn.images)[:, 0, 0, 0].tolist(),
        LIMIT: limit_samples(thirds, 7, "abc", 3).images.tolist(),
        BALANCED_ORDER: epoch_order(np.arange(12) % 5 // 2, BALANCED, 3, 2)[0].tolist(),
        FIT: some_bytes(cover_and_center_crop(noise_image(SIDE)[None], WINDOW)),
    }
    assert {name: 1 + len(changes) for name, changes in REVISIONS.items()} == {
        name: revision for name, (revision, _) in OTHERS.items()
    }
    for name, (_, expected) in OTHERS.items():
        np.testing.assert_allclose(found[name], expected, atol=name == FIT, err_msg=name)


@pytest.mark.parametrize("name", MIXINGS)
def test_mixed_batches_are_those_of_their_revision(name: str) -> None:
    revision, expected = MIXED[name]
    assert 1 + len(MIXINGS[name].revisions) == revision
    batch = Batch(noise_image((12, 8))[None].reshape(3, 4, 8, 3), np.arange(3), np.ones(3))
    record = MIXINGS[name]
    mixing = BoundCall(name, record, record.signature.bind([], None))
    (mixed,) = mix_batches(iter([batch]), [mixing], 3, 3, 2, 1)
    assert mixed.targets is not None
    numbers = [*some_bytes(mixed.images), *np.round(1000 * mixed.targets[0]).astype(int).tolist()]
    assert numbers == expected

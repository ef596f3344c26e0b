"""Batches picked from a set where that lies, as if every change had been made by itself."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.backends.array_backend import ArrayBackend, reference_backend
from netdsl.backends.cuda import image_gather
from netdsl.backends.lazy_batch import DeviceImages, LazyBatch, materialize
from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.augment import bind_augmentation as chosen
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Samples, cache_on_device
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run.trainer import Trainer
from tests.cuda_on_cpu import GPP, compile_library

WINDOW = (9, 8)
CHANGES = st.one_of(
    st.builds(chosen, st.just("hflip"), p=st.sampled_from([0.0, 0.5, 1.0])),
    st.builds(chosen, st.just("random_crop"), pad=st.sampled_from([None, 0, 1, 3])),
    st.builds(chosen, st.just("cutout"), size=st.integers(1, 12)),
    st.just(chosen("center_crop")),
)
CHAINS = st.lists(CHANGES, max_size=5)
SIZES = st.tuples(st.integers(9, 13), st.integers(8, 12))


def test_every_change_that_moves_pixels_is_drawn_here() -> None:
    assert {name for name, a in AUGMENTATIONS.items() if a.spatial} == {
        *("hflip", "random_crop", "cutout", "center_crop")
    }


def images_of(size: tuple[int, int], channels: int, count: int = 9) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, *size, channels)).astype(np.uint8)


def prepared(chain: list[Any], channels: int) -> Preprocessing:
    return Preprocessing(tuple(chain), (*WINDOW, channels))


@settings(max_examples=150)
@given(CHAINS, SIZES, st.integers(0, 2**32 - 1))
def test_changes_together_are_those_one_after_the_other(
    chain: list[Any], size: tuple[int, int], seed: int
) -> None:
    images, prepare = images_of(size, 2), prepared(chain, 2)
    draws = prepare.draw(np.random.default_rng(seed), len(images))
    expected = images
    for change, drawn in zip(chain, draws, strict=True):
        expected = change.record.apply(expected, drawn, WINDOW, **change.arguments)
    np.testing.assert_array_equal(prepare(images, draws), expected)
    index = np.array([3, 3, 0, 8])
    some = prepare(DeviceImages(images, None)[index], [d[index] for d in draws])
    assert isinstance(some, LazyBatch)
    assert some.shape == (4, *expected.shape[1:])
    np.testing.assert_array_equal(some.materialize(), expected[index])
    np.testing.assert_array_equal(some[np.array([2, 1])].materialize(), expected[[0, 3]])


@given(st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_middles_of_pictures_that_are_larger_or_smaller(h: int, w: int, first: bool) -> None:
    images, flip = images_of((h, w), 3, 2), chosen("hflip", p=1.0)
    crop = chosen("center_crop")
    prepare = prepared([flip, crop] if first else [crop, flip], 3)
    assert prepare.is_spatial_only((h, w, 3))
    picked = prepare(DeviceImages(images, None)[np.array([1, 0])])
    assert isinstance(picked, LazyBatch)
    np.testing.assert_array_equal(picked.materialize(), np.asarray(prepare(images))[::-1])


@pytest.mark.skipif(GPP is None, reason="there is no g++ to compile for the CPU")
def test_the_kernel_picks_the_same_bytes(tmp_path: Path) -> None:
    chains = [
        [],
        [chosen("hflip")],
        [chosen("random_crop", pad=2), chosen("hflip"), chosen("cutout", size=3)],
        [
            chosen("cutout", size=4),
            chosen("hflip"),
            chosen("random_crop"),
            chosen("cutout", size=5),
        ],
        [chosen("center_crop"), chosen("hflip")],
        [chosen("hflip"), chosen("center_crop"), chosen("cutout", size=3)],
    ]
    cases: list[tuple[Any, Any, Any]] = []
    for chain in chains:
        # the middle of those that are smaller than the window lies in black, by halves of pixels
        sides = (12, 9) if chosen("center_crop") not in chain else (6, 13)
        for channels, size in product((1, 3), ((11, 10), sides)):
            images, prepare = images_of(size, channels), prepared(chain, channels)
            held = DeviceImages(images, images)
            index = np.random.default_rng(2).integers(0, len(images), 13)
            draws = prepare.draw(np.random.default_rng(3), len(index))
            picked = prepare(held[index], draws)
            assert isinstance(picked, LazyBatch)
            cases.append((picked, picked.to_table(), np.full(picked.shape, 77, np.uint8)))
    at = [[a.ctypes.data for a in (p.source.device_array, table, out)] for p, table, out in cases]
    launches = [
        image_gather.gather_launch(p, *places) for (p, _, _), places in zip(cases, at, strict=True)
    ]
    compiled = compile_library(launches, tmp_path)
    for i, (launch, (picked, _, out)) in enumerate(zip(launches, cases, strict=True)):
        words = np.array(launch.arguments, np.int64)
        run = getattr(compiled, f"call_{i}")
        run(words.ctypes.data_as(ctypes.c_void_p), *launch.grid, launch.threads)
        np.testing.assert_array_equal(out, picked.materialize())


@dataclass(frozen=True)
class Holding(ArrayBackend):
    """The reference, to which sets of images are given; batches must come picked."""

    log: list[str] = field(default_factory=list)

    def cache_images(self, images: Any) -> DeviceImages:
        return DeviceImages(images, images)

    def write(self, target: Any, values: Any) -> None:
        if np.ndim(target) == 4:
            self.log.append("picked" if isinstance(values, LazyBatch) else "whole")
        super().write(target, materialize(values))


@pytest.mark.parametrize("augment", ["", "augment = [random_crop(1), hflip, cutout(3)]"])
def test_a_run_is_the_same_where_the_device_holds_the_images(augment: str, tmp_path: Path) -> None:
    text = f"""net n {{ input(8x8x1); fc(10) }}
    data {{ source = digits, batch = 100
      {augment} }}
    train {{ epochs = 2 }}"""
    ends = []
    holding = Holding("reference", np)
    for i, backend in enumerate((holding, reference_backend())):
        trainer = Trainer(build_program(parse(text)), None, backend)
        trainer.run(tmp_path / str(i), lambda p: None, lambda m: None)
        ends.append((tmp_path / str(i) / "last.safetensors").read_bytes())
    assert holding.log == [*["picked"] * holding.log.count("picked"), *["whole"] * 2]  # the test's
    assert ends[0] == ends[1]


def test_sets_are_held_for_what_only_moves_pixels() -> None:
    """Not where colours change, nor where images have to be enlarged."""
    images = images_of(WINDOW, 3)
    samples, backend = Samples(images, np.arange(9)), Holding("reference", np)
    for chain, window, yes in (
        ([], WINDOW, True),
        ([chosen("hflip"), chosen("random_crop", pad=1)], WINDOW, True),
        ([chosen("hflip"), chosen("color_jitter")], WINDOW, False),
        ([chosen("random_crop", pad=1)], (14, 14), False),
    ):
        prepare = Preprocessing(tuple(chain), (*window, 3))
        found = cache_on_device(samples, prepare, backend)
        assert isinstance(found.images, DeviceImages) == yes
        assert found.labels is samples.labels

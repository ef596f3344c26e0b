"""`netdsl time`: whose kernels are whose, what they cost, and what is told."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends import open_backend
from netdsl.backends.array_backend import ArrayBackend
from netdsl.backends.base import ReferenceThunk
from netdsl.backends.cpu import winograd
from netdsl.backends.roofline import Ceilings
from netdsl.cli.profile_tables import show_profile
from netdsl.insight.compile_target import CompileTarget, prepare_target
from netdsl.insight.profiler import Measurement, Profile, TimedKernel, profile_step
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from tests.conftest import ROOT
from tests.graphs import graph_of, make_values, with_dtype
from tests.test_cli import DIGITS

TWO = """
block cbr(c) { conv(c, 3x3, pad=same, bias=no) -> batchnorm -> relu }
net two { input(8x8x3); d: cbr(4) -> cbr(4) -> maxpool(2x2); head: fc(5) }
"""


def timed(device: str, training: bool, text: str = TWO) -> Profile:
    found = prepare_target(build_program(parse(text)), CompileTarget(None, training, 4))
    return profile_step(found, open_backend(device), 2)


@pytest.mark.parametrize("device", ["reference", "model", "cpu"])
@pytest.mark.parametrize("training", [False, True])
def test_all_time_is_somebodys(device: str, training: bool) -> None:
    found = timed(device, training)
    assert found.measurement.seconds == pytest.approx(
        sum(x.measurement.seconds for x in found.layers)
    )
    names = {x.name for x in found.layers}
    assert {"d.cbr1.conv1", "d.cbr2.conv1", "head"} <= names
    if not training:
        assert {k.phase for k in found.kernels} == {"forward"}
        return
    assert {k.phase for k in found.kernels} == {"forward", "backward", "update"}
    for layer in found.layers:
        if "conv" in layer.name:
            assert 0 < layer.phase_seconds("forward") < layer.measurement.seconds
    assert "loss" in names


def test_operations_are_those_of_the_records() -> None:
    found = prepare_target(
        load_program(str(ROOT / "models" / "lenet.net")), CompileTarget("lenet5", False, 3)
    )
    kernels = profile_step(found, open_backend("model"), 1).kernels
    products = sum(k.measurement.flops for k in kernels if k.kind in ("conv2d", "matmul"))
    assert 2 * 3 * found.network.macs <= products <= 2.1 * 3 * found.network.macs
    slowest = [k.measurement.seconds for k in kernels]
    assert slowest == sorted(slowest, reverse=True)


def test_what_the_reference_computes_is_told() -> None:
    unknown = "local(4, 3x3)"
    found = timed("cpu", False, f"net a {{ input(8x8x3); {unknown} -> relu; fc(5) }}")
    told = {k.layer for k in found.kernels if k.is_by_reference}
    assert told == {"local1"}


def test_a_bound_kernel_says_that_the_reference_computes_it() -> None:
    backend = open_backend("cpu")
    example = OPS["relu"].draw_example(RandomDraw(np.random.default_rng(0)))
    for example_, told in ((example, True), (with_dtype(example, "float32"), False)):
        graph = graph_of("relu", example_)
        executor = Executor(graph, backend, State(backend))
        assert isinstance(executor.kernels[0], ReferenceThunk) is told
        given = make_values(graph)
        found = executor.run(given)["y"]
        np.testing.assert_array_equal(found, np.maximum(next(iter(given.values())), 0))


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_ceilings_are_above_what_is_timed_beside_them(device: str) -> None:
    backend = open_backend(device)
    found = backend.measure_ceilings()
    assert 1e8 < found.flops < 1e14
    assert 1e8 < found.bandwidth < 1e13
    x = np.ones((512, 512), np.float32)
    (product,) = backend.measure_seconds([lambda: np.matmul(x, x)])
    assert 0 < product < 10


def test_products_in_16_bits_are_held_against_their_own_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every product of a step in mixed precision computes on 16-bit numbers, nothing else does."""
    slow = Ceilings(flops=1.0, bandwidth=1e30, flops_16bit=10.0)
    monkeypatch.setattr(ArrayBackend, "measure_ceilings", lambda self: slow)
    text = "net a { input(8x8x3); conv(4, 3x3) -> relu; fc(5) }\ntrain { precision = mixed }"
    narrow = {"conv2d", "conv2d_wgrad", "matmul"}
    found = timed("reference", True, f"data {{ source = digits }}\n{text}").kernels
    assert narrow <= {k.kind for k in found}
    for k in found:
        limit = 10.0 if k.kind in narrow else 1.0
        assert k.measurement.roofline_seconds == pytest.approx(k.measurement.flops / limit)


def test_share_is_of_the_nearer_limit() -> None:
    assert Measurement(2.0, 10, 10, 1.0).efficiency == 0.5
    assert Measurement(0.0, 0, 0, 0.0).efficiency == 0.0


def test_tables_and_json(netdsl: Any) -> None:
    for extra in ((), ("--train", "--batch", "8")):
        args = ("time", DIGITS, "--device", "cpu", "--rounds", "2", *extra)
        code, out, _ = netdsl(*args)
        assert code == 0
        for words in ("images/s", "limits measured here", "kernels", "layers", "sum", "conv1"):
            assert words in out
        code, out, _ = netdsl(*args, "--json")
        found = json.loads(out)
        assert found["kernels_ms"] == pytest.approx(sum(k["ms"] for k in found["kernels"]))
        assert found["images_per_second"] == pytest.approx(
            (8 if extra else 1) / found["ms_per_step"] * 1e3
        )
        for layer in found["layers"]:
            parts = (layer[f"{p}_ms"] for p in ("forward", "backward", "update"))
            assert layer["ms"] == pytest.approx(sum(parts))


def test_the_rest_is_summed_up_unless_all_is_asked_for(netdsl: Any) -> None:
    net = f"{ROOT / 'models' / 'resnet.net'}:resnet20"
    _, short, _ = netdsl(
        "time", net, "--device", "model", "--rounds", "1", "--batch", "2", "--train"
    )
    _, full, _ = netdsl(
        "time", net, "--device", "model", "--rounds", "1", "--batch", "2", "--train", "--full"
    )
    assert "more with --full" in short
    assert "more with --full" not in full
    assert len(full.splitlines()) > 2 * len(short.splitlines())


def one(seconds: float, flops: int, size: int, itemsize: int, filtered: bool) -> TimedKernel:
    work = Measurement(seconds, flops, size, roofline_seconds=0.0)
    return TimedKernel("c", "conv2d", "c", "forward", work, False, itemsize, filtered)


LIMITS = Ceilings(1e3, 1e2, 4e3, ((10**3, 1e3), (10**5, 3e2)))
COUNTS = st.integers(0, 10**7)
KERNELS = st.lists(
    st.builds(one, st.floats(1e-3, 1e3), COUNTS, COUNTS, st.sampled_from([2, 4]), st.booleans()),
    min_size=1,
)


@given(KERNELS)
def test_only_minimal_filtering_passes_a_limit(kernels: list[TimedKernel]) -> None:
    """What a kernel was seen to do raises the limit, of as many bytes or fewer, and no other."""
    timed = Profile("t", "cpu", 1, 1.0, LIMITS, tuple(kernels)).with_observed_ceilings()
    for k in timed.kernels:
        moving = k.measurement.bytes / timed.ceilings.bandwidth_for(k.measurement.bytes)
        assert (
            moving if k.is_filtered else k.measurement.roofline_seconds
        ) <= k.measurement.seconds * (1 + 1e-9)
    rates = [timed.ceilings.bandwidth_for(10**i) for i in range(9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == LIMITS.bandwidth or max(k.measurement.bytes for k in kernels) >= 10**6
    seen = {
        n: [
            k.measurement.flops / k.measurement.seconds
            for k in kernels
            if k.itemsize == n and not k.is_filtered
        ]
        for n in (2, 4)
    }
    assert timed.ceilings.flops == max([LIMITS.flops, *seen[4]])
    assert timed.ceilings.flops_16bit == max([4e3, *seen[2]])


def test_limits_that_no_kernel_passes_stay() -> None:
    kernels = (one(1.0, 500, 50, 4, False), one(1.0, 9_000, 50, 4, True))
    timed = Profile("t", "cpu", 1, 1.0, LIMITS, kernels).with_observed_ceilings()
    assert timed.ceilings == LIMITS
    assert [k.measurement.efficiency for k in timed.kernels] == [0.5, 9.0]


@pytest.mark.parametrize(("speedup", "filtered"), [(0, True), (math.inf, False)])
@pytest.mark.parametrize("training", [False, True])
def test_a_bound_kernel_says_that_it_filters(
    speedup: float, filtered: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and both gradients, and no kernel but these; the plan's weights settle or not."""
    monkeypatch.setattr(winograd, "_MIN_SPEEDUP", speedup)
    found = timed("cpu", training)
    kinds = {k.kind for k in found.kernels if k.is_filtered}
    expected = {"conv2d"} | ({"conv2d_wgrad", "conv2d_dgrad"} if training else set())
    assert kinds == (expected if filtered else set())
    told = {k["minimal_filtering"] for k in found.as_json()["kernels"]}
    assert told == ({True, False} if filtered else {False})


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("seconds", [1.0, 1e3])
def test_a_share_above_the_limit_is_explained(
    filtered: bool, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = (one(seconds, 10_000, 10, 4, filtered),)
    timed = Profile("t", "cpu", 1, 1.0, LIMITS, kernels).with_observed_ceilings()
    show_profile(timed, full=False)
    out = capsys.readouterr().out
    assert ("minimal filtering" in out) == (filtered and seconds == 1)
    assert "(up to 0.0 in caches)" in out


def test_the_processor_does_more_in_its_caches() -> None:
    found = open_backend("cpu").measure_ceilings()
    assert found.bandwidth_for(1 << 16) >= found.bandwidth_for(1 << 27) >= found.bandwidth
    assert found.flops_for(4) == found.flops


def test_bad_input_is_told(netdsl: Any) -> None:
    for args in (("time", f"{DIGITS}:nothing"), ("time", DIGITS, "--rounds", "0")):
        code, out, err = netdsl(*args, "--device", "model")
        assert code == 2
        assert err
        assert out == ""

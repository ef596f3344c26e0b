"""`netdsl scale`: the model of an update on many GPUs, the figures it is compared with, the command
and the page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends import fusion_of
from netdsl.cli.file_arguments import load_recipe
from netdsl.insight.datasheets import GPUS
from netdsl.insight.scaling import (
    Interconnect,
    ReadyGradient,
    ScalingEstimate,
    StepTimeline,
    expected_maximum,
)
from netdsl.insight.step_timeline import predict_timeline
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.step.buckets import partition_buckets
from netdsl.training.step.graphs import training_graph
from tests.conftest import ROOT
from tests.test_cli import DIGITS, MODELS
from tests.test_tutorial import LEFT_OUT, Command, commands

PAGE = ROOT / "docs" / "scaling.md"
RESNET = MODELS / "resnet.net"
COUNTS = st.sampled_from([1, 2, 4, 8, 16, 24, 64, 1024])
SECONDS = st.floats(1e-5, 1.0)
BANDWIDTHS = st.floats(1e8, 1e12)


@st.composite
def timelines(draw: st.DrawFn) -> StepTimeline:
    batch = draw(SECONDS)
    shares = draw(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    sizes = st.integers(4, 60_000_000)
    gradients = tuple(ReadyGradient(f"w{i}", draw(sizes), s * batch) for i, s in enumerate(shares))
    return StepTimeline(draw(st.integers(1, 512)), batch, draw(SECONDS), gradients, draw(BATCHES))


BATCHES = st.integers(1, 3)
INTERCONNECTS = st.builds(
    Interconnect, st.just(8), BANDWIDTHS, BANDWIDTHS, st.floats(0, 1e-4), st.floats(0, 1e-4)
)
ESTIMATES = st.builds(ScalingEstimate, timelines(), INTERCONNECTS, COUNTS, st.floats(0, 0.2))


def is_at_most(a: float, b: float) -> bool:
    return a <= b * (1 + 1e-9)


@given(ESTIMATES)
def test_efficiencies_are_above_0_and_at_most_1(e: ScalingEstimate) -> None:
    for share in (e.serial_efficiency, e.overlapped_efficiency, e.straggling_efficiency):
        assert share > 0
        assert is_at_most(share, 1)
    assert is_at_most(e.straggling_efficiency, e.overlapped_efficiency)
    assert 0 <= e.hidden_share <= 1


@given(ESTIMATES)
def test_overlap_is_never_worse_than_the_same_buckets_later_nor_better_than_free(
    e: ScalingEstimate,
) -> None:
    alone = e.timeline.seconds
    assert is_at_most(alone, e.overlapped_seconds)
    assert is_at_most(e.overlapped_seconds, alone + e.bucketed)
    assert is_at_most(e.bucketed + e.timeline.buckets[0].ready, e.overlapped_seconds)
    links = replace(e.interconnect, node_latency=0.0, network_latency=0.0)
    quick = replace(e, interconnect=links)
    assert is_at_most(quick.overlapped_seconds, quick.serial_seconds)
    if len(e.timeline.buckets) == 1:
        assert is_at_most(e.overlapped_seconds, e.serial_seconds)


@given(ESTIMATES, st.floats(1, 10), st.floats(1, 10))
def test_more_bandwidth_is_never_slower(e: ScalingEstimate, node: float, network: float) -> None:
    links = e.interconnect
    wider = replace(
        links,
        node_bandwidth=links.node_bandwidth * node,
        network_bandwidth=links.network_bandwidth * network,
    )
    better = replace(e, interconnect=wider)
    assert is_at_most(better.serial_seconds, e.serial_seconds)
    assert is_at_most(better.overlapped_seconds, e.overlapped_seconds)
    assert is_at_most(better.straggling_seconds, e.straggling_seconds)


@given(ESTIMATES)
def test_one_gpu_waits_for_nobody(e: ScalingEstimate) -> None:
    one = replace(e, gpus=1)
    assert one.whole.total == 0
    for share in (one.serial_efficiency, one.overlapped_efficiency, one.straggling_efficiency):
        assert share == pytest.approx(1)
    assert one.images_per_second == pytest.approx(one.images_per_second_per_node)


@given(ESTIMATES)
def test_buckets_hold_each_gradient_once_and_run_one_by_one(e: ScalingEstimate) -> None:
    timeline = e.timeline
    assert sum(b.size for b in timeline.buckets) == timeline.size
    assert sum(b.count for b in timeline.buckets) == len(timeline.gradients)
    start = timeline.backward_end - timeline.batch_seconds
    end = 0.0
    for x in e.reduced:
        assert x.start >= max(end, x.bucket.ready, start)
        end = x.end


@given(timelines(), st.floats(0.1, 10))
def test_a_timeline_is_scaled_as_a_whole(timeline: StepTimeline, factor: float) -> None:
    slower = timeline.scaled(factor)
    assert slower.seconds == pytest.approx(factor * timeline.seconds)
    assert slower.size == timeline.size
    back = slower.scaled_to(timeline.step_seconds)
    assert back.seconds == pytest.approx(timeline.seconds)
    ready = [b.ready for b in timeline.buckets]
    assert [b.ready for b in back.buckets] == pytest.approx(ready)


def test_an_all_reduce_follows_the_formula() -> None:
    links = Interconnect(8, 100e9, 10e9, 1e-6, 10e-6)
    one = links.all_reduce(80_000_000, 8)
    assert one.in_node == pytest.approx(2 * 7 / 8 * 80e6 / 100e9 + 14e-6)
    assert one.across_nodes == 0
    many = links.all_reduce(80_000_000, 32)
    assert many.in_node == one.in_node
    assert many.across_nodes == pytest.approx(2 * 3 / 4 * 10e6 / 10e9 + 4 * 10e-6)


@pytest.mark.parametrize("count", [1, 2, 8, 64, 1024])
def test_the_slowest_of_many_is_what_draws_show(count: int) -> None:
    draws = np.random.default_rng(1).standard_normal((4000, count)).max(axis=1)
    error = 5 * draws.std() / math.sqrt(len(draws))
    assert expected_maximum(count) == pytest.approx(draws.mean(), abs=error)


def test_the_slowest_of_two_is_known_exactly() -> None:
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-5)


@given(st.lists(st.integers(0, 60_000_000), max_size=40))
def test_buckets_are_neighbours_in_order(sizes: list[int]) -> None:
    parts = partition_buckets(sizes)
    assert [i for part in parts for i in part] == [*range(len(sizes))]
    assert all(parts)


SMALL = "net n { input(8x8x1); conv(8, 3x3, pad=same) -> batchnorm -> relu; fc(10) }"


def network_of(train: str) -> tuple[Network, Recipe]:
    """The small net with 4 images a batch, and a recipe with these keys."""
    program = build_program(parse(f"{SMALL}\ndata {{ source = digits }}\ntrain {{ {train} }}"))
    recipe = resolve_recipe(program)
    return elaborate(program, recipe.net, recipe.settings(True, 4)), recipe


@pytest.mark.parametrize("device", ["cuda", "cpu", "reference"])
@pytest.mark.parametrize("precision", ["full", "mixed", "mixed(float16)"])
def test_the_timeline_of_a_net_has_each_gradient(device: str, precision: str) -> None:
    network, recipe = network_of(f"precision = {precision}")
    found = predict_timeline(network, recipe, fusion_of(device), GPUS["h100"].ceilings)
    assert found.size == 4 * network.params
    assert {g.weight for g in found.gradients} == {n.name for n in network.parameters}
    assert 0 < found.gradients[0].ready < found.gradients[-1].ready <= found.batch_seconds
    assert found.gradients[0].weight.startswith("fc1")


def test_a_frozen_weight_has_no_gradient_and_batches_add_up() -> None:
    network, recipe = network_of('freeze = ["fc1.*"], accumulate = 3')
    found = predict_timeline(network, recipe, fusion_of("cuda"), GPUS["h100"].ceilings)
    assert not any(g.weight.startswith("fc1") for g in found.gradients)
    assert found.images_per_update == 12
    assert found.seconds == pytest.approx(3 * found.batch_seconds + found.update_seconds)
    assert found.buckets[0].ready > 2 * found.batch_seconds


def test_an_update_reads_and_writes_weights_and_their_states() -> None:
    gpu = GPUS["h100"].ceilings
    plain, adam = (
        predict_timeline(*network_of(f"optimizer = {o}"), fusion_of("cpu"), gpu)
        for o in ("sgd(lr=0.1, momentum=0)", "adam")
    )
    assert plain.update_seconds == pytest.approx(3 * plain.size / gpu.bandwidth)
    assert adam.update_seconds == pytest.approx(7 * adam.size / gpu.bandwidth)


@cache
def predict_resnet50(images: int) -> StepTimeline:
    """ResNet-50 in 16 bits on an H100."""
    program = load_recipe(str(RESNET), ["train.precision=mixed"], "imagenet")
    recipe = resolve_recipe(program, "imagenet")
    network = elaborate(program, recipe.net, recipe.settings(True, images))
    return predict_timeline(network, recipe, fusion_of("cuda"), GPUS["h100"].ceilings)


@pytest.mark.parametrize(
    ("images", "ms", "gpus", "serial", "overlap"),
    [
        (256, 29, 8, 0.982, 0.999),
        (256, 29, 64, 0.969, 0.997),
        (256, 29, 1024, 0.954, 0.991),
        (32, 5, 1024, 0.78, 0.95),
    ],
)
def test_resnet50_scales_as_by_measured_bandwidths(
    images: int, ms: float, gpus: int, serial: float, overlap: float
) -> None:
    """With 200, 120 and 90 GB/s for the whole all-reduce and 30, 80 and 250 us."""
    gpu = GPUS["h100"]
    links = Interconnect(8, 0.8 * gpu.link_bandwidth, 0.8 * gpu.port_bandwidth)
    timeline = predict_resnet50(images).scaled_to(ms / 1e3)
    found = ScalingEstimate(timeline, links, gpus, 0.01)
    assert found.timeline.size == 4 * 25_557_032
    assert found.serial_efficiency == pytest.approx(serial, abs=0.01)
    assert found.overlapped_efficiency == pytest.approx(overlap, abs=0.01)


def test_buckets_are_those_of_a_step_on_several_ranks() -> None:
    program = load_recipe(str(RESNET), ["train.precision=mixed"], "imagenet")
    recipe = resolve_recipe(program, "imagenet")
    network = elaborate(program, recipe.net, replace(recipe.settings(True, 256), ranks=8))
    step = training_graph(network, recipe)
    gradients = predict_resnet50(256).gradients
    buckets: dict[int, list[str]] = {}
    for weight in (g.weight for g in gradients):
        node = step.nodes.get(f"reduce.{weight}.all_reduce")
        if node is not None:
            buckets.setdefault(node.attrs["bucket"], []).append(weight)
    parts = partition_buckets([g.size for g in gradients])
    expected = [{gradients[i].weight for i in part} for part in parts]
    found = [{*buckets[number]} for number in sorted(buckets, reverse=True)]
    # two weights with the same gradient, as where a sum ends both branches, have one all-reduce
    assert all(x <= y for x, y in zip(found, expected, strict=True))
    assert sum(map(len, found)) > 0.95 * len(gradients)


def test_weak_scaling_keeps_images_and_strong_scaling_the_batch(netdsl: Any) -> None:
    code, out, _ = netdsl("scale", DIGITS, "--gpus", "1,4,8,4", "--batch", "16", "--json")
    assert code == 0
    weak = json.loads(out)["estimates"]
    assert [e["gpus"] for e in weak] == [1, 4, 8]
    assert {e["images_per_gpu"] for e in weak} == {16}
    assert [e["batch"] for e in weak] == [16, 64, 128]
    assert len({e["ms_alone"] for e in weak}) == 1
    _, out, _ = netdsl("scale", DIGITS, "--gpus", "1,4,8", "--set", "data.batch=64", "--json")
    strong = json.loads(out)["estimates"]
    assert [e["images_per_gpu"] for e in strong] == [64, 16, 8]
    assert {e["batch"] for e in strong} == {64}
    assert strong[0]["ms_alone"] > strong[1]["ms_alone"] > strong[2]["ms_alone"]
    assert strong[1]["ms_alone"] == pytest.approx(weak[0]["ms_alone"])


def test_a_given_step_is_that_of_its_images(netdsl: Any) -> None:
    step = ("--step-ms", "7", "--step-batch", "32")
    _, out, _ = netdsl("scale", DIGITS, "--gpus", "2,8", "--set", "data.batch=64", *step, "--json")
    found = json.loads(out)
    assert found["estimates"][0]["ms_alone"] == pytest.approx(7)
    assert found["estimates"][1]["ms_alone"] < 7
    assert "7 ms for 32 images, as given" in found["assumptions"][0]


def test_a_step_is_measured_on_a_device(netdsl: Any) -> None:
    code, out, _ = netdsl("scale", DIGITS, "--gpus", "2", "--device", "reference", "--json")
    assert code == 0
    found = json.loads(out)
    assert "measured here on reference" in found["assumptions"][0]
    assert found["estimates"][0]["ms_alone"] > 0.05


def test_links_are_those_given(netdsl: Any) -> None:
    links = ("--bandwidth", "100", "--network", "10", "--latency", "5", "--per-node", "4")
    _, out, _ = netdsl("scale", DIGITS, "--gpus", "4,8", *links, "--variation", "0", "--json")
    found = json.loads(out)
    assert found["links"] == {
        "gpus_per_node": 4,
        "gbytes_in_node": 100,
        "gbytes_between_nodes": 10,
        "us_in_node": pytest.approx(4),
        "us_between_nodes": pytest.approx(5),
    }
    for e in found["estimates"]:
        assert e["ms_with_stragglers"] == pytest.approx(e["ms_with_overlap"])
    assert [e["nodes"] for e in found["estimates"]] == [1, 2]


def test_a_net_without_recipe_scales_with_its_images(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(SMALL)
    code, out, _ = netdsl("scale", "a.net", "--batch", "8")
    assert code == 0
    assert "n, training by plain SGD" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "0"], "`0` is not a number of GPUs"),
        (["--gpus", "8,"], "`` is not a number of GPUs"),
        (["--gpus", "8;64"], "`8;64` is not a number of GPUs"),
        (["--gpus", "-8"], "`-8` is not a number of GPUs"),
        (["--gpus", "٨"], "is not a number of GPUs"),
        (["--gpus", "9" * 5000], "is not a number of GPUs"),
        (["--gpus", "12"], "12 GPUs do not fill nodes of 8"),
        (["--gpus", "8", "--set", "data.batch=100"], "cannot be shared equally by 8 GPUs"),
        (["--per-node", "0"], "per-node"),
        (["--batch", "0"], "batch"),
        (["--step-ms", "5"], "does not say for how many images"),
        (["--step-ms", "0", "--batch", "8"], "must be a number above 0"),
        (["--step-ms", "nan", "--batch", "8"], "must be a number above 0"),
        (["--step-ms", "5", "--batch", "8", "--device", "cpu"], "give only one of them"),
        (["--gpus", "8", "--device", "gpu"], "there is no device `gpu`"),
        (["--gpu", "h300"], "no datasheet of `--gpu h300`"),
        (["--bandwidth", "0"], "`--bandwidth 0` must be a number above 0"),
        (["--network", "-1"], "`--network -1` must be a number above 0"),
        (["--latency", "-1"], "`--latency -1` must be a number 0 or above"),
        (["--variation", "inf"], "`--variation inf` must be a number 0 or above"),
    ],
    ids=lambda x: " ".join(x)[:30] if isinstance(x, list) else "",
)
def test_what_cannot_be_estimated_is_refused(netdsl: Any, options: list[str], message: str) -> None:
    code, out, err = netdsl("scale", DIGITS, *options)
    assert code == 2
    assert not out
    assert message in err


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--gpus", "12"], ["--gpus", "16"]),
        (["--gpus", "8", "--set", "data.batch=100"], ["--gpus", "8", "--set", "data.batch=104"]),
        (["--gpus", "64", "--set", "data.batch=10"], ["--gpus", "64", "--set", "data.batch=64"]),
    ],
)
def test_the_advice_is_accepted(netdsl: Any, options: list[str], advice: list[str]) -> None:
    code, _, err = netdsl("scale", DIGITS, *options)
    assert code == 2
    assert f"`{' '.join(advice[-2:])}`" in err
    assert netdsl("scale", DIGITS, "--set", "data.batch=32", *advice)[0] == 0


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def is_like(shown: str, printed: str) -> bool:
    """Whether two lines have the same words, and numbers within 2 %, or one of the last digit."""
    if NUMBER.sub("#", " ".join(shown.split())) != NUMBER.sub("#", " ".join(printed.split())):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(
        float(b.replace(",", ""))
        == pytest.approx(float(a.replace(",", "")), rel=0.02, abs=10.0 ** -len(a.partition(".")[2]))
        for a, b in pairs
    )


@pytest.mark.parametrize("command", commands(PAGE), ids=lambda c: c.text)
def test_the_page_shows_what_is_printed(netdsl: Any, tmp_path: Path, command: Command) -> None:
    (tmp_path / "models").symlink_to(MODELS)
    name, *words = command.words
    assert name == "netdsl"
    code, out, _ = netdsl(*words)
    assert code == command.exit_code
    lines, may_skip = iter(out.splitlines()), False
    for shown in command.shown:
        if shown.strip() == LEFT_OUT:
            may_skip = True
            continue
        found = next(line for line in lines if is_like(shown, line) or not may_skip)
        assert is_like(shown, found), (shown, found)
        may_skip = False

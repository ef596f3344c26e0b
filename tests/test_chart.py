"""Charts: their points, the places of labels, the compute of training, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.insight.charts.compute_curve import (
    IMAGENET_IMAGES,
    ComputeCurve,
    common_target,
    run_curve,
)
from netdsl.insight.charts.label_placement import Anchor, LabelBox, place_labels
from netdsl.insight.charts.points import QUANTITIES, find_published_nets, published_points
from netdsl.insight.charts.training_compute import (
    PUBLISHED_COMPUTE,
    TERAFLOPS_DAY,
    training_operations,
)
from netdsl.insight.plots.history import read_history
from netdsl.insight.summary import summarise
from netdsl.language.elaborate import elaborate
from netdsl.language.program import load_program

MODELS = Path(__file__).parent.parent / "models"
FRAME = LabelBox(0, 0, 1000, 800)

NETS = """
net small(width=2) {{ input(8x8x1); conv(width, 3x3, stride=2) -> relu -> fc({classes}) }}
net wide = small(width=8)
test small {{
  published(top1=0.5, source="paper, table 1", crops=10)
  published(top1=0.4, source="library", crops=1)
}}
test wide {{ published(top1=0.6, top5=0.9, source="library", crops=1) }}
data {{ source = digits, batch = 256 }}
train {{ optimizer = adam(lr=0.01), epochs = 1 }}
train other {{ optimizer = sgd(lr=0.01), accumulate = 2 }}
train last {{ after = other, epochs = 2, freeze = "conv1.*" }}
"""

# ---- labels -------------------------------------------------------------------------------------

spots = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(st.lists(spots, min_size=1, max_size=20, unique=True), st.data())
def test_labels_of_points_with_room_cover_neither_labels_nor_points(
    cells: list[tuple[int, int]], data: Any
) -> None:
    """Points in cells of 100 x 80 pixels, whose labels are shorter than a cell."""
    anchors = [
        Anchor(
            100 * i + 50,
            80 * j + 40,
            data.draw(st.floats(0, 30)),
            data.draw(st.floats(5, 60)),
            data.draw(st.floats(6, 12)),
        )
        for i, j in cells
    ]
    boxes = place_labels(anchors, FRAME)
    for i, (anchor, box) in enumerate(zip(anchors, boxes, strict=True)):
        assert FRAME.contains(box)
        assert math.isclose(box.right - box.left, anchor.width)
        assert not any(box.overlap(other) for other in boxes[:i])
        for other in anchors:
            assert not box.left < other.x < box.right or not box.bottom < other.y < box.top


@given(st.integers(1, 8), st.floats(0, 40))
def test_labels_of_one_place_spread_out(count: int, radius: float) -> None:
    anchors = [Anchor(500, 400, radius, 50, 10)] * count
    boxes = place_labels(anchors, FRAME)
    assert not any(a.overlap(b) for i, a in enumerate(boxes) for b in boxes[:i])


# ---- points -------------------------------------------------------------------------------------


def test_each_net_shows_the_accuracy_that_most_nets_share(tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    path.write_text(NETS.format(classes=10))
    nets = [*find_published_nets(load_program(str(path)), "top1", None)]
    points = {p.name: p for p in published_points(nets, "top1")}
    assert {k: (p.accuracy, p.group) for k, p in points.items()} == {
        "small": (0.4, "library, 1 crop"),
        "wide": (0.6, "library, 1 crop"),
    }
    assert points["wide"].classes == 10
    (top5,) = published_points([*find_published_nets(nets[0].program, "top5", None)], "top5")
    assert (top5.name, top5.accuracy) == ("wide", 0.9)
    (paper,) = published_points([*find_published_nets(nets[0].program, "top1", "Paper")], "top1")
    assert (paper.accuracy, paper.group) == (0.5, "paper, 10 crops")


def test_points_have_the_figures_of_the_summary() -> None:
    program = load_program(str(MODELS / "squeezenet.net"))
    for point in published_points([*find_published_nets(program, "top1", None)], "top1"):
        summary = summarise(elaborate(program, point.name))
        figures = point.params, point.macs, point.activations
        assert figures == (summary.params, summary.macs, summary.activations)
        assert QUANTITIES["params"].read(point) == summary.params


# ---- compute ------------------------------------------------------------------------------------


def test_published_compute_is_that_of_the_formula() -> None:
    """AlexNet was trained for 90 epochs; a multiply-add counts once in the published figure."""
    program = load_program(str(MODELS / "alexnet.net"))
    (alexnet,) = [n for n in find_published_nets(program, "top1", None) if n.net == "alexnet"]
    (point,) = published_points([alexnet], "top1")
    own = training_operations(point.macs, 90 * IMAGENET_IMAGES)
    published = PUBLISHED_COMPUTE[0]
    assert published.net == "AlexNet"
    assert published.operations == 2 * published.teraflops_days * TERAFLOPS_DAY
    assert abs(own / published.operations - 1) < 0.1
    ratios = [round(published.operations / p.operations, 1) for p in PUBLISHED_COMPUTE]
    assert ratios == [1, 4.4, 11.1, 20.7, 25.8, 44.9]  # as published: 1, 4.3, 11, 21, 25, 44


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=9),
    st.floats(0, 1),
)
def test_compute_to_an_accuracy_is_that_of_the_first_point(
    steps: list[tuple[int, float]], target: float
) -> None:
    operations = tuple(sum(n for n, _ in steps[: i + 1]) for i in range(len(steps)))
    curve = ComputeCurve("a", True, operations, tuple(a for _, a in steps))
    found = curve.find_operations(target)
    reached = [n for n, a in zip(operations, curve.accuracies, strict=True) if a >= target]
    assert found == (min(reached) if reached else None)
    best = common_target([curve])
    assert best is not None
    assert curve.find_operations(best) is not None


# ---- the command --------------------------------------------------------------------------------


def test_runs_and_nets_in_one_chart(netdsl: Any, tmp_path: Path) -> None:
    Path("a.net").write_text(NETS.format(classes=10))
    device = ("--device", "reference")
    assert netdsl("train", "a.net:last", "--out", "runs/last", *device)[0] in (0, 1)
    epochs = [json.loads(x) for x in Path("runs/last/metrics.jsonl").read_text().splitlines()]
    best = max(e["val_accuracy"] for e in epochs if "val_accuracy" in e)

    code, out, err = netdsl("chart", "runs", "a.net", "-o", "balls.svg", "--json")
    assert (code, err) == (0, "")
    found = {p["name"]: p for p in json.loads(out)["nets"]}
    assert found["last"]["accuracy"] == best
    assert found["last"]["params"] == found["small"]["params"]
    svg = Path("balls.svg").read_text()
    assert all(f">{name}</text>" in svg for name in ("small", "wide", "last", "own runs"))
    netdsl("chart", "runs", "a.net", "-o", "again.svg")
    assert Path("again.svg").read_text() == svg

    code, out, err = netdsl("chart", "runs/last", "--compute", "-o", "compute.png", "--json")
    assert (code, err) == (0, "")
    (curve,) = json.loads(out)["curves"]
    macs = found["last"]["macs"]
    stage = json.loads(Path("runs/last/other/metrics.jsonl").read_text().splitlines()[0])
    spent = 6 * macs * stage["step"] * 512  # two batches of 256 to an update
    own = [spent + 6 * macs * e["step"] * 256 for e in epochs if "step" in e]
    assert curve["operations"] == [spent, *own]
    assert Path("compute.png").read_bytes().startswith(b"\x89PNG")


def test_measured_axes(netdsl: Any) -> None:
    Path("a.net").write_text(NETS.format(classes=10))
    measured = ("--x", "images_per_second", "--area", "memory", "--batch", "2")
    code, out, _ = netdsl(
        "chart", "a.net", *measured, "--device", "reference", "-o", "a.png", "--json"
    )
    assert code == 0
    assert all(p["images_per_second"] > 0 and p["memory"] > 0 for p in json.loads(out)["nets"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--x", "mac"), "there is no `--x mac`"),
        (("--metric", "top2"), "there is no `--metric top2`"),
        (("--classes", "7"), "no net here has 7 classes"),
        (("--source", "nobody"), "no net here has a published top1 from nobody"),
        (("--size", "1x1"), "is not possible"),
        (("-o", "a.gif"), "does not end in .png, .svg or .pdf"),
        (("-o", "a.net"), "a.net is a file that this command reads"),
    ],
)
def test_bad_input(netdsl: Any, args: tuple[str, ...], message: str) -> None:
    Path("a.net").write_text(NETS.format(classes=10))
    code, _, err = netdsl("chart", "a.net", "-o", "a.png", *args)
    assert code == 2
    assert message in err
    assert not Path("a.png").exists()


def test_nets_of_other_tasks_are_left_out_and_named(netdsl: Any) -> None:
    Path("a.net").write_text(NETS.format(classes=10))
    Path("b.net").write_text(
        NETS.format(classes=4)
        .replace("net wide = small(width=8)", "")
        .replace("wide", "small")
        .replace('published(top1=0.6, top5=0.9, source="library", crops=1)', "params == 76")
    )
    code, out, err = netdsl("chart", "a.net", "b.net", "-o", "a.png")
    assert code == 0
    assert "a.png: 2 nets" in out
    assert "other numbers of classes are left out: 1 with 4" in err


def test_a_net_without_weights_has_no_ball(netdsl: Any) -> None:
    net = "net none { input(8x8x10) -> globalavgpool }\ntest none { published(top1=0.5) }\n"
    Path("a.net").write_text(net)
    code, _, err = netdsl("chart", "a.net", "-o", "a.png")
    assert code == 2
    assert "no net here has" in err


def test_epochs_without_steps_have_no_compute(tmp_path: Path) -> None:
    (tmp_path / "recipe.net").write_text(NETS.format(classes=10))
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "val_accuracy": 0.5}\n')
    with pytest.raises(NetError, match="has no val_accuracy"):
        run_curve(read_history(tmp_path), "top1")

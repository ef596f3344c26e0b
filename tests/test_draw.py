"""Drawings of nets: nothing overlaps, every edge is drawn once, text stays in its box."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from netdsl.backends.cpu.backend import CpuBackend
from netdsl.insight.draw.costs import find_costs
from netdsl.insight.draw.diagram import make_diagram, make_views
from netdsl.insight.draw.drawing import DrawOptions, draw, draw_html, draw_svg, html_fragment
from netdsl.insight.draw.kernels import make_kernel_tree
from netdsl.insight.draw.layout import lay_out
from netdsl.insight.draw.raster import render
from netdsl.insight.draw.repeats import group_repeats
from netdsl.insight.draw.text_width import measure_text, shorten_to_width
from netdsl.insight.draw.tree import NetTree, make_tree
from netdsl.ir.export import to_dot
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.passes.pass_manager import prepare_inference
from netdsl.plan.fusion import NO_FUSION
from netdsl.plan.plan import make_plan
from netdsl.runtime.state import draw_initial_value
from netdsl.training.store.checkpoint import Checkpoint, save
from tests.conftest import ROOT
from tests.drawings import check_drawing, check_edges, trees

MODELS = sorted((ROOT / "models").glob("*.net"))
REPEATS = """
block unit(c) { add { conv(c, 3x3, pad=same) -> relu -> conv(c, 3x3, pad=same) | identity } }
net deep { input(8x8x4); body: unit(4) * 3; other: unit(4); head: fc(3) }
"""


def load(text: str, name: str | None = None) -> Network:
    return elaborate(build_program(parse(text)), name)


def load_model(name: str) -> Network:
    file, _, net = name.partition(":")
    return elaborate(load_program(str(ROOT / "models" / file)), net or None)


def check_tree(tree: NetTree) -> None:
    diagram = make_diagram(tree, {}, {})
    for has_all_repeats in (True, False):
        for view in make_views(diagram, has_all_repeats):
            layout = lay_out(diagram, view)
            check_drawing(diagram, view, layout)
            if has_all_repeats:
                check_edges(diagram, view, layout)
            wrapped = lay_out(diagram, view, 3)
            check_drawing(diagram, view, wrapped)
            assert wrapped.rectangles.keys() == layout.rectangles.keys()


@settings(max_examples=25)
@given(trees())
def test_a_random_graph_is_drawn_without_overlap_and_with_every_edge(tree: NetTree) -> None:
    check_tree(tree)


@pytest.mark.parametrize("name", ["lenet.net:lenet5", "googlenet.net:googlenet", "unet.net"])
def test_a_net_of_the_zoo_is_drawn(name: str) -> None:
    check_tree(group_repeats(make_tree(load_model(name))))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_every_net_of_the_zoo_is_drawn(path: Path) -> None:
    program = load_program(str(path))
    for name in program.nets:
        network = elaborate(program, name)
        check_tree(group_repeats(make_tree(network)))
        ET.fromstring(draw_svg(network))
        plan = make_plan(prepare_inference(network.graph).main, NO_FUSION)
        check_tree(group_repeats(make_kernel_tree(network, plan)))


@pytest.mark.slow
def test_a_large_net_is_drawn_in_under_five_seconds(tmp_path: Path) -> None:
    started = time.perf_counter()
    net, out = f"{ROOT / 'models' / 'resnet.net'}:resnet152", str(tmp_path / "x.svg")
    subprocess.run([sys.executable, "-m", "netdsl", "draw", net, "-o", out], check=True, cwd=ROOT)
    assert time.perf_counter() - started < 5


def test_groups_that_repeat_each_other_are_drawn_once() -> None:
    tree = group_repeats(make_tree(load(REPEATS)))
    repeats = [g for g in tree.root.groups if g.kind == "repeat"]
    assert [(g.title, len(g.children)) for g in repeats] == [("unit1 – unit3", 3)]
    short, full = (draw(load(REPEATS), DrawOptions(9, every)) for every in (False, True))
    count = len(full.layout.rectangles) - len(short.layout.rectangles)
    assert count == 2 * 4 + 3  # four boxes of two groups, and the frames of three
    assert "unit1 – unit3 ×3" in draw_svg(load(REPEATS))


def test_depth_opens_groups_level_by_level() -> None:
    network = load_model("resnet.net:resnet18")
    counts = [len(draw(network, DrawOptions(depth=d)).layout.rectangles) for d in range(6)]
    assert counts == sorted(counts)
    assert counts[0] == 8  # input, stem, four stages, head, output
    assert len(set(counts)) == 5  # the deepest group is four levels down


LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30)


@given(LABELS, st.booleans(), st.floats(20, 200))
def test_shortened_text_fits(text: str, is_bold: bool, width: float) -> None:
    found = shorten_to_width(text, width, 12, is_bold)
    assert measure_text(found, 12, is_bold) <= width
    assert found == text or found.endswith("…")


@settings(max_examples=50)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=30), st.booleans())
def test_text_is_no_wider_than_it_is_measured(text: str, is_bold: bool) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, 100)
    letters = "".join(c for c in text if c.isprintable())
    assert font.getlength(letters) <= measure_text(letters, 100, is_bold) * 1.01 + 1


def test_text_from_a_net_stays_text() -> None:
    network = load("net small { input(4x4x1); a: fc(2) }")
    evil = '</script><script>alert("1")</script>&'
    renamed = Network(
        evil,
        network.graph,
        network.layers,
        network.nodes_by_path,
        network.loss_weights,
        False,
        network.output_paths,
    )
    root = ET.fromstring(draw_svg(renamed))
    assert evil in "".join(root.itertext())
    page = draw_html(renamed)
    assert evil not in page
    assert page.count("<script") == page.count("</script>") == 2


@pytest.mark.parametrize("options", [DrawOptions(), DrawOptions(depth=0)])
def test_the_same_net_gives_the_same_bytes(options: DrawOptions) -> None:
    first, second = (load_model("googlenet.net:googlenet_small") for _ in range(2))
    assert draw_svg(first, options) == draw_svg(second, options)
    assert draw_html(first, options) == draw_html(second, options)
    if options.depth == 0:
        pictures = [render(draw(network, options), "png", 0.5) for network in (first, second)]
        assert pictures[0] == pictures[1]


def test_two_drawings_of_a_page_share_no_id() -> None:
    network = load(REPEATS)
    pages = [html_fragment(network, prefix=prefix) for prefix in ("one", "two")]
    ids = [set(re.findall(r'\bid="([^"]*)"', page)) for page in pages]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    for page, own in zip(pages, ids, strict=True):
        drawing = page.partition("<script")[0]
        assert set(re.findall(r"url\(#([^)]*)\)", drawing)) <= own
        assert not re.search(r"(?:src|href)=", page)


@pytest.mark.parametrize("kind", ["params", "macs", "memory"])
def test_costs_add_up(kind: Any) -> None:
    network = load_model("googlenet.net:googlenet_small")
    costs = find_costs(network, kind)
    tree = make_tree(network)
    parts = sum(costs.sum_over(child) for child in tree.root.children)
    assert parts == costs.total == costs.sum_over(tree.root)
    if kind == "params":
        assert costs.total == network.params
    assert costs.find_level(tree.root) == len(costs.legend) - 1
    assert costs.describe(tree.root).endswith("100.0 %")
    svg = draw_svg(network, DrawOptions(costs=costs))
    assert all(text in svg for text in costs.legend)


def test_what_is_fused_is_one_group() -> None:
    text = "net n { input(8x8x3); a: conv(4, 3x3) -> batchnorm -> relu; maxpool(2x2); head: fc(3) }"
    network = load(text)
    plan = make_plan(prepare_inference(network.graph).main, CpuBackend().fusion)
    tree = make_kernel_tree(network, plan)
    kernels = [g for g in tree.root.groups if g.kind == "kernel"]
    words = [[box.word for box in kernel.boxes] for kernel in kernels]
    assert words == [["conv", "batchnorm", "relu"], ["maxpool"], ["fc"]]
    check_tree(tree)


def test_the_command_writes_every_format(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(REPEATS)
    beginnings = {"svg": b"<svg ", "png": b"\x89PNG", "html": b"<!DOCTYPE html>", "pdf": b"%PDF"}
    for suffix, beginning in beginnings.items():
        out = tmp_path / f"x.{suffix}"
        assert netdsl("draw", "a.net", "-o", str(out), "--cost", "params")[0] == 0
        assert out.read_bytes().startswith(beginning)
    assert netdsl("draw", "a.net", "-o", "w.png", "--width", "300")[0] == 0
    assert Image.open(io.BytesIO((tmp_path / "w.png").read_bytes())).width == 300
    code, out_text, _ = netdsl("draw", "a.net:deep", "-o", "k.svg", "--kernels", "--json")
    found = json.loads(out_text)
    assert (code, found["net"], found["picture"]) == (0, "deep", "k.svg")
    assert "kernel 0: " in (tmp_path / "k.svg").read_text()
    assert netdsl("draw", "a.net", "-o", "t.svg", "--cost", "time", "--device", "reference")[0] == 0


def test_a_checkpoint_is_drawn_and_summarised_as_its_net(netdsl: Any, tmp_path: Path) -> None:
    """The net that the recipe trains, of several."""
    text = "net first { input(8x8x1); fc(3) }\n" + REPEATS
    text += 'data { source = arrays("none.npz") }\ntrain { net = deep }\n'
    (tmp_path / "a.net").write_text(text)
    net = load(text, "deep")
    values = {n.name: draw_initial_value(n, 1) for n in net.graph.states}
    run = tmp_path / "run"
    run.mkdir()
    save(run / "best.safetensors", Checkpoint(values, text, ("0",), {}, {}))
    assert netdsl("draw", "a.net:deep", "-o", "a.svg")[0] == 0
    for place in ("run", "run/best.safetensors"):
        assert netdsl("draw", place, "-o", "b.svg")[0] == 0
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
        assert netdsl("summary", place) == netdsl("summary", "a.net:deep")
        code, _, err = netdsl("draw", place, "-o", "c.svg", "--set", "classes=3")
        assert code == 2
        assert "`--set` applies only to a .net file" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-o", "x.gif"), "x.gif is not a drawing"),
        (("-o", "a.net"), "a.net is not a drawing"),
        (("-o", "x.svg", "--cost", "money"), "there is no `--cost money`"),
        (("-o", "x.svg", "--width", "100"), "`--width` applies only to a .png"),
        (("-o", "nowhere/x.svg"), "there is no folder"),
    ],
)
def test_the_command_explains_what_is_wrong(
    netdsl: Any, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "a.net").write_text(REPEATS)
    code, _, err = netdsl("draw", "a.net", *args)
    assert code == 2
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.net"]


def test_dot_has_every_node_and_edge(netdsl: Any) -> None:
    graph = load("net small { input(4x4x1); a: fc(2) -> relu }").graph
    text = to_dot(graph)
    edges = re.findall(r'^  "(.*)" -> "(.*)";$', text, re.MULTILINE)
    assert set(edges) == set(graph.dag.edges)
    assert re.findall(r'^  "(.*?)" \[label=', text, re.MULTILINE) == list(graph.nodes)
    path = str(ROOT / "models" / "lenet.net")
    assert netdsl("compile", f"{path}:lenet5", "--emit", "dot")[1].startswith('digraph "lenet5" {')


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_page_folds_by_mouse_and_keyboard(tmp_path: Path) -> None:
    """In a browser: the script computes the places that the file has, keys open and fold groups,
    nothing is requested and nothing goes wrong."""
    playwright = pytest.importorskip("playwright.sync_api")
    network = load_model("googlenet.net:googlenet_small")
    page_file = tmp_path / "x.html"
    page_file.write_text(draw_html(network))
    folded_file = tmp_path / "folded.html"
    folded_file.write_text(draw_html(network, DrawOptions(depth=0)))
    troubles: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.on("console", lambda m: troubles.append(m.text))
        page.on("pageerror", lambda e: troubles.append(str(e)))
        page.on("request", lambda r: r.url == page_file.as_uri() or troubles.append(r.url))
        page.goto(page_file.as_uri())
        drawing = page.get_by_role("region").locator("svg")
        written = drawing.inner_html()
        page.get_by_role("button", name="Reset").click()
        assert drawing.inner_html() == written
        group = page.get_by_role("button", name="i3, 8x8x88, 12 conv", expanded=False)
        page.get_by_role("button", name="Fold all").click()
        group.focus()
        page.keyboard.press("Enter")
        assert group.count() == 0
        opened = page.get_by_role("button", name="i3, 8x8x88, 12 conv", expanded=True)
        assert opened.evaluate("e => e === document.activeElement")
        page.keyboard.press(" ")
        assert group.count() == 1
        places = drawing.locator("[data-box]:not([display])").evaluate_all(_PLACES)
        other = browser.new_page(viewport={"width": 1200, "height": 800})
        other.goto(folded_file.as_uri())
        assert places == other.locator("[data-box]:not([display])").evaluate_all(_PLACES)
        browser.close()
    assert not troubles


_PLACES = "all => all.map(e => [e.dataset.box, e.getAttribute('transform')])"

"""Every net of models/, small: gradients, fused and unfused runs; their page, their lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.backends.base import Backend
from netdsl.insight.gradcheck import gradcheck
from netdsl.insight.published_accuracy import PublishedAccuracy, read_published_accuracies
from netdsl.insight.zoo import load_zoo
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language import syntax as s
from netdsl.language.elaborate import Settings, ShrinkSettings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program, load_program
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.step.compile import compile_step
from netdsl.types import Array, Graph
from tests.conftest import ROOT
from tests.graphs import make_values, plain_recipe

MODELS = ROOT / "models"
PROGRAMS = {p.stem: load_program(str(p)) for p in sorted(MODELS.glob("*.net"))}
NETS = [
    (f, n) for f, program in PROGRAMS.items() for n in program.nets if program.has_all_defaults(n)
]
QUICK = {
    "batch",
    "cifar",
    "digits",
    "group",
    "inception_small",
    "lenet5",
    "locally_connected",
    "mobilenet_v2",
    "resnet20",
    "siamese",
    "squeezenet_1_1",
    "weight",
}
"""Nets that take a second or two; the others are slow."""


def every_net(quick: set[str]) -> Any:
    """A test of each net; the slow ones are marked."""
    return pytest.mark.parametrize(
        ("file", "net"),
        [pytest.param(f, n, id=n, marks=[] if n in quick else [pytest.mark.slow]) for f, n in NETS],
    )


DIVISOR = 8
"""Of the channels of nets that are shrunk."""


def test_the_quick_ones_are_there() -> None:
    assert {n for _, n in NETS} >= QUICK


# ---- small


@every_net(QUICK)
def test_a_small_net_has_the_layers_of_the_whole_one(file: str, net: str) -> None:
    """The same layers in the same places, their channels divided and nothing else changed."""
    whole = elaborate(PROGRAMS[file], net, Settings(batch=2, training=True))
    small = elaborate(
        PROGRAMS[file], net, Settings(batch=2, training=True, shrink=ShrinkSettings(DIVISOR))
    )
    assert [x.path for x in small.layers] == [x.path for x in whole.layers]
    assert small.nodes_by_path.keys() == whole.nodes_by_path.keys()
    assert small.loss_weights == whole.loss_weights
    kept = {
        whole.graph[n].type.shape[-1]
        for n in (*whole.graph.outputs.values(), *(i.name for i in images(whole)))
    }
    for a, b in zip(whole.layers, small.layers, strict=True):
        assert a.layer_type == b.layer_type
        assert len(a.output_type.shape) == len(b.output_type.shape)
        if a.layer_type in ("conv", "convtranspose", "local", "fc"):
            count = a.output_type.shape[-1]
            divided = count if count in kept else -(-count // DIVISOR)
            # GhostNet adds to what it concatenates of two halves, each of which is rounded up
            more = 1 if net.startswith("ghostnet") and count not in kept else 0
            assert divided <= b.output_type.shape[-1] <= divided + more, a.path
        if a.output_type.rank == 4:
            pairs = zip(a.output_type.shape[1:3], b.output_type.shape[1:3], strict=True)
            assert all(min(n, 2) <= m <= n for n, m in pairs), a.path
    for label, node in whole.graph.outputs.items():
        assert (
            small.graph[small.graph.outputs[label]].type.shape[-1]
            == (whole.graph[node].type.shape[-1])
        )


def images(network: Network) -> list[Any]:
    return [n for n in network.graph.inputs if n.type.rank > 1]


@pytest.mark.parametrize("by", [1, 3, 1000])
def test_any_divisor_does(by: int) -> None:
    for file, net in (("resnet", "resnet20"), ("inception", "inception_small"), ("nin", "nin")):
        network = elaborate(PROGRAMS[file], net, Settings(shrink=ShrinkSettings(by)))
        whole = elaborate(PROGRAMS[file], net)
        assert (network.params == whole.params) == (by == 1)


# ---- gradients


@every_net(QUICK)
def test_gradients(file: str, net: str) -> None:
    rows = list(gradcheck(PROGRAMS[file], net, shrink=DIVISOR))
    assert len(rows) > 3
    assert [r for r in rows if not r.ok] == []


# ---- fused and unfused, on every device that needs no other machine


def step_of(file: str, net: str, dtype: str) -> Graph:
    settings = Settings(batch=2, training=True, dtype=dtype, shrink=ShrinkSettings(DIVISOR))
    return compile_step(with_scores(elaborate(PROGRAMS[file], net, settings)), plain_recipe())


def with_scores(network: Network) -> Network:
    """The net; where it gives a picture of scores, with their mean over the picture."""
    main = network.graph[network.graph.outputs["main"]]
    if main.type.shape[1:-1] in ((), (1, 1)):
        return network
    b = Builder(network.graph, network.dtype)
    mean = b.reduce_mean(b.nodes[main.name], axes=(1, 2))
    updates = {state: b.nodes[node] for state, node in network.graph.updates.items()}
    return replace(network, graph=b.build({"main": mean}, updates, network.name))


@cache
def expected(file: str, net: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and states of a step in float64, and what the interpreter makes of them. What
    momentum has gathered is 0, so that the new value is the gradient alone."""
    graph = step_of(file, net, "float64")
    given = make_values(graph)
    losses = (n for n in graph.nodes.values() if n.op == "cross_entropy")
    classes = min(graph[n.args[0]].type.shape[-1] for n in losses)
    given |= {k: np.zeros_like(v) for k, v in given.items() if k.endswith(".velocity")}
    given["labels"] = given["labels"] % classes
    return given, evaluate_results(graph, given)


def ran(graph: Graph, backend: Backend, given: dict[str, Array]) -> dict[str, Array]:
    """Outputs and updates of one step on a backend."""
    state = State(backend)
    state.load({n.name: given[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    found = {k: backend.download(v) for k, v in executor.run(given).items()}
    return found | {f"update {n}": state.snapshot()[n] for n in graph.updates}


def errors(found: dict[str, Array], exact: dict[str, Array]) -> dict[str, float]:
    assert found.keys() == exact.keys()
    return {k: distance(v, exact[k]) for k, v in found.items()}


def distance(found: Array, exact: Array) -> float:
    size = max(float(np.linalg.norm(exact)), 1e-12)
    return float(np.linalg.norm(np.asarray(found, dtype="float64") - exact)) / size


@every_net(QUICK)
def test_the_kernels_compute_what_the_graph_means(file: str, net: str) -> None:
    given, exact = expected(file, net)
    graph = step_of(file, net, "float64")
    off = errors(ran(graph, open_backend("model"), given), exact)
    assert max(off.values()) < 1e-6, max(off, key=off.__getitem__)


@every_net({"batch", "lenet5", "locally_connected", "siamese"})
def test_the_cpu_computes_what_the_graph_means(file: str, net: str) -> None:
    """In float32 nothing is much further off than the interpreter itself is in float32."""
    given, exact = expected(file, net)
    graph = step_of(file, net, "float32")
    single = {n.name: given[n.name].astype(n.type.dtype) for n in (*graph.inputs, *graph.states)}
    plain = errors(evaluate_results(graph, single), exact)
    off = errors(ran(graph, open_backend("cpu"), single), exact)
    wrong = {k: (e, plain[k]) for k, e in off.items() if not e <= 1e-4 + 100 * plain[k]}
    assert wrong == {}


# ---- whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "net", "lr"),
    [
        ("alexnet", "alexnet", 1e-4),
        ("googlenet", "googlenet", 2e-2),
        ("resnet", "resnet50", 2e-3),
        ("vgg", "vgg_d", 1e-5),
    ],
)
def test_a_repeated_batch_is_learned_at_full_size(file: str, net: str, lr: float) -> None:
    """The loss falls with every step; dropout leaves out the same values in each."""
    network = elaborate(PROGRAMS[file], net, Settings(batch=2, training=True))
    graph, backend = compile_step(network, plain_recipe()), open_backend("auto")
    state = State(backend)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, backend, state)
    given = {**values_for_inputs(graph), "lr": np.float32(lr)}
    losses = [float(backend.download(executor.run(given)["loss"])) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]


def values_for_inputs(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    given: dict[str, Array] = {}
    for node in graph.inputs:
        kind = node.type
        drawn = rng.standard_normal(kind.shape) if kind.rank == 4 else np.ones(kind.shape)
        given[node.name] = drawn.astype(kind.dtype)
    return {**given, "labels": np.array([3, 7], np.int32)}


# ---- files


def test_the_page_is_fresh() -> None:
    assert (MODELS / "README.md").read_text() == load_zoo(MODELS, Settings()).as_markdown()


@pytest.mark.parametrize(
    ("file", "nets", "most"),
    [
        ("resnet", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"], 20),
        ("vgg", ["vgg_a", "vgg_a_lrn", "vgg_b", "vgg_c", "vgg_d", "vgg_e"], 40),
        ("googlenet", ["googlenet"], 30),
        ("convnext", ["convnext_t", "convnext_s"], 20),
        ("mobilenet_v3", ["mobilenet_v3_large", "mobilenet_v3_small"], 40),
        ("regnet", ["regnetx_400mf", "regnety_400mf"], 20),
    ],
)
def test_families_stay_short(file: str, nets: list[str], most: int) -> None:
    """Lines of the nets and of all in their file that they are made of, and of `use`."""
    items = list(parts(PROGRAMS[file], nets))
    assert sum(map(lines, items)) <= most


def parts(program: Program, nets: list[str]) -> Iterator[s.Item]:
    """The items that nets are written with: nets, those that they vary, blocks, `use`."""
    seen: set[str] = set()
    wanted = list(nets)
    named: dict[str, s.Item] = {i.name: i for i in program.items if isinstance(i, s.Block)}
    named |= program.nets
    yield from (i for i in program.items if isinstance(i, s.Use))
    while wanted:
        name = wanted.pop()
        if name in seen or name not in named:
            continue
        seen.add(name)
        yield named[name]
        wanted += names_in(named[name])


def names_in(tree: Any) -> Iterator[str]:
    """Every name that stands anywhere in a tree."""
    if isinstance(tree, tuple):
        for t in tree:
            yield from names_in(t)
    elif isinstance(tree, s.SyntaxNode):
        for field in tree.__dataclass_fields__:
            value = getattr(tree, field)
            if field in ("name", "base"):
                yield str(value)
            elif field not in ("span", "name_span"):
                yield from names_in(value)


def lines(item: s.Item) -> int:
    """Lines of an item's text that are not empty and no comment."""
    text = item.span.source.text[item.span.start : item.span.end]
    return sum(1 for x in text.splitlines() if x.strip() and not x.strip().startswith("#"))


def test_every_published_accuracy_has_a_source() -> None:
    for file, program in PROGRAMS.items():
        for test in program.tests:
            for accuracy in read_published_accuracies(program, test):
                assert accuracy.source, (file, test.net)


def test_what_the_lecture_concludes_is_published_by_one_source() -> None:
    """Of VGG (tables 3 and 4): normalisation of responses does not help, depth does, 3x3 instead of
    1x1 does, jitter does. Of ResNet (ten crops): a plain net gets worse with depth, a residual one
    better."""
    one_scale, three_scales = (
        {
            (net, a.train): a.top1
            for net, a in published("vgg")
            if a.source == f"paper, table {table}" and a.top1 is not None
        }
        for table in (3, 4)
    )
    assert (len(one_scale), len(three_scales)) == (12, 10)
    assert one_scale["vgg_a_lrn", (256,)] < one_scale["vgg_a", (256,)]
    by_depth = [one_scale[f"vgg_{n}", (256,)] for n in "abcd"]
    assert by_depth == sorted(by_depth)
    for by_sides in (one_scale, three_scales):
        for sides in ((256,), (384,), (256, 512)):
            assert by_sides["vgg_c", sides] < by_sides["vgg_d", sides]
        for net in ("vgg_c", "vgg_d", "vgg_e"):
            fixed = (by_sides[net, (256,)], by_sides[net, (384,)])
            assert max(fixed) < by_sides[net, (256, 512)]
    ten = {net: a.shares["top1"] for net, a in reversed(published("resnet")) if a.crops == 10}
    assert ten["plain34"] < ten["plain18"]
    by_depth = [ten[f"resnet{n}"] for n in (18, 34, 50, 101, 152)]
    assert by_depth == sorted(by_depth)


def published(file: str) -> list[tuple[str, PublishedAccuracy]]:
    """The nets of a file with each of their published accuracies."""
    program = PROGRAMS[file]
    return [
        (program.resolve_net_name(t.net), a)
        for t in program.tests
        for a in read_published_accuracies(program, t)
    ]


def test_a_net_s_paper_is_the_last_one_named_above_it(tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(
        '# First - Doe et al. 2001, "One | two". And more.\n'
        'net a { input(8) -> fc(3) }\n\n# Third - Roe 2003,\n# "Three"\nnet b = a\n'
        "test a { published(top1=0.5) }\n"
    )
    found = load_zoo(tmp_path, Settings())
    assert [e.paper for e in found.entries] == ['Doe et al. 2001, "One | two"', 'Roe 2003, "Three"']
    assert found.descriptions == {"a.net": 'First - Doe et al. 2001, "One | two".'}
    assert found.entries[0].published == {"top1": 0.5}
    page = found.as_markdown()
    assert '| `a.net:a` | Doe et al. 2001, "One \\| two" | 27 | 24 | 3 | 50.00% |  |  |' in page

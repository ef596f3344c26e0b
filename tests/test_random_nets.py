"""Whole training steps of drawn nets and of all of models/, on both engines against the reference.

Every layer of the language, every number of it over its whole range, every optimizer, loss and
schedule; five steps, gamma, beta and every other state away from 0 and 1, each step from the
reference's states. What a step moves a state by is right to 1e-4, to 1e-3 where minimal filtering
is used, or to what a net loses by rounding (`tests/training_steps.py`). `-m slow` runs 200 nets and
all models; here some of them do. A failure prints the net, to be saved and run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from netdsl.backends.array_backend import model_backend, reference_backend
from netdsl.backends.base import Backend
from netdsl.backends.cpu import winograd, winograd_wgrad
from netdsl.backends.cpu.backend import CpuBackend
from netdsl.language.elaborate import ShrinkSettings
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.layers import LAYERS
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw
from netdsl.ranks.communicator import Buffer, OneRank
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.step import buckets
from tests.conftest import ROOT
from tests.cuda_on_cpu import GPP, open_host_backend
from tests.random_nets import draw_net, draw_recipe, draw_single_layer_net, layer_names
from tests.training_steps import TOLERANCE, WINOGRAD_TOLERANCE, StepCase, StepTrial, make_case

needs_compiler = pytest.mark.skipif(GPP is None, reason="there is no g++ to compile for the CPU")
CPU = CpuBackend()
BACKENDS: tuple[Backend, ...] = (CPU, reference_backend(), model_backend())
NETS = 200
FEW = range(10)
"""Seeds of the nets of every run; the others are slow."""
MANY = [pytest.param(s, marks=() if s in FEW else pytest.mark.slow) for s in range(NETS)]
FEW_COMPILED = (1, 2, 6)
COMPILED = [
    pytest.param(s, marks=() if s in FEW_COMPILED else pytest.mark.slow) for s in range(NETS)
]


def wrong_on_cpu(case: StepCase, seed: int) -> list[str]:
    """What the CPU engine computes otherwise; with every other seed it takes minimal filtering
    wherever that can be."""
    used: list[object] = []
    with pytest.MonkeyPatch.context() as m:
        for kind in (winograd.WinogradConv, winograd_wgrad.WinogradWgrad):
            launch = kind.launch
            m.setattr(kind, "launch", lambda self, launch=launch: used.append(self) or launch(self))
        if seed % 2:
            m.setattr(winograd, "_MIN_SPEEDUP", 0)
        trial = StepTrial(case, CPU, seed)
        return list(trial.differences(WINOGRAD_TOLERANCE if used else TOLERANCE))


def wrong_on_cuda(case: StepCase, seed: int, folder: Path) -> list[str]:
    """What the CUDA engine computes otherwise, its kernels compiled as C++; with every other seed
    what follows a product is generated."""
    with pytest.MonkeyPatch.context() as m:
        backend = open_host_backend(m, folder, -(seed % 2))
        return list(StepTrial(case, backend, seed).differences())


@cache
def net_of(seed: int) -> str:
    return draw_net(RandomDraw(np.random.default_rng(seed)))


def case_of_text(text: str, ranks: int = 1) -> StepCase:
    file = build_program(parse(text))
    recipe = resolve_recipe(file)
    case = make_case(file, None, recipe, recipe.data.batch, ranks=ranks)
    assert case is not None
    return case


@pytest.mark.parametrize("seed", MANY)
def test_drawn_nets_on_the_cpu(seed: int) -> None:
    text = net_of(seed)
    assert wrong_on_cpu(case_of_text(text), seed) == [], text


class LateCommunicator(OneRank):
    """A rank whose collectives take as long as they may: what is reduced is lost until somebody
    waits for it."""

    def start_all_reduce(self, arrays: Sequence[Buffer]) -> Future[None]:
        copies = [a.copy() for a in arrays]
        for a in arrays:
            a[...] = np.nan
        return _LateFuture(arrays, copies)


class _LateFuture(Future[None]):
    def __init__(self, arrays: Sequence[Buffer], copies: Sequence[Buffer]) -> None:
        super().__init__()
        self.arrays, self.copies = arrays, copies

    def result(self, timeout: float | None = None) -> None:
        for a, values in zip(self.arrays, self.copies, strict=True):
            assert np.isnan(a).all(), "something wrote where a collective reduces"
            a[...] = values


@pytest.mark.parametrize("seed", MANY)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_drawn_nets_of_ranks_wait_for_their_collectives(
    seed: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter reduces over a single rank, as this communicator does."""
    for name, size in (("BUCKET_BYTES", 300), ("TAIL_BYTES", 200), ("TAIL_BUCKET_BYTES", 100)):
        monkeypatch.setattr(buckets, name, size)
    case = case_of_text(net_of(seed), ranks=2)
    assert case.graph.find_by_op("all_reduce")
    late = backend.with_communicator(LateCommunicator())
    tolerance = WINOGRAD_TOLERANCE if backend is CPU else TOLERANCE
    assert list(StepTrial(case, late, seed).differences(tolerance)) == [], net_of(seed)


@needs_compiler
@pytest.mark.parametrize("seed", COMPILED)
def test_drawn_nets_on_the_emulated_gpu(seed: int, tmp_path: Path) -> None:
    text = net_of(seed)
    assert wrong_on_cuda(case_of_text(text), seed, tmp_path) == [], text


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_each_layer_alone_on_the_cpu(layer: object) -> None:
    text = draw_single_layer_net(RandomDraw(np.random.default_rng(7)), layer)
    assert text is not None
    assert wrong_on_cpu(case_of_text(text), 0) == [], text


CHAIN = "input(8x8x2); a: conv(8, 3x3, pad=same) -> "
PLAIN = "data { source = digits, batch = 3 }\ntrain { optimizer = sgd(momentum=0.9) }\n"
TWICE = {
    "batchnorm": "batchnorm -> relu -> globalmaxpool",
    "layernorm": "layernorm -> gelu -> globalmaxpool",
    "instancenorm": "instancenorm -> elu -> globalmaxpool",
    "groupnorm": "groupnorm(2) -> globalmaxpool",
    "add": "batchnorm; add { a | a -> tanh } -> globalmaxpool",
    "mul": "layernorm; mul { a | a -> tanh } -> globalmaxpool",
    "lone": "conv(1, 3x3) -> batchnorm -> tanh",
    "eps": "batchnorm(eps=0.3) -> tanh -> fc(1) -> batchnorm(eps=2)",
}
"""Nets whose gradient compares a value with its maximum, which another kernel may compute; norms of
a single channel, and by an eps whose reciprocal is not whole."""


def twice(name: str) -> str:
    return f"net a {{ {CHAIN}{TWICE[name]} -> fc(4) }}\n{PLAIN}"


@pytest.mark.parametrize("name", TWICE)
def test_what_two_kernels_compute_on_the_cpu(name: str) -> None:
    assert wrong_on_cpu(case_of_text(twice(name)), 0) == []


@needs_compiler
@pytest.mark.parametrize("name", ["batchnorm", "add"])
def test_what_two_kernels_compute_on_the_emulated_gpu(name: str, tmp_path: Path) -> None:
    assert wrong_on_cuda(case_of_text(twice(name)), 0, tmp_path) == []


@needs_compiler
@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "[(mse, 0.5), (cross_entropy(smoothing=0.2), 1)]",
        "[(focal(gamma=0.5, class_weights=balanced), 1), (bce(class_weights=balanced), 2)]",
    ],
)
def test_every_loss_on_the_emulated_gpu(loss: str, tmp_path: Path) -> None:
    text = (
        f"net a {{ {CHAIN}relu -> fc(4) }}\n{PLAIN.replace('train {', f'train {{ loss = {loss},')}"
    )
    assert wrong_on_cuda(case_of_text(text), 0, tmp_path) == []


MODELS = [
    (path, net)
    for path in sorted((ROOT / "models").rglob("*.net"))
    for net in load_program(str(path)).nets
]
SMALL = {
    "alexnet",
    "cifar",
    "convnext_small",
    "googlenet_small",
    "layer",
    "mobilenet_v3_digits",
    "preact8",
    "resnet8",
    "squeezenet_small",
}
NAMED = [
    pytest.param(*at, marks=() if at[1] in SMALL else pytest.mark.slow, id=f"{at[0].stem}-{at[1]}")
    for at in MODELS
]


def case_of_model(path: Path, net: str) -> tuple[StepCase | None, int]:
    """A net made small, under a recipe that is drawn for it, and the seed of that."""
    seed = MODELS.index((path, net))
    text = draw_recipe(RandomDraw(np.random.default_rng(seed)), 3)
    recipe = resolve_recipe(build_program(parse("net any { input(1x1x1); fc(2) }\n" + text)))
    shrink = ShrinkSettings(16)
    return make_case(load_program(str(path)), net, recipe, 3, shrink), seed


@pytest.mark.parametrize(("path", "net"), NAMED)
def test_models_on_the_cpu(path: Path, net: str) -> None:
    case, seed = case_of_model(path, net)
    assert case is None or wrong_on_cpu(case, seed) == []


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("path", "net"), [(p, n) for p, n in MODELS])
def test_models_on_the_emulated_gpu(path: Path, net: str, tmp_path: Path) -> None:
    case, seed = case_of_model(path, net)
    assert case is None or wrong_on_cuda(case, seed, tmp_path) == []


UNREACHED = {"gram", "is_finite", "copy", "exp", "log", "maximum", "power"}
"""What passes and mixed precision emit, and what no layer is made of."""


@pytest.mark.slow
def test_drawn_nets_hold_every_word_and_every_operator() -> None:
    texts = [net_of(seed) for seed in range(NETS)]
    assert set().union(*map(layer_names, texts)) >= LAYERS.keys() - {"identity"}
    graphs = [case_of_text(text).graph for text in texts]
    met = {node.op for graph in graphs for node in graph.nodes.values()}
    assert OPS.keys() - met == UNREACHED

"""The CUDA engine where there is no GPU: the whole zoo binds, plans and compiles."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends.array_backend import ArrayBackend, reference_backend
from netdsl.backends.cuda import cudnn_convolution, direct_convolution, image_gather, nvrtc
from netdsl.backends.cuda.backend import CUDA_FUSION, CudaBackend
from netdsl.backends.cuda.device import Device
from netdsl.backends.cuda.epilogue import Epilogue
from netdsl.backends.cuda.libraries import load_cudnn
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.cuda.tuning import Tuner, TuningCache
from netdsl.backends.lazy_batch import DeviceImages, LazyBatch
from netdsl.data.augment import bind_augmentation
from netdsl.data.preprocessing import Preprocessing
from netdsl.errors import NetError
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.passes import pass_manager
from netdsl.plan.layout import make_contiguous
from netdsl.plan.placement import Placement
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.signature import CallOf
from netdsl.training.recipe.precision import PRECISIONS
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.compile import compile_step
from netdsl.types import Attrs, Graph, Node, TensorType
from netdsl.values import Symbol
from tests.conftest import ROOT
from tests.graphs import plain_recipe
from tests.mock_gpu import (
    H100,
    find_conv_plans,
    load_driver,
    open_mock_backend,
    why_cudnn_is_missing,
)

MODELS = sorted((ROOT / "models").rglob("*.net"))
IN_FULL = ("cifar", "lenet", "mobilenet")


def recipe(precision: str) -> Recipe:
    chosen = CallOf("precision", PRECISIONS).accept(Symbol(precision))
    return replace(plain_recipe(), precision=chosen)


def graphs(path: Path) -> Iterator[Graph]:
    """The training steps of a file's nets in mixed precision, of some in full too; and the
    inference of the first. A net whose every layer another one has is left out: it has no kernel
    of its own."""
    file, seen = load_program(str(path)), set[object]()
    for net in file.nets:
        # so large that batch norm by algebra pays
        batch = 32 if net == "resnet50" else 8
        network = elaborate(file, net, Settings(batch=batch, training=True))
        own = parts(network)
        if own <= seen:
            continue
        if gives_class_scores(network):
            yield compile_step(network, recipe("mixed"))
            if path.stem in IN_FULL and not seen:
                yield compile_step(network, recipe("full"))
        if not seen:
            network = elaborate(file, net, Settings(batch=8))
            yield pass_manager.prepare_inference(network.graph).main
        seen |= own


def gives_class_scores(network: Network) -> bool:
    output = network.graph[network.graph.outputs["main"]]
    return math.prod(output.type.shape[1:-1]) == 1


def parts(network: Network) -> set[object]:
    g = network.graph
    return {(n.op, n.attrs, *(g[a].type for a in n.args)) for n in g.nodes.values() if n.args}


def bound(graph: Graph, backend: CudaBackend) -> None:
    """Every kernel of a graph bound, as training does it."""
    state = State(backend)
    state.arrays = {n.name: np.zeros(n.type.shape, n.type.dtype) for n in graph.states}
    Executor(graph, backend, state)


EVERY_RUN = {"lenet", "alexnet", "resnet", "googlenet", "mobilenet", "norms", "unet"}
"""Nets that have each kind of kernel; the slow tests bind and compile all."""
ZOO = [
    pytest.param(p, id=p.stem, marks=[] if p.stem in EVERY_RUN else pytest.mark.slow)
    for p in MODELS
]


@pytest.mark.parametrize("path", ZOO)
def test_the_zoo_binds_plans_and_compiles(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each convolution has a plan by cuDNN, each other kernel a source that NVRTC takes."""
    compiles(sources(path, monkeypatch), COMPILED, every=16)


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_source_compiles_for_every_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiles(sources(path, monkeypatch), ASSEMBLED, every=1)


def sources(path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The sources of a file's nets, all of whose kernels are bound."""
    backend, convolutions = open_mock_backend(monkeypatch), 0
    for graph in graphs(path):
        bound(graph, backend)
        convolutions += len(graph.find_by_op("conv2d"))
        assert not backend.fallbacks
    if not why_cudnn_is_missing():
        plans = find_conv_plans(backend)
        assert bool(plans) == bool(convolutions)
        assert all(name.startswith("eng") for name in plans.values())
    found: set[str] = backend.device.sources
    assert not any("atomic" in source for source in found)  # sums are added in one order
    return found


COMPILED: set[str] = set()
ASSEMBLED: set[str] = set()
"""Sources that this process has checked, and those that it has assembled for each GPU."""
GPUS = ("sm_90", "sm_80", "sm_100")
PTX = ("compute_90", "--Ofast-compile=max")
"""What a source is checked by, with little optimisation; to assemble it takes longer than that."""


def compiles(sources: set[str], known: set[str], every: int) -> None:
    """What is not known to this process: one of those that differ in numbers only becomes PTX, and
    one in `every` becomes the machine code of each generation of GPUs."""
    try:
        nvrtc.load_library()
    except NetError as e:
        pytest.skip(str(e))
    new = sorted(sources - known)
    done = {_without_numbers(source) for source in known}
    kinds = {_without_numbers(source): source for source in new}
    known.update(new)
    checked = [] if every == 1 else [source for kind, source in kinds.items() if kind not in done]
    jobs = [(PTX, checked), *(((gpu,), new[::every]) for gpu in GPUS)]
    for target, some in jobs:
        for i in range(0, len(some), 16):
            assert nvrtc.compile_source(joined(some[i : i + 16]), *target)


def _without_numbers(source: str) -> str:
    return re.sub(r"\d+", "0", source)


def joined(sources: list[str]) -> str:
    """Several sources as one, each in a namespace of its own: that halves the time."""
    text = [PRELUDE]
    for k, source in enumerate(sources):
        rest = source.removeprefix(PRELUDE).replace('extern "C" ', "")
        text.append(f"namespace n{k} {{\n{rest}\n}}")
        text += [f"#undef {name}" for name in re.findall(r"#define (\w+)", rest)]
    return "\n".join(text)


IMAGE, WEIGHT = (8, 28, 28, 64), (64, 3, 3, 64)
SAME = {"stride": (1, 1), "pad": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
EPILOGUES = {
    "bias+relu": ("conv2d", Epilogue("z", bias="b", relu=True), ("bias",)),
    "bias+beside+relu": ("conv2d", Epilogue("z", "b", "r", True), ("bias", "like")),
    "bias": ("conv2d", Epilogue("z", bias="b"), ("bias",)),
    "mask": ("conv2d_dgrad", Epilogue("z", mask="m"), ("like",)),
    "beside": ("conv2d_dgrad", Epilogue("z", addend="r"), ("like",)),
    "beside+mask": ("conv2d_dgrad", Epilogue("z", addend="r", mask="m"), ("like", "like")),
    "cast": ("conv2d", Epilogue("z"), ()),
}


def cudnn_here() -> Any:
    """The properties of a device, for cuDNN that may compile for it."""
    missing = why_cudnn_is_missing() or (
        None if load_driver() else "no compiler for a stand-in of the driver"
    )
    if missing:
        pytest.skip(missing)
    return load_cudnn().create_device_properties(H100.read_text())


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", EPILOGUES)
def test_epilogues_of_convolutions_compile(kind: str, low: str) -> None:
    op, epilogue, beside = EPILOGUES[kind]
    device, result = cudnn_here(), "float32" if kind == "cast" else low
    among = {"bias": ((64,), "float32"), "like": (IMAGE, low)}
    kinds = [(IMAGE, low), (WEIGHT, low), *(among[o] for o in beside), (IMAGE, result)]
    places = tuple(Placement(f"p{i}", t, make_contiguous(s)) for i, (s, t) in enumerate(kinds))
    node = Node("y", op, ("a", "b"), Attrs(SAME), TensorType(IMAGE, low))
    task = cudnn_convolution.FusedConvolution(node, places, epilogue)
    graph, tensors = cudnn_convolution.build_graph(task, device_property=device)
    assert len(tensors) == len(places)
    assert cudnn_convolution.create_plans(graph, is_exact=False)
    cudnn_convolution.build_plan(graph, 0)
    assert len(graph.serialize()) > 1000
    assert epilogue.kind == kind


@pytest.mark.parametrize("low", ["bfloat16", "float16", "float32"])
def test_convolutions_of_few_channels_compile(low: str) -> None:
    """Those of LeNet: forward with an epilogue, and both gradients."""
    image, weight, result = (4, 14, 14, 6), (16, 5, 5, 6), (4, 10, 10, 16)
    x, w, y = (Placement(str(s), low, make_contiguous(s)) for s in (image, weight, result))
    attrs = Attrs({**SAME, "pad": ((0, 0), (0, 0))})
    epilogue = Epilogue("z", bias="b", addend="r", relu=True)
    beside = {"bias": Placement("b", "float32", make_contiguous((16,))), "beside": y}
    sources = set()
    for op, given, out, e in (
        ("conv2d", (x, w), y, epilogue),
        ("conv2d_dgrad", (y, w), x, None),
        ("conv2d_wgrad", (y, x), w, None),
    ):
        node = Node("y", op, ("a", "b"), attrs, TensorType(out.layout.shape, low))
        found = direct_convolution.direct_launches(node, given, out, 132, e, beside if e else None)
        sources |= {launch.source for launch in found}
    assert len(sources) == 4
    compiles(sources, ASSEMBLED, every=1)


def test_batches_that_are_picked_compile() -> None:
    """Bytes one by one and by fours."""
    prepare = Preprocessing(
        (bind_augmentation("random_crop"), bind_augmentation("hflip"), bind_augmentation("cutout"))
    )
    sources = set()
    for image in ((32, 32, 3), (9, 9, 1)):
        images = np.zeros((4, *image), np.uint8)
        picked = prepare(DeviceImages(images, images)[np.arange(3)])
        assert isinstance(picked, LazyBatch)
        sources.add(image_gather.gather_launch(picked, 0, 0, 0).source)
    compiles(sources, ASSEMBLED, every=1)


def test_a_net_gets_epilogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bias and relu go into the convolutions, the relu's mask into their gradients."""
    cudnn_here()
    file = load_program(str(ROOT / "models" / "vgg.net"))
    network = elaborate(file, "vgg_d", Settings(batch=8, training=True))
    backend = open_mock_backend(monkeypatch, compile_seconds=math.inf)
    bound(compile_step(network, recipe("mixed")), backend)
    kinds = Counter(key[:2] for key in find_conv_plans(backend))
    assert kinds["conv2d", "bias+relu"] == 4  # of thirteen, where that is worth it
    assert kinds["conv2d_dgrad", "mask"] == 2


@pytest.mark.parametrize("op", ["conv2d", "conv2d_dgrad", "conv2d_wgrad"])
def test_repeatable_plans_are_all_that_is_left(op: str) -> None:
    """What cuDNN itself notes to differ from run to run cannot be built any more."""
    if missing := why_cudnn_is_missing():
        pytest.skip(missing)
    shapes = [(8, 14, 14, 64), (64, 3, 3, 64), (8, 14, 14, 64)]
    order = {"conv2d": (0, 1, 2), "conv2d_dgrad": (0, 1, 2), "conv2d_wgrad": (0, 2, 1)}[op]
    places = [Placement(f"p{i}", "bfloat16", make_contiguous(shapes[i])) for i in order]
    node = Node("y", op, ("a", "b"), Attrs(SAME), TensorType(shapes[order[2]], "bfloat16"))
    device = load_cudnn().create_device_properties(H100.read_text())

    def buildable(repeatable: bool) -> list[str]:
        task = cudnn_convolution.FusedConvolution(node, tuple(places))
        graph, _ = cudnn_convolution.build_graph(task, device_property=device)
        found = []
        for i, name in enumerate(cudnn_convolution.create_plans(graph, False, repeatable)):
            with suppress(Exception):
                cudnn_convolution.build_plan(graph, i)
                found.append(name)
        return found

    everything, some = buildable(False), buildable(True)
    assert some == buildable(True)
    assert 0 < len(some) <= len(everything)
    assert set(some) <= set(everything)
    if op != "conv2d":  # sums of partial sums, in whatever order they come
        assert len(some) < len(everything)


def test_a_deterministic_recipe_asks_the_engine_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed, nothing remembered, and plans are the likeliest that repeat."""
    device = Device.__new__(Device)
    device.tuner = Tuner(TuningCache("a gpu"))
    device.deterministic, device.chosen_plans = False, {"x": 1}
    engine = CudaBackend("cuda", np, CUDA_FUSION, device=device)
    own = engine.as_deterministic().device
    assert (own.deterministic, own.chosen_plans) == (True, {})
    assert (own.tuner.cache, own.tuner.remaining_seconds) == (None, 0)
    assert (device.deterministic, device.chosen_plans) == (False, {"x": 1})
    asked: list[Any] = []
    monkeypatch.setattr(ArrayBackend, "as_deterministic", lambda own: asked.append(own) or own)
    text = "net n { input(8x8x1); fc(10) }\ndata { source = digits }\ntrain { deterministic = %s }"
    for word in ("yes", "no"):
        Trainer(build_program(parse(text % word)), None, reference_backend())
    assert len(asked) == 1

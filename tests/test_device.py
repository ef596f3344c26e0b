"""The CUDA engine on a GPU, held against the interpreter; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl import disk_cache
from netdsl.backends import open_backend
from netdsl.backends.cuda import nvrtc
from netdsl.backends.cuda.gpu_ranks import GpuRanks
from netdsl.backends.cuda.libraries import load_nccl
from netdsl.data.augment import bind_augmentation
from netdsl.data.preprocessing import Preprocessing
from netdsl.errors import NetError
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.mixed_precision import convert_to_mixed_precision
from netdsl.passes.simplify import simplify
from netdsl.plan.fusion import FULL_FUSION
from netdsl.ranks.communicator import ONE_RANK
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph, TensorType
from tests.conftest import ROOT
from tests.cuda_on_cpu import FixedChoiceTuner
from tests.finite_differences import gradient_errors
from tests.graphs import (
    BLOCK_NETS,
    BLOCKS,
    SMALL_CONVOLUTIONS,
    convolution_with_gradients,
    lowered_step,
    make_values,
    plain_recipe,
    rewrite_all_norms,
    training_step,
)


@pytest.fixture(scope="module")
def backend() -> Any:
    try:
        return open_backend("cuda")
    except NetError as e:
        pytest.skip(str(e))


def compared(graph: Graph, backend: Any, steps: int = 3) -> dict[str, float]:
    """Largest relative error of outputs and states over some steps: run, captured, replayed."""
    values = make_values(graph)
    state = State(backend)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    worst: dict[str, float] = {}

    def note(name: str, found: Any, expected: Any) -> None:
        found = backend.download(found).astype("float64")
        expected = np.asarray(expected, dtype="float64")
        error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-2)
        worst[name] = max(worst.get(name, 0.0), float(error))

    for _ in range(steps):
        expected = evaluate_results(graph, values)
        found = dict(executor.run(values))
        for label in graph.outputs:
            note(label, found[label], expected[label])
        for name in graph.updates:
            note(name, state.arrays[name], expected[f"update {name}"])
            values[name] = backend.download(state.arrays[name])
    return worst


@pytest.mark.parametrize("net", BLOCK_NETS)
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-10), ("float32", 2e-4)])
def test_blocks(net: str, dtype: str, most: float, backend: Any) -> None:
    graph = simplify(lower_convolutions(training_step(BLOCKS, net, batch=2, dtype=dtype)))
    worst = compared(graph, backend)
    name = max(worst, key=worst.__getitem__)
    assert worst[name] < most, (name, worst[name])


def test_collectives_of_a_single_rank(backend: Any) -> None:
    """Reduced by NCCL: run, captured, replayed, beside kernels of a residual net."""
    if load_nccl() is None:
        pytest.skip("there is no NCCL")
    alone = replace(backend, ranks=GpuRanks(ONE_RANK, backend.device), anchor_binders={})
    settings = Settings(batch=2, training=True, ranks=2)
    network = elaborate(load_program(BLOCKS), "residual", settings)
    graph = compile_step(network, plain_recipe())
    assert graph.find_by_op("all_reduce")
    worst = compared(graph, alone)
    name = max(worst, key=worst.__getitem__)
    assert worst[name] < 2e-4, (name, worst[name])


CHECKED = [("models/lenet.net", "lenet5"), (BLOCKS, "residual"), (BLOCKS, "googlenet")]
"""LeNet, bottlenecks, inception blocks."""


@pytest.mark.parametrize(("path", "net"), CHECKED)
def test_gradients_against_differences(path: str, net: str, backend: Any) -> None:
    errors = gradient_errors(str(ROOT / path), net, backend)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("net", ["residual", "googlenet", "plain"])
def test_kernels_of_any_partition_bind(net: str, backend: Any) -> None:
    """Products with epilogues and sums, as another partition makes them."""
    graph = simplify(lower_convolutions(training_step(BLOCKS, net, batch=2)))
    worst = compared(
        graph, replace(backend, fusion=replace(FULL_FUSION, has_halo=False, alignment=256))
    )
    name = max(worst, key=worst.__getitem__)
    assert worst[name] < 2e-4, (name, worst[name])


WAYS = (0, 1, -1, "_direct")
"""Libraries' epilogues, products alone with what follows them generated, kernels of our own."""


def taking(way: int | str, backend: Any) -> Any:
    """The engine that takes the same way for each product, as far as there is one."""
    device = backend.device.with_tuner(FixedChoiceTuner(way), False)
    fusion = replace(backend.fusion, min_epilogue_bytes={})
    return replace(backend, device=device, fusion=fusion, fallbacks=[], anchor_binders={})


@pytest.mark.parametrize("net", ["residual", "googlenet"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_compute_a_product(way: int | str, net: str, backend: Any) -> None:
    graph = lowered_step(net, rewrite_all_norms, dtype="float32")
    worst = compared(graph, taking(way, backend))
    name = max(worst, key=worst.__getitem__)
    assert worst[name] < 2e-3, (name, worst[name])


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
@pytest.mark.parametrize("way", WAYS)
def test_batch_norm_by_algebra_in_16_bits(way: int | str, low: str, backend: Any) -> None:
    narrow = lambda graph: convert_to_mixed_precision(graph, low)
    graph = lowered_step("residual", narrow, rewrite_all_norms, dtype="float32", batch=8)
    worst = compared(graph, taking(way, backend), steps=2)
    assert graph.find_by_op("gram")
    assert np.isfinite(list(worst.values())).all()
    assert worst["loss"] < 0.05, worst["loss"]


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0])
def test_variances_of_many_rows_by_algebra(mean: float, backend: Any) -> None:
    """Sums over 800,000 rows in 16 bits, whose mean is so many times their deviation."""
    b = Builder()
    x = b.cast(b.input("x", TensorType((800_000, 64), "float32")), dtype="bfloat16")
    w = b.input("w", TensorType((64, 64), "float32"))
    y = b.cast(b.matmul(x, b.cast(w, dtype="bfloat16")), dtype="float32")
    m = b.moments(y, axes=(0,))
    z = b.reduce_max(b.normalize(y, m, axes=(0,), eps=1e-5), axes=(0,))
    before = b.build({"m": m, "z": z})
    rng = np.random.default_rng(0)
    given = {"x": mean + rng.standard_normal((800_000, 64), "float32")}
    given["w"] = np.eye(64, dtype="float32")
    found = []
    for graph in (before, rewrite_all_norms(before)):
        executor = Executor(graph, taking(0, backend), State(backend))
        found.append(backend.download(executor.run(given)["m"]))
    np.testing.assert_allclose(found[1], found[0], rtol=0.002 * max(1, mean))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", SMALL_CONVOLUTIONS, ids=lambda case: "x".join(map(str, case[0])))
def test_convolutions_of_few_channels(case: Any, dtype: str, backend: Any) -> None:
    graph = convolution_with_gradients(*case, dtype)
    worst = compared(graph, taking("_direct", backend))
    assert max(worst.values()) < (1e-4 if dtype == "float32" else 0.02), worst


@pytest.mark.parametrize("net", BLOCK_NETS)
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_mixed_blocks_stay_close(net: str, low: str, backend: Any) -> None:
    """In 16 bits each step stays near the interpreter's own 16-bit step."""
    network = training_step(BLOCKS, net, batch=2)
    worst = compared(
        simplify(convert_to_mixed_precision(simplify(lower_convolutions(network)), low)),
        backend,
        steps=2,
    )
    assert np.isfinite(list(worst.values())).all()
    assert worst["loss"] < 0.05, worst["loss"]


@pytest.mark.parametrize("low", ["full", "mixed", "mixed(float16(scale=1e9, steady=5))"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_recipes_train_as_on_the_reference(
    low: str, accumulate: int, backend: Any, tmp_path: Path
) -> None:
    """The command's own loop: uploads ahead, a scaled loss, overflows that are left out."""
    text = TRAINED % (low, accumulate)
    told: dict[str, list[dict[str, Any]]] = {"cuda": [], "model": []}
    for name, device in (("cuda", backend), ("model", open_backend("model"))):
        trainer = Trainer(build_program(parse(text)), None, device)
        trainer.run(tmp_path / name, lambda p: None, told[name].append)
    for found, expected in zip(told["cuda"], told["model"], strict=True):
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
        assert found.get("skipped") == expected.get("skipped")


TRAINED = """net small {
  input(8x8x1)
  conv(8, 3x3, pad=same) -> batchnorm -> relu -> maxpool(2x2) -> dropout(0.2) -> fc(10)
}
data { source = digits, batch = 64, augment = [random_crop(1), hflip(0.1), cutout(2)] }
train { epochs = 2, optimizer = adam(lr=0.01), precision = %s, accumulate = %s }
"""


def test_batches_are_picked_on_the_device(backend: Any) -> None:
    rng = np.random.default_rng(0)
    held = backend.cache_images(rng.integers(0, 256, (500, 32, 32, 3)).astype(np.uint8))
    changes = (
        bind_augmentation("random_crop"),
        bind_augmentation("hflip"),
        bind_augmentation("cutout"),
    )
    prepare = Preprocessing(changes, (32, 32, 3))
    target = backend.upload(np.zeros((100, 32, 32, 3), np.uint8))
    for seed in range(3):
        index = rng.integers(0, 500, 100)
        picked = prepare(held[index], prepare.draw(np.random.default_rng(seed), 100))
        for coming in (picked, backend.start_upload(picked)):
            backend.write(target, coming)
            np.testing.assert_array_equal(backend.download(target), picked.materialize())


def test_deterministic_runs_repeat(backend: Any, tmp_path: Path) -> None:
    """Two runs, of which the second finds nothing of the first in memory."""
    text = TRAINED.replace("epochs = 2", "epochs = 2, deterministic = yes") % ("mixed", 1)
    states = []
    for name in ("one", "two"):
        trainer = Trainer(build_program(parse(text)), None, backend)
        assert trainer.backend.device.deterministic
        trainer.run(tmp_path / name, lambda p: None, lambda m: None)
        states.append(trainer.state.snapshot())
    one, two = states
    assert all(np.array_equal(one[k], two[k]) for k in one)


def test_a_second_process_finds_what_the_first_has_built(
    backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No kernel is compiled and nothing is timed again; what is damaged is."""
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path))
    graph = simplify(
        convert_to_mixed_precision(
            simplify(lower_convolutions(training_step(BLOCKS, "residual", batch=4))), "bfloat16"
        )
    )

    def work() -> tuple[int, int]:
        """How many kernels were compiled, and how many choices timed."""
        own, compiled = open_backend("cuda"), []
        real = nvrtc.compile_source
        with monkeypatch.context() as m:
            m.setattr(nvrtc, "compile_source", lambda *a: compiled.append(a) or real(*a))
            state = State(own)
            state.initialise(graph.states, 0)
            before = len(own.device.tuner.cache.known_choices)
            Executor(graph, own, state).run(make_values(graph))
        return len(compiled), len(own.device.tuner.cache.known_choices) - before

    compiled, timed = work()
    assert compiled > 10
    assert timed > 3
    assert work() == (0, 0)
    for path in disk_cache.CUDA_CACHE.directory.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert work() == (compiled, timed)


def test_memory_that_is_short_is_told(backend: Any) -> None:
    text = TRAINED.replace("conv(8,", "conv(4000,").replace("64 }", "1200 }") % ("full", 1)
    pool = backend.xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + (200 << 20))
    try:
        with pytest.raises(NetError, match=r"a step takes .* of memory") as e:
            Trainer(build_program(parse(text)), None, backend)
    finally:
        pool.set_limit(size=0)
    assert "1200x8x8x4000" in e.value.render()

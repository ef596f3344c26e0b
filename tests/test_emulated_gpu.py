"""The command line on an emulated GPU: all of the engine but what only a real one can do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu as benchmark
from benchmarks import gpu_rows
from netdsl.backends import open_backend
from netdsl.backends.cuda.backend import CudaBackend
from netdsl.backends.roofline import Ceilings
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.store import checkpoint
from netdsl.types import TensorType
from tests.cuda_on_cpu import GPP
from tests.emulated_gpu import EmulatedGpu, install_emulated_gpu
from tests.graphs import make_values

pytestmark = pytest.mark.skipif(GPP is None, reason="there is no g++ to compile for the CPU")

NET = """net small {
  input(8x8x1)
  conv(8, 3x3, pad=same, bias=no) -> batchnorm -> relu -> maxpool(2x2)
  fc(10)
}
data { source = digits, batch = 100, augment = [random_crop(1), hflip(0.1), cutout(2)] }
train { epochs = 2, optimizer = adam(lr=0.01), precision = full }
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EmulatedGpu:
    (tmp_path / "small.net").write_text(NET)
    (tmp_path / "cache").mkdir()
    return install_emulated_gpu(monkeypatch, tmp_path / "cache")


def trained(netdsl: Any, device: str, *settings: str) -> dict[str, Any]:
    extra = [word for setting in settings for word in ("--set", setting)]
    args = ("train", "small.net", "--device", device, "--out", device, "--json", *extra)
    code, out, err = netdsl(*args)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def alike(netdsl: Any, *settings: str) -> None:
    """A run there has the figures that it has on the reference."""
    cuda, model = (trained(netdsl, device, *settings) for device in ("cuda", "model"))
    for key in ("train_loss", "val_accuracy", "test_accuracy"):
        assert cuda[key] == pytest.approx(model[key], rel=0.02), key


def test_a_run_from_the_command_line(gpu: EmulatedGpu, netdsl: Any) -> None:
    """Ways are timed, steps captured, batches picked on the device."""
    alike(netdsl, "train.epochs=1")
    assert gpu.launches["picked"] > 10
    assert gpu.taken
    args = ("compile", "small.net", "--train", "--device", "cuda", "--tune", "1", "--json")
    code, out, err = netdsl(*args)
    assert code == 0, err
    assert json.loads(out)["kernels"] > 10


@pytest.mark.parametrize(
    "settings",
    [
        ("train.precision=mixed(float16(scale=1e9, steady=5))", "train.accumulate=2"),
        ("train.precision=mixed", "train.ema=0.9", "train.clip=1", "data.augment=[mixup, cutmix]"),
    ],
    ids=["float16", "bfloat16"],
)
def test_a_repeatable_run_in_16_bits(
    settings: tuple[str, ...], gpu: EmulatedGpu, netdsl: Any
) -> None:
    """Overflows are left out, gradients added up, batches mixed by the host; nothing is timed."""
    alike(netdsl, "train.deterministic=yes", "train.epochs=1", *settings)


def test_a_launch_of_which_a_part_has_no_kernel_is_computed_by_reference(gpu: EmulatedGpu) -> None:
    """Casts to a type that CuPy does not have, one of a value whose views fit no pattern."""
    b = Builder()
    shapes = {"w": (6, 10), "s": (6, 1), "t": (15, 1), "v": (8, 4)}
    w, s, t, v = (
        b.state(name, TensorType(shape), ("normal", 1.0), trainable=False)
        for name, shape in shapes.items()
    )
    row = b.reshape(b.mul(w, s), shape=(60,))
    rows = b.mul(b.reshape(row, shape=(15, 4)), t)
    product = b.matmul(b.cast(v, dtype="bfloat16"), b.cast(rows, dtype="bfloat16"))
    graph = b.build({"y": b.cast(product, dtype="float32")})
    backend = open_backend("cuda")
    state = State(backend)
    values = make_values(graph)
    state.load({n.name: values[n.name] for n in graph.states}, graph.states, "the test")
    executor = Executor(graph, backend, state)
    assert backend.fallbacks == ["early: cast"]
    found = dict(executor.run(values))
    for name, expected in evaluate_results(graph, values).items():
        np.testing.assert_allclose(backend.download(found[name]), expected, rtol=0.02, atol=0.02)


def test_rows_of_the_benchmark(
    gpu: EmulatedGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is timed on a GPU runs before there is one."""
    monkeypatch.setitem(gpu_rows.NETS, "lenet", ("lenet.net", "lenet5", 4))
    bench = gpu_rows.BenchContext("cuda", "bfloat16", tmp_path)
    row, executor = gpu_rows.train_row(bench, "lenet")
    benchmark.print_profile(executor)
    assert "launches" in capsys.readouterr().out
    rows = [row, gpu_rows.infer_row(bench, "lenet")]
    assert all("61,706 parameters" in str(r) and "by reference" not in str(r) for r in rows)
    losses, scores = (np.load(tmp_path / f"lenet-{what}.npy") for what in ("train", "infer"))
    assert gpu_rows.check_results(bench, "lenet", "train", losses, losses) == (
        "losses off 0.00%, changes off 0.00%"
    )
    with pytest.raises(RuntimeError, match="not the same on both sides"):
        gpu_rows.check_results(bench, "lenet", "infer", scores, scores[:, ::-1])
    others = [replace(r, side=r.side.replace("netdsl", "PyTorch"), milliseconds=9.0) for r in rows]
    told = list(benchmark.format_ratios([*rows, *others]))
    assert len(told) == 2
    assert all("PyTorch bfloat16" in line for line in told)


def test_resumed_evaluated_and_timed(
    gpu: EmulatedGpu, netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits; and the tables of time, by limits that are given."""
    quick = ("train.deterministic=yes",)
    whole = trained(netdsl, "cuda", *quick)
    (tmp_path / "cuda").rename(tmp_path / "whole")
    trained(netdsl, "cuda", *quick, "train.epochs=1")
    code, out, _ = netdsl(
        "train", "--resume", "cuda", "--device", "cuda", "--json", "--set", "train.epochs=2"
    )
    assert code == 0
    assert json.loads(out)["train_loss"] == whole["train_loss"]
    one, two = (
        checkpoint.load(tmp_path / d / "last.safetensors").states for d in ("whole", "cuda")
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    code, out, _ = netdsl("eval", "whole", "--device", "cuda", "--json")
    assert json.loads(out)["accuracy"] == pytest.approx(whole["test_accuracy"], abs=0.01)
    twice = ("--size", "8", "--size", "8")
    assert netdsl("eval", "whole", "--device", "cuda", "--json", *twice) == (0, out, "")
    monkeypatch.setattr(CudaBackend, "measure_ceilings", lambda self: Ceilings(1e9, 1e9, 1e10))
    code, out, err = netdsl("time", "small.net", "--train", "--device", "cuda", "--rounds", "1")
    assert code == 0, err
    assert "10 in 16 bits" in out

"""What the GPU benchmark measures: rows of its table, each by itself."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.backends import open_backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import Program, load
from netdsl.passes import pipeline
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.signature import OneFrom
from netdsl.train.compile import compile_step
from netdsl.train.optimizers import OPTIMIZERS
from netdsl.train.precision import PRECISIONS
from netdsl.train.recipe import Recipe, resolve
from netdsl.types import Graph
from netdsl.values import Call

ROOT = Path(__file__).resolve().parent.parent
NETS = {
    "resnet50": ("resnet.net", "resnet50", 256),
    "lenet": ("lenet.net", "lenet5", 1024),
    "vgg16": ("vgg.net", "vgg_d", 128),
    "alexnet": ("alexnet.net", "alexnet_2014", 1024),
    "googlenet": ("googlenet.net", "googlenet_bn", 256),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    net: str
    batch: int
    side: str
    milliseconds: float
    first_seconds: float
    note: str = ""

    def __str__(self) -> str:
        rate = self.batch / self.milliseconds * 1e3
        return (
            f"{self.net:10} {self.batch:5}  {self.side:22} {self.milliseconds:8.3f} ms "
            f"{rate:11,.0f} img/s  first step {self.first_seconds:5.1f} s  {self.note}"
        )


def recipe() -> Recipe:
    """Cross-entropy, SGD with momentum and weight decay: what PyTorch's side does."""
    found = resolve(load(str(ROOT / "models" / "digits.net")))
    given = {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "no_decay": ()}
    sgd = replace(found.optimizer, name="sgd", record=OPTIMIZERS["sgd"], arguments=given)
    return replace(found, optimizer=sgd)


def program_of(net: str) -> tuple[Program, str, int]:
    file, name, batch = NETS[net]
    return load(str(ROOT / "models" / file)), name, batch


def step_of(net: str, low: str) -> tuple[Graph, int]:
    """A training step in mixed precision, and how many parameters the net has."""
    program, name, batch = program_of(net)
    network = elaborate(program, name, Settings(batch=batch, training=True))
    count = sum(p.type.size for p in network.parameters)
    # no loss is scaled: the step is timed, not trained
    chosen = OneFrom("precision", PRECISIONS).accept(Call("mixed", (), None))
    arguments = {"low": replace(chosen.arguments["low"], name=low)}
    step = replace(recipe(), precision=replace(chosen, arguments=arguments))
    return compile_step(network, step), count


def netdsl_row(net: str, low: str, steps: int = 20) -> tuple[Row, Executor]:
    """A training step of one of the models, timed by replays of its graph."""
    import cupy

    batch = NETS[net][2]
    started = time.perf_counter()
    backend = open_backend("cuda")
    graph, count = step_of(net, low)
    state = State(backend)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, backend, state)
    given = inputs(graph)
    losses = [float(executor.run(given)["loss"])]
    first = time.perf_counter() - started
    losses += [float(executor.run(given)["loss"]) for _ in range(3)]
    times = timed(executor.launch, backend.device.stream, steps)
    losses.append(float(executor.run(given)["loss"]))
    assert np.isfinite(losses).all(), losses
    used = cupy.get_default_memory_pool().used_bytes() / 1e9
    fallbacks = f", by reference: {backend.fallbacks}" if backend.fallbacks else ""
    curve = " ".join(f"{v:.3f}" for v in losses)
    note = f"{used:.1f} GB, {count:,} parameters, loss {curve}{fallbacks}"
    return Row(net, batch, f"train netdsl {low}", statistics.median(times), first, note), executor


def timed(launch: Callable[[], None], stream: Any, steps: int) -> list[float]:
    """Milliseconds of one launch, five times the mean of so many."""
    import cupy

    found = []
    for _ in range(5):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        for _ in range(steps):
            launch()
        stop.record(stream)
        stop.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, stop) / steps)
    return found


def warm_row(net: str, low: str) -> Row:
    """The first step where the disk holds what the one before has built and chosen."""
    row, executor = netdsl_row(net, low, steps=2)
    del executor
    return replace(row, side=f"train warm {low}", note="kernels and choices from the disk")


def inference_row(net: str, low: str, steps: int = 20) -> Row:
    """A folded net in 16 bits, timed by replays of its graph."""
    program, name, batch = program_of(net)
    started = time.perf_counter()
    backend = open_backend("cuda")
    network = elaborate(program, name, Settings(batch=batch))
    folded = pipeline.inference(network.graph, low=low)
    state = State(backend)
    state.initialise(network.graph.states, seed=1)
    executor = FoldedExecutor(folded, backend, state)
    executor.refresh()
    given = inputs(folded.main)
    executor.run(given)
    backend.device.stream.synchronize()
    first = time.perf_counter() - started
    out = executor.run(given)
    times = timed(executor.launch, backend.device.stream, steps)
    assert all(np.isfinite(backend.download(v).astype("float32")).all() for v in out.values())
    note = f"by reference: {backend.fallbacks}" if backend.fallbacks else ""
    return Row(net, batch, f"infer netdsl {low}", statistics.median(times), first, note)


def inputs(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {}
    for node in graph.inputs:
        kind = node.type
        if node.name == "labels":
            given[node.name] = rng.integers(0, 10, kind.shape).astype(kind.dtype)
        elif node.name == "weights":
            given[node.name] = np.ones(kind.shape, kind.dtype)
        elif node.name == "lr":
            given[node.name] = np.asarray(1e-4, kind.dtype)
        elif kind.rank:
            given[node.name] = rng.standard_normal(kind.shape).astype(kind.dtype)
        else:
            given[node.name] = np.zeros(kind.shape, kind.dtype)
    return given


def torch_row(net: str, what: str, mode: str) -> Row:
    """One of PyTorch's modes on the same net."""
    import pytorch

    batch = NETS[net][2]
    ms, first = pytorch.milliseconds(net, batch, mode, what == "train")
    return Row(net, batch, f"{what} PyTorch {mode}", ms, first)


def mnist_line(precision: str, epochs: int = 4) -> str:
    """LeNet-5 trained on MNIST from the command line, in a process of its own."""
    folder = Path(os.environ.get("NETDSL_DATA", ROOT.parent / "shared" / "data")) / "mnist"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "netdsl", "train", str(ROOT / "models" / "lenet.net")]
        command += ["--device", "cuda", "--data", str(folder), "--out", f"{out}/run", "--json"]
        command += ["--set", f"train.epochs={epochs}", "--set", f"train.precision={precision}"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    if not done.stdout:
        raise RuntimeError(done.stderr[-500:])
    found = json.loads(done.stdout)
    return (
        f"lenet5 on MNIST, {precision}, {epochs} epochs: test accuracy "
        f"{found['test_accuracy']:.2%}, {found['images_per_second']:,.0f} img/s, {seconds:.1f} s"
    )


def test_line() -> str:
    """The tests on the device. Raises RuntimeError where one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_device.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:])
    return f"tests/test_device.py: {done.stdout.strip().splitlines()[-1]}"

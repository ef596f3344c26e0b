"""netdsl on a GPU beside PyTorch: the GPU tests, then training throughput of both, one table.

python benchmarks/gpu.py [--nets resnet50,lenet] [--low float16] [--no-torch] [--no-tests]
"""

from __future__ import annotations

import argparse
import datetime
import gc
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from netdsl.backends import open_backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load
from netdsl.passes import pipeline
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.train.compile import compile_step
from netdsl.train.optimizers import OPTIMIZERS
from netdsl.train.recipe import Recipe, resolve
from netdsl.types import Graph

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
            f"{self.net:10} {self.batch:5}  {self.side:18} {self.milliseconds:8.3f} ms "
            f"{rate:11,.0f} img/s  first step {self.first_seconds:5.1f} s  {self.note}"
        )


def recipe() -> Recipe:
    """Cross-entropy, SGD with momentum and weight decay: what PyTorch's side does."""
    found = resolve(load(str(ROOT / "models" / "digits.net")))
    given = {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "no_decay": ()}
    sgd = replace(found.optimizer, name="sgd", record=OPTIMIZERS["sgd"], arguments=given)
    return replace(found, optimizer=sgd)


def step_of(net: str, low: str) -> tuple[Graph, int]:
    """A training step in mixed precision, and how many parameters the net has."""
    file, name, batch = NETS[net]
    program = load(str(ROOT / "models" / file))
    network = elaborate(program, name, Settings(batch=batch, training=True))
    forward = (*pipeline.FORWARD, pipeline.precision(low))
    count = sum(p.type.size for p in network.parameters)
    return compile_step(network, recipe(), forward=forward), count


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
    stream = backend.device.stream
    times = []
    for _ in range(5):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        for _ in range(steps):
            executor.launch()
        stop.record(stream)
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / steps)
    losses.append(float(executor.run(given)["loss"]))
    assert np.isfinite(losses).all(), losses
    used = cupy.get_default_memory_pool().used_bytes() / 1e9
    fallbacks = f", by reference: {backend.fallbacks}" if backend.fallbacks else ""
    curve = " ".join(f"{v:.3f}" for v in losses)
    note = f"{used:.1f} GB, {count:,} parameters, loss {curve}{fallbacks}"
    return Row(net, batch, f"netdsl {low}", statistics.median(times), first, note), executor


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


def torch_rows(net: str) -> list[Row]:
    """PyTorch's modes on the same net; a mode that fails leaves a line that says so."""
    import pytorch

    batch = NETS[net][2]
    rows = []
    for mode in pytorch.MODES:
        try:
            ms, first = pytorch.milliseconds(net, batch, mode)
        except RuntimeError as e:
            print(f"PyTorch {mode} failed on {net}: {str(e)[:200]}")
            continue
        rows.append(Row(net, batch, f"PyTorch {mode}", ms, first))
        print(rows[-1], flush=True)
    return rows


def profile(executor: Executor, most: int = 20) -> None:
    """The kernels that take longest, each by itself, with the bytes that it moves a second."""
    from netdsl.backends.cuda.backend import Captured
    from netdsl.plan.traffic import by_kind, kind_of, moved

    graph, device = executor.plan.graph, executor.backend.device
    rows = []
    for kernel, thunk in zip(executor.plan.kernels, executor.kernels, strict=True):
        if isinstance(thunk, Captured):
            ms = device.milliseconds(thunk)
            rows.append((ms, kind_of(graph, kernel), moved(graph, kernel) / ms / 1e9, kernel.name))
    kinds: dict[str, float] = {}
    for ms, kind, _, _ in rows:
        kinds[kind] = kinds.get(kind, 0) + ms
    table = by_kind(graph, executor.plan.kernels)
    for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]):
        count, size = table[kind]
        print(f"  {kind:16} {count:4} launches {ms:8.3f} ms {size / ms / 1e9:6.2f} TB/s")
    print(f"  sum {sum(kinds.values()):.3f} ms")
    for ms, kind, rate, name in sorted(rows, reverse=True)[:most]:
        print(f"    {ms:7.3f} ms {rate:6.2f} TB/s  {kind} {name}")


def versions() -> str:
    """Date, device and versions, for the head of the table."""
    import cudnn
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    driver = cupy.cuda.runtime.driverGetVersion()
    return (
        f"{datetime.date.today()}  {device}, CUDA {driver}, CuPy {cupy.__version__}, "
        f"cuDNN {cudnn.backend_version()}, frontend {cudnn.__version__}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--low", default="bfloat16")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    nets = asked.nets.split(",")
    rows = []
    for net in nets:
        row, executor = netdsl_row(net, asked.low)
        rows.append(row)
        print(row, flush=True)
        if asked.profile:
            profile(executor)
        del executor
        gc.collect()
    tests = ""
    if not asked.no_tests:
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_device.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        tests = done.stdout.strip().splitlines()[-1]
        print(done.stdout[-3000:] if done.returncode else tests, flush=True)
    if not asked.no_torch:
        for net in nets:
            rows += torch_rows(net)
    print("\n".join(["", versions(), tests, *map(str, rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

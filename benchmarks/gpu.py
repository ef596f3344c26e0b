"""netdsl on a GPU beside PyTorch: the GPU tests, then training throughput of both, one table.

python benchmarks/gpu.py [--nets resnet50,lenet] [--seconds 420] [--no-torch] [--no-tests]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netdsl.backends import open_backend
from netdsl.insight.explain import Target, compiled
from netdsl.language.program import load
from netdsl.passes import pipeline
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.types import Graph

ROOT = Path(__file__).resolve().parent.parent
NETS = {
    "resnet50": ("resnet.net", "resnet50", 256),
    "googlenet": ("googlenet.net", None, 256),
    "lenet": ("lenet.net", None, 1024),
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds a step, images a second, seconds until the first step was done, memory."""

    milliseconds: float
    images_per_second: float
    first_seconds: float
    gigabytes: float
    fallbacks: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()


def netdsl_step(net: str, low: str, steps: int = 20) -> tuple[Timing, Executor]:
    """A training step of one of the models, timed by its graph's replays."""
    import cupy

    file, name, batch = NETS[net]
    started = time.perf_counter()
    backend = open_backend("cuda")
    forward = (*pipeline.FORWARD, pipeline.precision(low))
    target = Target(name, training=True, batch=batch, forward=forward)
    graph = compiled(load(str(ROOT / "models" / file)), target, backend.fusion).plan.graph
    state = State(backend)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, backend, state)
    given = inputs(graph, batch)
    losses = [float(executor.run(given)["loss"])]
    first = time.perf_counter() - started
    losses += [float(executor.run(given)["loss"]) for _ in range(3)]
    stream = backend.device.stream
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record(stream)
    for _ in range(steps):
        executor.launch()
    stop.record(stream)
    stop.synchronize()
    ms = cupy.cuda.get_elapsed_time(start, stop) / steps
    losses.append(float(executor.run(given)["loss"]))
    used = cupy.get_default_memory_pool().used_bytes() / 1e9
    found = Timing(ms, batch / ms * 1e3, first, used, tuple(backend.fallbacks), tuple(losses))
    return found, executor


def inputs(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {}
    for node in graph.inputs:
        kind = node.type
        if node.name == "labels":
            given[node.name] = rng.integers(0, 10, kind.shape).astype(kind.dtype)
        elif node.name == "weights":
            given[node.name] = np.ones(kind.shape, kind.dtype)
        elif node.name == "lr":
            given[node.name] = np.asarray(0.01, kind.dtype)
        elif kind.rank:
            given[node.name] = rng.standard_normal(kind.shape).astype(kind.dtype)
        else:
            given[node.name] = np.zeros(kind.shape, kind.dtype)
    return given


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--low", default="bfloat16")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    if not asked.no_tests:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "tests/test_device.py"], cwd=ROOT
        )
    for net in asked.nets.split(","):
        timing, executor = netdsl_step(net, asked.low)
        print(net, json.dumps(timing.__dict__))
        if asked.profile:
            profile(executor)
    return 0


def profile(executor: Executor, most: int = 25) -> None:
    """The kernels that take longest, each by itself, with the bytes that it moves a second."""
    from netdsl.backends.cuda.backend import Captured
    from netdsl.plan.traffic import by_kind, kind_of, moved

    graph, device = executor.plan.graph, executor.backend.device
    rows = []
    for kernel, thunk in zip(executor.plan.kernels, executor.kernels, strict=True):
        if not isinstance(thunk, Captured):
            continue
        ms = device.milliseconds(thunk, 2)
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


if __name__ == "__main__":
    sys.exit(main())

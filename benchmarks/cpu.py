"""Training steps of netdsl and PyTorch in turns, on this machine's CPU.

python benchmarks/cpu.py [lenet resnet20 resnet50] [--rounds 5] [--no-compile]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from netdsl.backends import open_backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.train.compile import compile_step
from netdsl.train.optimizers import OPTIMIZERS
from netdsl.train.recipe import plain

ROOT = Path(__file__).parents[1]
NETS: dict[str, tuple[str, str, int, Callable[[], Any]]] = {
    "lenet": ("benchmarks/lenet.net", "lenet", 64, peers.LeNet),
    "resnet20": ("models/resnet.net", "resnet20", 128, peers.resnet20),
    "resnet50": ("models/resnet.net", "resnet50", 8, peers.resnet50),
}


def ours(path: str, net: str, batch: int) -> tuple[Any, list[np.ndarray], dict[str, Any], float]:
    """A step of netdsl, its parameters before it, what it is given, and the time to build it."""
    start = time.perf_counter()
    network = elaborate(load(str(ROOT / path)), net, Settings(batch=batch, training=True))
    recipe = plain(net)
    arguments = {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
    optimizer = replace(
        recipe.optimizer,
        name="sgd",
        record=OPTIMIZERS["sgd"],
        arguments={**arguments, "no_decay": ()},
    )
    graph = compile_step(network, replace(recipe, optimizer=optimizer))
    backend = open_backend("cpu")
    state = State(backend)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, backend, state)
    built = time.perf_counter() - start
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {}
    for node in network.graph.inputs:
        given[node.name] = rng.standard_normal(node.type.shape).astype(np.float32)
    classes = network.graph[network.graph.outputs["main"]].type.shape[-1]
    given["labels"] = rng.integers(0, classes, batch).astype(np.int32)
    given |= {"weights": np.ones(batch, np.float32), "lr": np.float32(0.01)}
    given |= {"step": np.int32(0), "seed": np.int32(0)}
    parameters = [np.array(state.array(w.name)) for w in network.parameters]
    return executor, parameters, given, built


def rivals(make: Any, parameters: list[Any], given: Any, compiled: bool) -> dict[str, Any]:
    model = make()
    peers.take_weights(model, parameters)
    images = next(v for k, v in given.items() if np.ndim(v) == 4)
    found = {}
    for name, layout in (
        ("eager", torch.contiguous_format),
        ("channels_last", torch.channels_last),
        ("compile", torch.channels_last),
    ):
        if name == "compile" and not compiled:
            continue
        step, own = peers.step_of(copy.deepcopy(model), images, given["labels"], layout)
        if name == "compile":
            fast = torch.compile(own)
            step = (lambda s, f: lambda: s(f))(step, fast)
        found[name] = step
    return found


def milliseconds(run: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """The median and the least of some steps."""
    times = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 2:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), 1e3 * min(times)


def compare(name: str, rounds: int, seconds: float, compiled: bool) -> dict[str, Any]:
    path, net, batch, make = NETS[name]
    executor, parameters, given, built = ours(path, net, batch)
    steps = rivals(make, parameters, given, compiled)
    start = time.perf_counter()
    loss = float(executor.run(given)["loss"])
    first = time.perf_counter() - start
    for step in steps.values():
        theirs = step()
        assert abs(loss - theirs) < 1e-3 * max(1, abs(theirs)), (name, loss, theirs)
    second, again = float(executor.run(given)["loss"]), next(iter(steps.values()))()
    assert abs(second - again) < 1e-2 * max(1, abs(again)), (name, second, again)
    runs = {"netdsl": lambda: executor.run(given), **steps}
    times: dict[str, list[tuple[float, float]]] = {k: [] for k in runs}
    for _ in range(rounds):
        for k, run in runs.items():
            times[k].append(milliseconds(run, seconds))
    medians = {k: statistics.median(t for t, _ in v) for k, v in times.items()}
    least = {k: min(t for _, t in v) for k, v in times.items()}
    return {
        "net": f"{path}:{net}",
        "batch": batch,
        "parameters": sum(p.size for p in parameters),
        "milliseconds": medians,
        "least": least,
        "ratio": _ratio(medians),
        "ratio_of_least": _ratio(least),
        "build_seconds": built,
        "first_step_seconds": first,
    }


def _ratio(times: dict[str, float]) -> float:
    """The best rival's time over ours."""
    return min(v for k, v in times.items() if k != "netdsl") / times["netdsl"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=list(NETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, help="Keeps the numbers as JSON.")
    options = parser.parse_args()
    rows = []
    for name in options.nets:
        row = compare(name, options.rounds, options.seconds, not options.no_compile)
        rows.append(row)
        cells = "  ".join(f"{k} {v:.2f}" for k, v in row["milliseconds"].items())
        built = (
            f"built in {row['build_seconds']:.1f} s, first step {row['first_step_seconds']:.2f} s"
        )
        least = "  ".join(f"{v:.2f}" for v in row["least"].values())
        print(f"{name} b{row['batch']}: {cells} ms  ratio {row['ratio']:.2f}", flush=True)
        print(f"  least {least} ms  ratio {row['ratio_of_least']:.2f}  {built}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

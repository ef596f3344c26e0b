"""One side of the CPU benchmark in its own process, with its own threads and memory.

    python -m benchmarks.cpu_side SIDE WORK FOLDER [--still]

Builds, runs twice, reports this as JSON, then answers lines of standard input: a number of seconds
with the milliseconds of each step run in that time, `memory` with the peak bytes of a step above
what was resident after all imports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.workloads import (
    MOMENTUM,
    ROOT,
    WEIGHT_DECAY,
    WORKLOADS,
    Workload,
    draw_parameters,
    remove_dropout,
)

THREADS = 2


class Side(Protocol):
    """`step` runs once and returns a loss or scores; `parameters` is their number."""

    parameters: int
    note: str

    def step(self) -> Any: ...


class NetdslSide:
    """netdsl. Writes its initial weights, in layer order, for the other sides."""

    def __init__(self, work: Workload, folder: Path, still: bool) -> None:
        from netdsl.backends import open_backend
        from netdsl.language.elaborate import Settings, elaborate
        from netdsl.language.program import load_program
        from netdsl.runtime.state import State

        path, net = work.net.split(":")
        settings = Settings(batch=work.batch, training=work.training)
        self.network = elaborate(load_program(str(ROOT / path)), net, settings)
        self.backend = open_backend("cpu")
        self.state = State(self.backend)
        self.parameters = self.network.params
        weights = draw_parameters(self.state, self.network)
        images, labels = work.data()
        self.given: dict[str, Any] = {"input": images}
        self.executor: Any = self._training(still) if work.training else self._inference()
        self.label = "loss" if work.training else "main"
        if work.training:
            ones = np.ones(work.batch, np.float32)
            self.given |= {"labels": labels, "weights": ones, "lr": np.float32(0.01)}
            self.given |= {"step": np.int32(0), "seed": np.int32(0), "rank": np.int32(0)}
        if still:
            np.savez(folder / "weights.npz", **{str(i): w for i, w in enumerate(weights)})
        if not work.training:
            self.executor.refresh()
        self.note = self._by_reference()

    def _training(self, still: bool) -> Any:
        from dataclasses import replace

        from netdsl.runtime.executor import Executor
        from netdsl.training.recipe.optimizers import OPTIMIZERS
        from netdsl.training.recipe.recipe import default_recipe
        from netdsl.training.step.compile import compile_step

        recipe = default_recipe(self.network.name)
        arguments = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": False}
        optimizer = replace(
            recipe.optimizer,
            name="sgd",
            record=OPTIMIZERS["sgd"],
            arguments={**arguments, "lr": 0.01, "no_decay": ()},
        )
        graph = compile_step(self.network, replace(recipe, optimizer=optimizer))
        self.state.initialise(graph.states, seed=1)
        return Executor(remove_dropout(graph) if still else graph, self.backend, self.state)

    def _inference(self) -> Any:
        from netdsl.passes import pass_manager
        from netdsl.runtime.executor import FoldedExecutor

        self.state.initialise(self.network.graph.states, seed=1)
        return FoldedExecutor(
            pass_manager.prepare_inference(self.network.graph), self.backend, self.state
        )

    def _by_reference(self) -> str:
        from netdsl.backends.base import ReferenceThunk

        pairs = zip(self.executor.plan.kernels, self.executor.kernels, strict=True)
        found = [k.name for k, thunk in pairs if isinstance(thunk, ReferenceThunk)]
        return f"by reference: {', '.join(found)}" if found else ""

    def step(self) -> Any:
        found = self.executor.run(self.given)[self.label]
        return float(found) if self.label == "loss" else found


class TorchSide:
    """PyTorch: `eager`, `channels_last` or `compile`."""

    note = ""

    def __init__(self, work: Workload, folder: Path, still: bool, how: str) -> None:
        import torch

        from benchmarks import torch_nets

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.work = work
        layout = torch.contiguous_format if how == "eager" else torch.channels_last
        model = torch_nets.NETS[work.peer]()
        torch_nets.load_weights(model, folder / "weights.npz")
        if still:
            torch_nets.disable_dropout(model)
        self.parameters = sum(p.numel() for p in model.parameters())
        model = model.to(memory_format=layout).train(work.training)
        images, labels = work.data()
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
        forward = torch.compile(model) if how == "compile" else model
        y = torch.from_numpy(labels.astype(np.int64))
        self.step = (
            torch_nets.make_step(model, forward, x, y)
            if work.training
            else self._scores(forward, x)
        )

    def _scores(self, forward: Any, x: Any) -> Callable[[], Any]:
        def run() -> Any:
            with self.torch.inference_mode():
                return forward(x).numpy()

        return run


class OnnxRuntimeSide:
    """onnxruntime on the model exported by PyTorch."""

    note = ""

    def __init__(self, work: Workload, folder: Path, still: bool) -> None:
        import onnxruntime

        path = folder / "model.onnx"
        self.parameters = int((folder / "parameters").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        images, _ = work.data()
        given = {"x": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
        self.step = lambda: session.run(None, given)[0]


def export_onnx(work: Workload, folder: Path) -> None:
    """Exports the PyTorch net for onnxruntime."""
    import warnings

    import torch

    from benchmarks import torch_nets

    model = torch_nets.NETS[work.peer]().eval()
    torch_nets.load_weights(model, folder / "weights.npz")
    (folder / "parameters").write_text(str(sum(p.numel() for p in model.parameters())))
    images, _ = work.data()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the new exporter needs another package
        torch.onnx.export(model, (x,), str(folder / "model.onnx"), input_names=["x"], dynamo=False)


def _open_side(side: str, work: Workload, folder: Path, still: bool) -> Side:
    if side == "netdsl":
        return NetdslSide(work, folder, still)
    if side == "onnxruntime":
        return OnnxRuntimeSide(work, folder, still)
    return TorchSide(work, folder, still, side)


def _import_libraries(side: str) -> None:
    """Imports a side's libraries, before memory is measured."""
    if side == "netdsl":
        import netdsl.backends.cpu.backend
        import netdsl.language.elaborate
        import netdsl.passes.pass_manager
        import netdsl.runtime.executor
        import netdsl.training.step.compile  # noqa: F401
    elif side == "onnxruntime":
        import onnxruntime  # noqa: F401
    else:
        import torch  # noqa: F401


def read_memory_status(key: str) -> int:
    """Memory of this process as counted by Linux, in bytes: VmRSS is current, VmHWM the peak since
    `reset_peak_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system tells no {key}")


def reset_peak_memory() -> None:
    """Resets the peak of resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def time_steps(run: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds of each step, at least two; after an untimed one that wakes the threads."""
    run()
    found = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(found) < 2:
        start = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side")
    parser.add_argument("work")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--still", action="store_true", help="No dropout; weights are written.")
    options = parser.parse_args()
    work, side = WORKLOADS[options.work], options.side
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    if side == "export":
        export_onnx(work, options.folder)
        return
    _import_libraries(side)
    imported = read_memory_status("VmRSS")
    began = time.perf_counter()
    opened = _open_side(side, work, options.folder, options.still)
    built = time.perf_counter()
    results = [np.array(opened.step()) for _ in range(2)]
    np.savez(options.folder / f"{side}.npz", *results)
    told = {
        "built": built - began,
        "ready": time.time(),
        "parameters": opened.parameters,
        "note": opened.note,
    }
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            reset_peak_memory()
            opened.step()
            print(json.dumps(read_memory_status("VmHWM") - imported), file=answers, flush=True)
        else:
            print(json.dumps(time_steps(opened.step, float(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

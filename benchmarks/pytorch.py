"""The PyTorch side of the GPU benchmark: the same nets and weights, in PyTorch's modes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_nets
from benchmarks.workloads import MOMENTUM, WEIGHT_DECAY


@dataclass(frozen=True)
class TorchResult:
    """Milliseconds per step, seconds until the first one is done, peak bytes, and the results:
    losses of the first steps, or scores."""

    milliseconds: float
    first_seconds: float
    bytes: int
    results: np.ndarray


@dataclass(frozen=True)
class TorchTask:
    """What both sides run: the net's name in torch_nets.py, its initial weights, images, labels to
    train on (None for inference), the number of losses to compare, the learning rate, and the
    16-bit type. Runs on a GPU if there is a 16-bit type, else as a rehearsal on the CPU, without
    dropout."""

    net: str
    weights: Path
    images: np.ndarray
    labels: np.ndarray | None
    steps: int
    lr: float
    low: str | None

    @property
    def device(self) -> str:
        return "cuda" if self.low else "cpu"


def measure(asked: TorchTask, mode: str) -> TorchResult:
    """Times a training step or inference: channels last, on a GPU in 16-bit autocast. Trains by SGD
    with momentum and weight decay. `mode` is eager, graph, compile, or a mode of torch.compile."""
    gpu = asked.device == "cuda"
    torch._dynamo.reset()
    if gpu:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    x = torch.from_numpy(np.ascontiguousarray(asked.images.transpose(0, 3, 1, 2)))
    x = x.to(asked.device, memory_format=torch.channels_last)
    started = time.perf_counter()
    model = torch_nets.NETS[asked.net]()
    built = time.perf_counter() - started
    torch_nets.load_weights(model, asked.weights)
    if not gpu:
        torch_nets.disable_dropout(model)
    started = time.perf_counter()
    model = model.to(asked.device, memory_format=torch.channels_last)
    model.train(asked.labels is not None)
    compiled = {"compile": {}, "max-autotune": {"mode": mode}}.get(mode)
    forward = model if compiled is None else torch.compile(model, **compiled)
    step = (
        _make_inference_step(forward, x, asked)
        if asked.labels is None
        else _make_training_step(model, forward, x, asked)
    )
    results = [_to_numpy(step())]
    first = built + time.perf_counter() - started
    results += [_to_numpy(step()) for _ in range(asked.steps - 1)]
    run = _capture_graph(step) if mode == "graph" else step
    most = torch.cuda.max_memory_allocated() if gpu else 0
    kept = results[0] if asked.labels is None else np.array(results)
    return TorchResult(_time_step(run, gpu), first, most, kept)


def _autocast(asked: TorchTask) -> Any:
    kind = getattr(torch, asked.low or "bfloat16")
    return torch.autocast(asked.device, dtype=kind, enabled=asked.low is not None)


def _to_numpy(found: Any) -> np.ndarray:
    return found.detach().float().cpu().numpy()


def _make_training_step(model: Any, forward: Any, x: Any, asked: TorchTask) -> Callable[[], Any]:
    given = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "fused": x.is_cuda}
    optimizer = torch.optim.SGD(model.parameters(), lr=asked.lr, **given)
    y = torch.from_numpy(asked.labels.astype(np.int64)).to(asked.device)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(asked):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _make_inference_step(forward: Any, x: Any, asked: TorchTask) -> Callable[[], Any]:
    def step() -> Any:
        with torch.inference_mode(), _autocast(asked):
            return forward(x)

    return step


def _capture_graph(step: Callable[[], Any]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _time_step(run: Callable[[], Any], gpu: bool) -> float:
    """Milliseconds per step: the median of ten measurements of three steps each; a single step
    without a GPU."""
    if not gpu:
        started = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - started)
    for _ in range(4):
        run()
    found = []
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(3):
            run()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / 3)
    return float(np.median(found))

"""The GPU benchmark's other side: the same nets with the same weights by PyTorch, in its modes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import peers

LR = 1e-4
STEPS = 3
"""Steps whose losses are compared."""


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a step, seconds until the first one was over, bytes at most, and what it
    gave: losses of the first steps, or scores."""

    milliseconds: float
    first_seconds: float
    bytes: int
    results: np.ndarray


def measured(
    net: str,
    mode: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    weights: Path,
    rehearsed: bool,
) -> Measured:
    """A training step (with `labels`) or inference, channels last, on a GPU in bfloat16 autocast.
    Training is by SGD with momentum and weight decay. `mode` is eager, graph, compile, or what
    torch.compile calls a mode. It is rehearsed on the processor, where nothing is dropped."""
    gpu, device = not rehearsed, "cpu" if rehearsed else "cuda"
    if gpu:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = peers.NETS[net]()
    peers.take_weights(model, weights)
    if rehearsed:
        peers.drop_nothing(model)
    model = model.to(device, memory_format=torch.channels_last).train(labels is not None)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    x = x.to(device, memory_format=torch.channels_last)
    compiled = {"compile": {}, "max-autotune": {"mode": mode}}.get(mode)
    forward = model if compiled is None else torch.compile(model, **compiled)
    if labels is None:
        step = _inferred(forward, x, gpu)
    else:
        step = _trained(model, forward, x, torch.from_numpy(labels.astype(np.int64)).to(device))
    started = time.perf_counter()
    results = [_on_host(step())]
    first = time.perf_counter() - started
    results += [_on_host(step()) for _ in range(STEPS - 1)]
    run = _captured(step) if mode == "graph" else step
    most = torch.cuda.max_memory_allocated() if gpu else 0
    kept = np.array(results) if labels is not None else results[0]
    return Measured(_timed(run, gpu), first, most, kept)


def _on_host(found: Any) -> np.ndarray:
    return found.detach().float().cpu().numpy()


def _trained(model: Any, forward: Any, x: Any, y: Any) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4, foreach=True
    )

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=x.is_cuda):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _inferred(forward: Any, x: Any, gpu: bool) -> Callable[[], Any]:
    def step() -> Any:
        autocast = torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=gpu)
        with torch.inference_mode(), autocast:
            return forward(x)

    return step


def _captured(step: Callable[[], Any]) -> Callable[[], Any]:
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


def _timed(run: Callable[[], Any], gpu: bool) -> float:
    """The median of ten times three steps; without a GPU a single one."""
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

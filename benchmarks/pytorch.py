"""The same nets trained by PyTorch: eager, captured as a CUDA graph, and compiled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


def build(net: str) -> tuple[nn.Module, tuple[int, int, int], int]:
    """The net, the shape of an image and the number of classes."""
    if net == "lenet":
        return lenet(), (1, 28, 28), 10
    import torchvision

    options = {"aux_logits": False, "init_weights": False} if net == "googlenet" else {}
    return getattr(torchvision.models, net)(weights=None, **options), (3, 224, 224), 1000


def parameters(net: str) -> int:
    return sum(p.numel() for p in build(net)[0].parameters())


def milliseconds(net: str, batch: int, mode: str, training: bool = True) -> tuple[float, float]:
    """A step in bfloat16 autocast, channels last: milliseconds, and seconds until the first one was
    done. Training is with SGD and momentum."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    built, shape, classes = build(net)
    model = built.cuda().to(memory_format=torch.channels_last).train(training)
    x = torch.randn(batch, *shape, device="cuda").to(memory_format=torch.channels_last)
    forward = torch.compile(model) if mode == "compile" else model
    step = trained(model, forward, x, classes) if training else inferred(forward, x)
    started = time.perf_counter()
    run = captured(step) if mode == "graph" else step
    run()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    return timed(run), first


def trained(model: nn.Module, forward: Any, x: Any, classes: int) -> Callable[[], None]:
    y = torch.randint(0, classes, (len(x),), device="cuda")
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, foreach=True
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()

    return step


def inferred(forward: Any, x: Any) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            forward(x)

    return step


def captured(step: Callable[[], None]) -> Callable[[], Any]:
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


def timed(run: Callable[[], Any]) -> float:
    """The median of ten times three steps."""
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
    return statistics.median(found)

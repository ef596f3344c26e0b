"""The benchmark's nets in PyTorch, with the weights of netdsl."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.c5, self.f6, self.f7 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # netdsl's order of features
        return self.f7(F.relu(self.f6(F.relu(self.c5(x)))))


class Cbr(nn.Module):
    def __init__(self, ci: int, co: int, k: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ci, co, k, stride, padding=(k - 1) // 2, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(co), relu

    def forward(self, x: Any) -> Any:
        y = self.norm(self.conv(x))
        return F.relu(y) if self.relu else y


class Small(nn.Module):
    def __init__(self, ci: int, co: int, stride: int) -> None:
        super().__init__()
        self.first = Cbr(ci, co, 3, stride)
        self.second = Cbr(co, co, 3, relu=False)
        self.stride, self.more = stride, co - ci

    def forward(self, x: Any) -> Any:
        short = x
        if self.more:
            short = x[:, :, :: self.stride, :: self.stride]
            short = F.pad(short, (0, 0, 0, 0, 0, self.more))
        return F.relu(self.second(self.first(x)) + short)


class Bottleneck(nn.Module):
    def __init__(self, ci: int, co: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = Cbr(ci, co, 1), Cbr(co, co, 3, stride)
        self.three = Cbr(co, 4 * co, 1, relu=False)
        even = ci == 4 * co and stride == 1
        self.short = nn.Identity() if even else Cbr(ci, 4 * co, 1, stride, relu=False)

    def forward(self, x: Any) -> Any:
        return F.relu(self.three(self.two(self.one(x))) + self.short(x))


def resnet20() -> nn.Module:
    layers: list[nn.Module] = [Cbr(3, 16, 3)]
    for ci, co in ((16, 16), (16, 32), (32, 64)):
        layers += [Small(ci if i == 0 else co, co, 2 if i == 0 < co - ci else 1) for i in range(3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [Cbr(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for co, n, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(n):
            layers.append(Bottleneck(width, co, stride if i == 0 else 1))
            width = 4 * co
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def take_weights(model: nn.Module, arrays: list[np.ndarray]) -> None:
    """Puts netdsl's parameters, in the order of its layers, into the model's."""
    own = list(model.parameters())
    assert sum(p.numel() for p in own) == sum(a.size for a in arrays)
    assert len(own) == len(arrays)
    with torch.no_grad():
        for p, a in zip(own, arrays, strict=True):
            p.copy_(torch.from_numpy(a.transpose(0, 3, 1, 2) if a.ndim == 4 else a))


def step_of(model: nn.Module, images: np.ndarray, labels: np.ndarray, layout: Any) -> Any:
    """A function that does one step of SGD and returns the loss."""
    model = model.to(memory_format=layout).train()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    y = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def run(forward: Any = model) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run, model

"""The benchmark's nets in PyTorch, with the weights of netdsl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_mobile_nets
from benchmarks.workloads import MOMENTUM, WEIGHT_DECAY


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.c5, self.f6, self.f7 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # netdsl's feature order
        return self.f7(F.relu(self.f6(F.relu(self.c5(x)))))


class Lenet5(nn.Module):
    """As in the paper: tanh, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.c5, self.f6, self.f7 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Any) -> Any:
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.c3(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # netdsl's feature order
        return self.f7(torch.tanh(self.f6(torch.tanh(self.c5(x)))))


class ConvBnRelu(nn.Module):
    def __init__(
        self, ci: int, co: int, k: int, stride: int = 1, relu: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ci, co, k, stride, padding=(k - 1) // 2, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(co, eps=eps), relu

    def forward(self, x: Any) -> Any:
        y = self.norm(self.conv(x))
        return F.relu(y) if self.relu else y


class BasicBlock(nn.Module):
    def __init__(self, ci: int, co: int, stride: int) -> None:
        super().__init__()
        self.first = ConvBnRelu(ci, co, 3, stride)
        self.second = ConvBnRelu(co, co, 3, relu=False)
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
        self.one, self.two = ConvBnRelu(ci, co, 1), ConvBnRelu(co, co, 3, stride)
        self.three = ConvBnRelu(co, 4 * co, 1, relu=False)
        even = ci == 4 * co and stride == 1
        self.short = nn.Identity() if even else ConvBnRelu(ci, 4 * co, 1, stride, relu=False)

    def forward(self, x: Any) -> Any:
        return F.relu(self.three(self.two(self.one(x))) + self.short(x))


def resnet20() -> nn.Module:
    layers: list[nn.Module] = [ConvBnRelu(3, 16, 3)]
    for ci, co in ((16, 16), (16, 32), (32, 64)):
        layers += [
            BasicBlock(ci if i == 0 else co, co, 2 if i == 0 < co - ci else 1) for i in range(3)
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [ConvBnRelu(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for co, n, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(n):
            layers.append(Bottleneck(width, co, stride if i == 0 else 1))
            width = 4 * co
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class FlattenNhwc(nn.Module):
    """Flattens each image to one row, in netdsl's order: height, width, channels."""

    def forward(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).flatten(1)


class Inception(nn.Module):
    """torchvision's Inception block: with batch norm, and 3x3 where the paper has 5x5."""

    def __init__(self, ci: int, a: int, b3: int, b: int, c5: int, c: int, d: int) -> None:
        super().__init__()
        self.a = conv_bn_relu(ci, a, 1)
        self.b = nn.Sequential(conv_bn_relu(ci, b3, 1), conv_bn_relu(b3, b, 3))
        self.c = nn.Sequential(conv_bn_relu(ci, c5, 1), conv_bn_relu(c5, c, 3))
        self.d = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn_relu(ci, d, 1))

    def forward(self, x: Any) -> Any:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)


def conv_bn_relu(ci: int, co: int, k: int, stride: int = 1) -> ConvBnRelu:
    return ConvBnRelu(ci, co, k, stride, eps=1e-3)


def googlenet() -> nn.Module:
    """Without the auxiliary classifiers."""

    def half(k: int) -> nn.Module:
        return nn.MaxPool2d(k, 2, ceil_mode=True)

    return nn.Sequential(
        *(
            conv_bn_relu(3, 64, 7, 2),
            half(3),
            conv_bn_relu(64, 64, 1),
            conv_bn_relu(64, 192, 3),
            half(3),
        ),
        *(Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64)),
        half(3),
        *(Inception(480, 192, 96, 208, 16, 48, 64), Inception(512, 160, 112, 224, 24, 64, 64)),
        *(Inception(512, 128, 128, 256, 24, 64, 64), Inception(512, 112, 144, 288, 32, 64, 64)),
        Inception(528, 256, 160, 320, 32, 128, 128),
        half(2),
        *(Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, 1000)),
    )


def alexnet() -> nn.Module:
    """The single-tower version of 2014."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for ci, co in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(ci, co, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), FlattenNhwc()]
    for ci in (9216, 4096):
        layers += [nn.Dropout(0.5), nn.Linear(ci, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for co, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(n):
            layers += [nn.Conv2d(width, co, 3, padding=1), nn.ReLU()]
            width = co
        layers.append(nn.MaxPool2d(2))
    layers.append(FlattenNhwc())
    for ci in (25088, 4096):
        layers += [nn.Linear(ci, 4096), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


NETS: dict[str, Callable[[], nn.Module]] = {
    "lenet": LeNet,
    "lenet5": Lenet5,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "googlenet": googlenet,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "mobilenet": torch_mobile_nets.mobilenet_v3_large,
    "shufflenet": torch_mobile_nets.shufflenet_v2,
    "efficientnet": torch_mobile_nets.efficientnet_b0,
    "convnext": torch_mobile_nets.convnext_t,
}


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies netdsl's parameters, in layer order, into the model's."""
    own = list(model.parameters())
    with np.load(path) as arrays, torch.no_grad():
        assert len(own) == len(arrays)
        for i, p in enumerate(own):
            a = arrays[str(i)]
            a = a.transpose(0, 3, 1, 2) if a.ndim == 4 else a
            p.copy_(torch.from_numpy(a).reshape(p.shape))  # a 1x1 convolution may be linear there


def disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def make_step(model: nn.Module, forward: Any, x: Any, y: Any) -> Callable[[], float]:
    """Returns a function that runs one step of SGD and returns the loss."""
    given = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, **given)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run

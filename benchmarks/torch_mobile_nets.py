"""Nets of 2018 to 2022 in PyTorch, parameter by parameter in the order of netdsl's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Activation = Callable[[], nn.Module] | None


def conv_bn(
    ci: int, co: int, k: int, act: Activation, stride: int = 1, groups: int = 1, eps: float = 1e-3
) -> nn.Sequential:
    conv = nn.Conv2d(ci, co, k, stride, padding=k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(co, eps=eps), *([act()] if act else []))


class SqueezeExcitation(nn.Module):
    def __init__(self, c: int, squeezed: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Any) -> Any:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.up(self.act(self.down(pooled))))


class InvertedResidual(nn.Module):
    """MobileNetV2's block, with squeeze and excitation before the projection if there is any."""

    def __init__(
        self,
        ci: int,
        wide: int,
        co: int,
        k: int,
        stride: int,
        se: nn.Module | None,
        act: Activation,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(ci, wide, 1, act)] if wide != ci else []
        layers.append(conv_bn(wide, wide, k, act, stride, groups=wide))
        layers += [se] if se else []
        self.body = nn.Sequential(*layers, conv_bn(wide, co, 1, None))
        self.has_shortcut = stride == 1 and ci == co

    def forward(self, x: Any) -> Any:
        y = self.body(x)
        return x + y if self.has_shortcut else y


def efficientnet_b0() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 32, 3, nn.SiLU, 2)]
    ci = 32
    for co, t, k, n, stride in (
        (16, 1, 3, 1, 1),
        (24, 6, 3, 2, 2),
        (40, 6, 5, 2, 2),
        (80, 6, 3, 3, 2),
        (112, 6, 5, 3, 1),
        (192, 6, 5, 4, 2),
        (320, 6, 3, 1, 1),
    ):
        for i in range(n):
            se = SqueezeExcitation(t * ci, ci // 4, nn.SiLU(), nn.Sigmoid())
            step = stride if i == 0 else 1
            layers.append(InvertedResidual(ci, t * ci, co, k, step, se, nn.SiLU))
            ci = co
    layers.append(conv_bn(ci, 1280, 1, nn.SiLU))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000)
    )


def _make_divisible(c: int) -> int:
    found = max(8, (c + 4) // 8 * 8)
    return found if found >= 0.9 * c else found + 8


def mobilenet_v3_large() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 16, 3, nn.Hardswish, 2)]
    ci = 16
    for k, wide, co, has_se, is_hard, stride in (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ):
        act: Activation = nn.Hardswish if is_hard else nn.ReLU
        squeezed = _make_divisible(wide // 4)
        se = SqueezeExcitation(wide, squeezed, nn.ReLU(), nn.Hardsigmoid()) if has_se else None
        layers.append(InvertedResidual(ci, wide, co, k, stride, se, act))
        ci = co
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1280), nn.Hardswish()]
    layers.append(conv_bn(ci, 960, 1, nn.Hardswish))
    return nn.Sequential(*layers, *head, nn.Dropout(0.2), nn.Linear(1280, 1000))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's block: half of the channels pass by; where it halves the image, none."""

    def __init__(self, ci: int, co: int) -> None:
        super().__init__()
        half, self.halves = co // 2, ci != co
        stride = 2 if self.halves else 1
        self.left = nn.Sequential()
        if self.halves:
            self.left = nn.Sequential(
                conv_bn(ci, ci, 3, None, 2, ci, 1e-5), conv_bn(ci, half, 1, nn.ReLU, eps=1e-5)
            )
        self.right = nn.Sequential(
            conv_bn(ci if self.halves else half, half, 1, nn.ReLU, eps=1e-5),
            conv_bn(half, half, 3, None, stride, half, 1e-5),
            conv_bn(half, half, 1, nn.ReLU, eps=1e-5),
        )

    def forward(self, x: Any) -> Any:
        one, two = (x, x) if self.halves else x.chunk(2, dim=1)
        y = torch.cat((self.left(one), self.right(two)), dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 24, 3, nn.ReLU, 2, eps=1e-5), nn.MaxPool2d(3, 2, 1)]
    ci = 24
    for co, n in ((116, 4), (232, 8), (464, 4)):
        layers += [ShuffleUnit(ci if i == 0 else co, co) for i in range(n)]
        ci = co
    layers.append(conv_bn(ci, 1024, 1, nn.ReLU, eps=1e-5))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of each pixel over its channels, of an image N x C x H x W."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(c))

    def forward(self, x: Any) -> Any:
        return x * self.gamma


class ConvNeXtBlock(nn.Module):
    """Products as linear layers on channels last, as in torchvision: faster than 1x1 kernels."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.wide, self.narrow = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.scale = LayerScale(c)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale(self.narrow(F.gelu(self.wide(y))))
        return x + y.permute(0, 3, 1, 2)


def convnext_t() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4), ChannelNorm(96, eps=1e-6)]
    ci = 96
    for co, n in ((96, 3), (192, 3), (384, 9), (768, 3)):
        if co != ci:
            layers += [ChannelNorm(ci, eps=1e-6), nn.Conv2d(ci, co, 2, 2)]
        layers += [ConvNeXtBlock(co) for _ in range(n)]
        ci = co
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(ci, eps=1e-6)]
    return nn.Sequential(*layers, *head, nn.Linear(ci, 1000))

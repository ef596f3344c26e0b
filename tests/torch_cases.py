"""Layers, losses, recipes and schedules, each with its PyTorch equivalent.

Also computes netdsl's results on the same values, in float64. The table of numbers is made from
these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program
from netdsl.signature import BoundCall
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.recipe.schedules import SCHEDULES, Moment, rate_factor
from netdsl.training.step.graphs import training_graph
from netdsl.training.store.progress import Progress
from netdsl.types import Array, Node
from netdsl.values import Argument

BATCH, PROJECTIONS, STEPS = 3, 4, 50
Numbers = dict[str, list[float]]


def make_values_by_name(name: str, shape: Sequence[int]) -> Array:
    """Random values seeded by a name; scales are around 1, variances positive."""
    drawn = np.random.RandomState(crc32(name.encode())).standard_normal(tuple(shape))
    last = name.split(".")[-1]
    return {"gamma": 1 + drawn / 2, "running_var": 0.3 + drawn**2}.get(last, drawn)


def digest(array: Any) -> list[float]:
    """The size, and a few products with fixed directions that depend on every element."""
    flat = np.asarray(array, np.float64).reshape(-1)
    directions = np.random.RandomState(flat.size).standard_normal((PROJECTIONS, flat.size))
    return [float(flat.size), *(float(x) for x in directions @ flat)]


# ---- layers: value, gradients of image and weights, updated states


@dataclass(frozen=True)
class LayerCase:
    """`torch(t, x, p)` computes what the layer `text` does, from an image [N,C,H,W] and the layer's
    states, keyed by the last part of their names. It writes the new values of states that it
    updates to `p`."""

    text: str
    shape: tuple[int, ...]
    torch: Callable[[Any, Any, dict[str, Any]], Any]
    training: bool = True


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _conv(**options: Any) -> Callable[[Any, Any, dict[str, Any]], Any]:
    def run(t: Any, x: Any, p: dict[str, Any]) -> Any:
        top, bottom, left, right = options.get("around", (0, 0, 0, 0))
        x = t.nn.functional.pad(x, (left, right, top, bottom))
        given = {k: v for k, v in options.items() if k != "around"}
        return t.nn.functional.conv2d(x, nchw(p["weight"]), p.get("bias"), **given)

    return run


def _function(name: str, **options: Any) -> Callable[[Any, Any, dict[str, Any]], Any]:
    return lambda t, x, p: getattr(t.nn.functional, name)(x, **options)


def _hardsigmoid(t: Any, x: Any, p: dict[str, Any]) -> Any:
    """PyTorch's own has 1 / 6 in float32, on tensors of float64 too."""
    return t.nn.functional.relu6(x + 3) / 6


def _prelu(t: Any, x: Any, p: dict[str, Any]) -> Any:
    return t.nn.functional.prelu(x, p["slope"])


def _batchnorm(eps: float, momentum: float, training: bool) -> Any:
    return lambda t, x, p: t.nn.functional.batch_norm(
        x, p["running_mean"], p["running_var"], p["gamma"], p["beta"], training, momentum, eps
    )


def _layernorm(t: Any, x: Any, p: dict[str, Any]) -> Any:
    y = t.nn.functional.layer_norm(x, x.shape[1:], eps=0.3)
    return y * p["gamma"][:, None, None] + p["beta"][:, None, None]


def _channel_layernorm(t: Any, x: Any, p: dict[str, Any]) -> Any:
    return nchw(t.nn.functional.layer_norm(nhwc(x), x.shape[1:2], p["gamma"], p["beta"], eps=0.3))


def _scale(t: Any, x: Any, p: dict[str, Any]) -> Any:
    return x * p["gamma"][:, None, None]


def _depthwise(**options: Any) -> Callable[[Any, Any, dict[str, Any]], Any]:
    return lambda t, x, p: _conv(groups=x.shape[1], **options)(t, x, p)


def _channel_shuffle(groups: int) -> Callable[[Any, Any, dict[str, Any]], Any]:
    return lambda t, x, p: t.nn.functional.channel_shuffle(x, groups)


def _groupnorm(t: Any, x: Any, p: dict[str, Any]) -> Any:
    return t.nn.functional.group_norm(x, 3, p["gamma"], p["beta"], eps=0.7)


def _instancenorm(t: Any, x: Any, p: dict[str, Any]) -> Any:
    weights = {"weight": p["gamma"], "bias": p["beta"], "eps": 2.0}
    return t.nn.functional.instance_norm(x, **weights)


def _rmsnorm(count: int, eps: float) -> Callable[[Any, Any, dict[str, Any]], Any]:
    def run(t: Any, x: Any, p: dict[str, Any]) -> Any:
        x = nhwc(x)
        return nchw(t.nn.functional.rms_norm(x, x.shape[-count:], None, eps) * p.get("gamma", 1))

    return run


def _transposed_in_groups(t: Any, x: Any, p: dict[str, Any]) -> Any:
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 3), "groups": 2}
    return t.nn.functional.conv_transpose2d(x, nchw(p["weight"]), p["bias"], **options)


def _pixel_shuffle(t: Any, x: Any, p: dict[str, Any]) -> Any:
    """As PyTorch's, with blocks of 2x3."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c // 6, 2, 3, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // 6, 2 * h, 3 * w)


def _reshaped(t: Any, x: Any, p: dict[str, Any]) -> Any:
    return nchw(nhwc(x).reshape(x.shape[0], 2, 3, 4))


def _pad_with(mode: str, *amounts: tuple[int, int]) -> Callable[[Any, Any, dict[str, Any]], Any]:
    """Height, width and channels as the axes of a volume."""

    def run(t: Any, x: Any, p: dict[str, Any]) -> Any:
        (top, bottom), (left, right), (first, last) = amounts
        sides = (left, right, top, bottom, first, last)
        return t.nn.functional.pad(x[:, None], sides, mode=mode)[:, 0]

    return run


def _bilinear(*factor: int) -> Callable[[Any, Any, dict[str, Any]], Any]:
    return _function("interpolate", scale_factor=factor, mode="bilinear", align_corners=False)


def _transposed(t: Any, x: Any, p: dict[str, Any]) -> Any:
    options = {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}
    return t.nn.functional.conv_transpose2d(x, nchw(p["weight"]), p["bias"], **options)


def _fc(t: Any, x: Any, p: dict[str, Any]) -> Any:
    return t.nn.functional.linear(nhwc(x).flatten(1), p["weight"], p["bias"])


def _weight_norm(t: Any, x: Any, p: dict[str, Any]) -> Any:
    v = nchw(p["weight_v"])
    w = p["weight_g"][:, None, None, None] * v / v.flatten(1).norm(dim=1)[:, None, None, None]
    return t.nn.functional.conv2d(x, w, p["bias"])


def _local(t: Any, x: Any, p: dict[str, Any]) -> Any:
    n, c = x.shape[:2]
    oh, ow = p["weight"].shape[:2]
    columns = t.nn.functional.unfold(x, (2, 3), padding=(1, 0), stride=(2, 1))
    columns = columns.reshape(n, c, 6, oh, ow).permute(0, 3, 4, 2, 1).reshape(n, oh, ow, -1)
    return nchw(t.einsum("nhwp,hwkp->nhwk", columns, p["weight"]) + p["bias"])


def _last_part(name: str) -> Callable[[Any, Any, dict[str, Any]], Any]:
    return lambda t, x, p: getattr(t.nn.functional, name)(x, dim=1)


LAYER_CASES = (
    LayerCase("conv(5, 3x2)", (6, 5, 4), _conv()),
    LayerCase(
        "conv(4, 3x3, stride=2x1, pad=1, bias=no)", (7, 6, 3), _conv(stride=(2, 1), padding=1)
    ),
    LayerCase(
        "conv(3, 2x3, pad=[1, 0, 2, 1], stride=2)", (6, 7, 2), _conv(around=(1, 0, 2, 1), stride=2)
    ),
    LayerCase("conv(4, 3x2, dilation=2x3, pad=2)", (8, 7, 3), _conv(dilation=(2, 3), padding=2)),
    LayerCase("conv(6, 3x3, groups=2, pad=1)", (5, 5, 4), _conv(groups=2, padding=1)),
    LayerCase("conv(4, 3x3, groups=2, pad=1)", (5, 5, 8), _conv(groups=2, padding=1)),
    LayerCase(
        "conv(9, 2x2, groups=3, dilation=2, stride=2)",
        (7, 8, 6),
        _conv(groups=3, dilation=2, stride=2),
    ),
    LayerCase("conv(8, 3x3, groups=4, pad=1)", (6, 6, 4), _conv(groups=4, padding=1)),
    LayerCase("conv(4, 1x1, stride=2)", (5, 4, 6), _conv(stride=2)),
    LayerCase("conv(3, 2x2, weight=weightnorm(he))", (4, 4, 2), _weight_norm),
    LayerCase("depthwise(3x2, pad=1)", (5, 6, 4), _depthwise(padding=1)),
    LayerCase(
        "depthwise(3x3, stride=2x1, pad=[2, 1, 0, 3], dilation=1x2, multiplier=2, bias=no)",
        (7, 8, 3),
        _depthwise(around=(2, 1, 0, 3), stride=(2, 1), dilation=(1, 2)),
    ),
    LayerCase("convtranspose(4, 3x4, stride=2x3, pad=1, output_pad=1x2)", (4, 3, 3), _transposed),
    LayerCase(
        "convtranspose(6, 3x2, stride=2x1, pad=[1, 1, 0, 0], dilation=2x3, groups=2)",
        (4, 5, 4),
        _transposed_in_groups,
    ),
    LayerCase("local(3, 2x3, stride=2x1, pad=[1, 1, 0, 0])", (5, 4, 2), _local),
    LayerCase("fc(7)", (3, 4, 2), _fc),
    LayerCase(
        "maxpool(3x2, stride=2x1, pad=[1, 1, 1, 1])",
        (6, 5, 3),
        _function("max_pool2d", kernel_size=(3, 2), stride=(2, 1), padding=1),
    ),
    LayerCase(
        "maxpool(3x3, stride=2, ceil=yes)",
        (6, 8, 3),
        _function("max_pool2d", kernel_size=3, stride=2, ceil_mode=True),
    ),
    LayerCase(
        "maxpool(2x2, stride=3, pad=1, ceil=yes)",
        (6, 5, 2),
        _function("max_pool2d", kernel_size=2, stride=3, padding=1, ceil_mode=True),
    ),
    LayerCase("avgpool(3x2)", (6, 5, 3), _function("avg_pool2d", kernel_size=(3, 2))),
    LayerCase(
        "avgpool(3x3, stride=2, pad=1)",
        (6, 5, 3),
        _function("avg_pool2d", kernel_size=3, stride=2, padding=1, count_include_pad=False),
    ),
    LayerCase(
        "avgpool(3x3, stride=2, pad=1, include_pad=yes)",
        (6, 5, 3),
        _function("avg_pool2d", kernel_size=3, stride=2, padding=1),
    ),
    LayerCase(
        "avgpool(3x3, stride=2, pad=1, ceil=yes)",
        (6, 7, 2),
        _function(
            "avg_pool2d",
            kernel_size=3,
            stride=2,
            padding=1,
            ceil_mode=True,
            count_include_pad=False,
        ),
    ),
    LayerCase(
        "avgpool(3x3, stride=2, pad=1, ceil=yes, include_pad=yes)",
        (6, 8, 2),
        _function("avg_pool2d", kernel_size=3, stride=2, padding=1, ceil_mode=True),
    ),
    *(
        LayerCase(
            f"{kind}pool(to={to})", shape, _function(f"adaptive_{kind}_pool2d", output_size=o)
        )
        for kind in ("avg", "max")
        for to, o, shape in (
            ("2x3", (2, 3), (6, 9, 2)),
            ("3", (3, 3), (7, 5, 3)),
            ("4x3", (4, 3), (7, 6, 2)),
            ("5x2", (5, 2), (3, 4, 2)),
            ("1x2", (1, 2), (3, 4, 2)),
        )
    ),
    LayerCase("globalavgpool", (4, 5, 3), _function("adaptive_avg_pool2d", output_size=1)),
    LayerCase("globalmaxpool", (4, 5, 3), _function("adaptive_max_pool2d", output_size=1)),
    LayerCase("batchnorm(eps=0.3, momentum=0.25)", (3, 4, 5), _batchnorm(0.3, 0.25, True)),
    LayerCase("batchnorm", (3, 4, 5), _batchnorm(1e-5, 0.1, True)),
    LayerCase("batchnorm(eps=2)", (3, 4, 5), _batchnorm(2.0, 0.1, False), training=False),
    LayerCase("layernorm(eps=0.3)", (3, 4, 5), _layernorm),
    LayerCase("layernorm(axis=channels, eps=0.3)", (3, 4, 5), _channel_layernorm),
    LayerCase("rmsnorm(eps=0.3)", (3, 4, 5), _rmsnorm(1, 0.3)),
    LayerCase("rmsnorm(axis=all, affine=no)", (3, 4, 5), _rmsnorm(3, 1e-5)),
    LayerCase("scale(1e-6)", (3, 4, 5), _scale),
    LayerCase("instancenorm(eps=2)", (3, 4, 5), _instancenorm),
    LayerCase("groupnorm(3, eps=0.7)", (3, 4, 6), _groupnorm),
    LayerCase("relu", (3, 4, 5), _function("relu")),
    LayerCase("leaky_relu(0.2)", (3, 4, 5), _function("leaky_relu", negative_slope=0.2)),
    LayerCase("leaky_relu", (3, 4, 5), _function("leaky_relu")),
    LayerCase("elu(1.7)", (3, 4, 5), _function("elu", alpha=1.7)),
    LayerCase("elu", (3, 4, 5), _function("elu")),
    LayerCase("gelu", (3, 4, 5), _function("gelu")),
    LayerCase("gelu(tanh)", (3, 4, 5), _function("gelu", approximate="tanh")),
    LayerCase("hardsigmoid", (3, 4, 5), _hardsigmoid),
    LayerCase("mish", (3, 4, 5), _function("mish")),
    LayerCase("selu", (3, 4, 5), _function("selu")),
    LayerCase("softplus", (3, 4, 5), _function("softplus")),
    LayerCase("relu6", (3, 4, 5), _function("relu6")),
    LayerCase("prelu", (3, 4, 5), _prelu),
    LayerCase("prelu(slope=0.1, shared=yes)", (3, 4, 5), _prelu),
    LayerCase("softsign", (3, 4, 5), _function("softsign")),
    LayerCase("hardswish", (3, 4, 5), _function("hardswish")),
    LayerCase("silu", (3, 4, 5), _function("silu")),
    LayerCase("clamp(-0.5, 1.25)", (3, 4, 5), _function("hardtanh", min_val=-0.5, max_val=1.25)),
    LayerCase("clamp", (3, 4, 5), _function("relu6")),
    LayerCase("sigmoid", (3, 4, 5), _function("sigmoid")),
    LayerCase("tanh", (3, 4, 5), _function("tanh")),
    LayerCase("softmax", (3, 4, 5), _last_part("softmax")),
    LayerCase("log_softmax", (3, 4, 5), _last_part("log_softmax")),
    # PyTorch divides alpha by the size
    LayerCase(
        "lrn(size=3, alpha=0.2, beta=0.6, k=1.5)",
        (3, 2, 7),
        _function("local_response_norm", size=3, alpha=0.6, beta=0.6, k=1.5),
    ),
    LayerCase(
        "lrn", (3, 2, 7), _function("local_response_norm", size=5, alpha=5e-4, beta=0.75, k=2)
    ),
    LayerCase("shuffle(3)", (3, 2, 6), _channel_shuffle(3)),
    LayerCase("shuffle(2)", (2, 3, 6), _channel_shuffle(2)),
    LayerCase("pixel_shuffle(2)", (3, 2, 8), _function("pixel_shuffle", upscale_factor=2)),
    LayerCase("pixel_shuffle(2x3)", (3, 2, 12), _pixel_shuffle),
    LayerCase("reshape(2x3x4)", (4, 3, 2), _reshaped),
    LayerCase("upsample(2, bilinear)", (3, 4, 2), _bilinear(2, 2)),
    LayerCase("upsample(3x4, bilinear)", (4, 1, 2), _bilinear(3, 4)),
    LayerCase("upsample(1x5, mode=bilinear)", (2, 3, 2), _bilinear(1, 5)),
    LayerCase(
        "upsample(mode=bilinear, to=6x12)",
        (3, 4, 2),
        _function("interpolate", size=(6, 12), mode="bilinear", align_corners=False),
    ),
    LayerCase("upsample(to=6x3)", (3, 3, 2), _function("interpolate", size=(6, 3))),
    LayerCase(
        "pad(height=[2, 1], width=[0, 3], channels=1, mode=reflect)",
        (3, 4, 2),
        _pad_with("reflect", (2, 1), (0, 3), (1, 1)),
    ),
    LayerCase(
        "pad(height=[5, 0], width=1, channels=[0, 2], mode=edge)",
        (3, 4, 2),
        _pad_with("replicate", (5, 0), (1, 1), (0, 2)),
    ),
    LayerCase("upsample(2x3)", (3, 2, 4), _function("interpolate", scale_factor=(2, 3))),
    LayerCase(
        "pad(height=[1, 0], width=2, value=0.5)",
        (3, 2, 4),
        _function("pad", pad=(2, 2, 1, 0), value=0.5),
    ),
)


def layer_values(case: LayerCase) -> dict[str, Array]:
    """Image, states and the cotangent of the result, by name."""
    network = elaborate_case(case)
    graph = network.graph
    result = graph[graph.outputs["main"]]
    given = {n.name: n.type.shape for n in (*graph.inputs, *graph.states)}
    return {name: make_values_by_name(name, shape) for name, shape in given.items()} | {
        "direction": make_values_by_name("direction", result.type.shape)
    }


def elaborate_case(case: LayerCase, dtype: str = "float64") -> Any:
    """The net that consists of the layer."""
    dims = "x".join(map(str, case.shape))
    text = f"net a {{ input({dims}) -> {case.text} }}"
    return elaborate(build_program(parse(text)), "a", Settings(BATCH, case.training, dtype=dtype))


def layer_numbers(case: LayerCase) -> Numbers:
    """netdsl's results: `y`, `d NAME` for image and weights, `new NAME` for updated states."""
    network, given = elaborate_case(case), layer_values(case)
    graph = network.graph
    b = Builder(graph, "float64")
    y = b.nodes[graph.outputs["main"]]
    looked_at = b.input("direction", y.type)
    wrt: list[Node] = [*graph.inputs, *network.parameters]
    gradients = grad(b, y, wrt, cotangent=looked_at)
    outputs = {"y": y, **{f"d {name}": g for name, g in gradients.items()}}
    updates = {state: b.nodes[node] for state, node in graph.updates.items()}
    found = evaluate_results(b.build(outputs, updates), given)
    return {name.replace("update", "new"): digest(x) for name, x in found.items()}


def torch_layer_numbers(t: Any, case: LayerCase) -> Numbers:
    """The same numbers from PyTorch."""
    network, given = elaborate_case(case), layer_values(case)
    learnt = [*(n.name for n in network.graph.inputs), *(n.name for n in network.parameters)]
    tensors = {k: t.tensor(v, requires_grad=k in learnt) for k, v in given.items()}
    states = {k.split(".")[-1]: v for k, v in tensors.items()}
    (image,) = (n.name for n in network.graph.inputs)
    y = nhwc(case.torch(t, nchw(tensors[image]), states))
    (y * tensors["direction"].reshape(y.shape)).sum().backward()
    found = {"y": y.detach(), **{f"d {name}": tensors[name].grad for name in learnt}}
    found |= {f"new {name}": tensors[name] for name in network.graph.updates}
    return {name: digest(x.numpy()) for name, x in found.items()}


# ---- recipes: some updates of one layer, with every part of a training step


@dataclass(frozen=True)
class RecipeCase:
    """The entries of a train section, and their PyTorch equivalents: `optimizer(t, w, b)` for
    weight and bias, the limit of the gradients' norm, and `loss(t, scores, labels)` per sample, in
    whose mean a sample counts as often as `class_weights` say of its class."""

    text: str
    optimizer: Callable[[Any, Any, Any], Any]
    clip: float | None = None
    loss: Callable[[Any, Any, Any], Any] = lambda t, scores, labels: t.nn.functional.cross_entropy(
        scores, labels, reduction="none"
    )
    ema: float | None = None
    class_weights: tuple[float, ...] = (1.0,) * 4


def _optimizer(name: str, **options: Any) -> Callable[[Any, Any, Any], Any]:
    return lambda t, w, b: getattr(t.optim, name)([w, b], **options)


def _parameter_groups(t: Any, w: Any, b: Any) -> Any:
    """No weight decay for the bias, and half the learning rate for the weight."""
    parts = [{"params": [w], "lr": 0.05}, {"params": [b], "weight_decay": 0.0}]
    return t.optim.SGD(parts, lr=0.1, weight_decay=0.2)


def _lars(t: Any, w: Any, b: Any) -> Any:
    """You et al. 2017; PyTorch has no LARS."""

    class Lars(t.optim.Optimizer):  # type: ignore[misc]
        def step(self) -> None:
            for p in (w, b):
                ratio = 1.0
                if p.ndim > 1:
                    norms = p.detach().norm(), p.grad.norm()
                    ratio = 0.02 * norms[0] / (norms[1] + 0.05 * norms[0] + 0.1)
                state = self.state[p]
                state["v"] = 0.8 * state.get("v", 0.0) + 0.3 * ratio * (p.grad + 0.05 * p.detach())
                p.data -= state["v"]

    return Lars([w, b], {})


def _label_smoothing(t: Any, scores: Any, labels: Any) -> Any:
    options = {"label_smoothing": 0.2, "reduction": "none"}
    return t.nn.functional.cross_entropy(scores, labels, **options)


def _squared_error(t: Any, scores: Any, labels: Any) -> Any:
    target = t.nn.functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
    return t.nn.functional.mse_loss(scores, target, reduction="none").mean(dim=1)


def _summed_losses(t: Any, scores: Any, labels: Any) -> Any:
    return 0.7 * _label_smoothing(t, scores, labels) + 2.5 * _squared_error(t, scores, labels)


CLASS_WEIGHTS = (0.5, 1.0, 3.0, 0.25)


def _weighted_cross_entropy(t: Any, scores: Any, labels: Any) -> Any:
    weight = t.tensor(CLASS_WEIGHTS, dtype=scores.dtype)
    options = {"weight": weight, "label_smoothing": 0.2, "reduction": "none"}
    return t.nn.functional.cross_entropy(scores, labels, **options)


def _focal(t: Any, scores: Any, labels: Any) -> Any:
    """Lin et al. 2017, (4) and (5), of which PyTorch has the binary form alone."""
    log = t.nn.functional.log_softmax(scores, dim=1).gather(1, labels[:, None])[:, 0]
    alpha = t.tensor(CLASS_WEIGHTS, dtype=scores.dtype)[labels]
    return -alpha * (1 - log.exp()) ** 1.5 * log


def _binary_cross_entropy(t: Any, scores: Any, labels: Any) -> Any:
    target = 0.8 * t.nn.functional.one_hot(labels, scores.shape[1]).to(scores.dtype) + 0.05
    weight = t.tensor(CLASS_WEIGHTS, dtype=scores.dtype)
    loss = t.nn.functional.binary_cross_entropy_with_logits
    return loss(scores, target, pos_weight=weight, reduction="none").mean(dim=1)


RECIPE_CASES = (
    RecipeCase("optimizer = sgd(lr=0.1)", _optimizer("SGD", lr=0.1)),
    RecipeCase(
        "optimizer = sgd(lr=0.1, momentum=0.8, weight_decay=0.05)",
        _optimizer("SGD", lr=0.1, momentum=0.8, weight_decay=0.05),
    ),
    RecipeCase(
        "optimizer = sgd(lr=0.1, momentum=0.7, nesterov=yes, weight_decay=0.02)",
        _optimizer("SGD", lr=0.1, momentum=0.7, nesterov=True, weight_decay=0.02),
    ),
    RecipeCase(
        """optimizer = sgd(lr=0.1, weight_decay=0.2, no_decay="*.bias")
        lr_scale = [("*.weight", 0.5)]""",
        _parameter_groups,
    ),
    RecipeCase("optimizer = adam", _optimizer("Adam")),
    RecipeCase(
        "optimizer = adam(lr=0.03, beta1=0.8, beta2=0.95, eps=0.01, weight_decay=0.1)",
        _optimizer("Adam", lr=0.03, betas=(0.8, 0.95), eps=0.01, weight_decay=0.1),
    ),
    RecipeCase("optimizer = adamw", _optimizer("AdamW")),
    RecipeCase(
        "optimizer = adamw(lr=0.03, beta1=0.8, beta2=0.95, eps=0.01, weight_decay=0.2)",
        _optimizer("AdamW", lr=0.03, betas=(0.8, 0.95), eps=0.01, weight_decay=0.2),
    ),
    RecipeCase("optimizer = rmsprop", _optimizer("RMSprop", lr=0.001, alpha=0.9)),
    RecipeCase(
        "optimizer = rmsprop(lr=0.02, decay=0.7, momentum=0.6, eps=0.01, weight_decay=0.1)",
        _optimizer("RMSprop", lr=0.02, alpha=0.7, momentum=0.6, eps=0.01, weight_decay=0.1),
    ),
    RecipeCase(
        "optimizer = lars(lr=0.3, momentum=0.8, trust=0.02, eps=0.1, weight_decay=0.05)", _lars
    ),
    RecipeCase("optimizer = sgd(lr=0.5), clip = 0.4", _optimizer("SGD", lr=0.5), clip=0.4),
    RecipeCase("optimizer = sgd(lr=0.1), clip = 100", _optimizer("SGD", lr=0.1), clip=100.0),
    RecipeCase(
        "optimizer = sgd(lr=0.1), loss = cross_entropy(smoothing=0.2)",
        _optimizer("SGD", lr=0.1),
        loss=_label_smoothing,
    ),
    RecipeCase(
        "optimizer = sgd(lr=0.1), loss = mse", _optimizer("SGD", lr=0.1), loss=_squared_error
    ),
    RecipeCase(
        "optimizer = sgd(lr=0.1), loss = [(cross_entropy(smoothing=0.2), 0.7), (mse, 2.5)]",
        _optimizer("SGD", lr=0.1),
        loss=_summed_losses,
    ),
    RecipeCase(
        """optimizer = sgd(lr=0.1)
        loss = cross_entropy(smoothing=0.2, class_weights=[0.5, 1, 3, 0.25])""",
        _optimizer("SGD", lr=0.1),
        loss=_weighted_cross_entropy,
        class_weights=CLASS_WEIGHTS,
    ),
    RecipeCase(
        "optimizer = sgd(lr=0.1), loss = focal(gamma=1.5, class_weights=[0.5, 1, 3, 0.25])",
        _optimizer("SGD", lr=0.1),
        loss=_focal,
        class_weights=CLASS_WEIGHTS,
    ),
    RecipeCase(
        "optimizer = sgd(lr=0.1), loss = bce(smoothing=0.2, class_weights=[0.5, 1, 3, 0.25])",
        _optimizer("SGD", lr=0.1),
        loss=_binary_cross_entropy,
    ),
    RecipeCase("optimizer = sgd(lr=0.3), ema = 0.15", _optimizer("SGD", lr=0.3), ema=0.15),
    RecipeCase("optimizer = sgd(lr=0.3), ema = 0.999", _optimizer("SGD", lr=0.3), ema=0.999),
)
CLASSES, INPUTS, UPDATES = 4, 6, 12
WEIGHTS = np.array([1.0, 1.0, 0.0, 1.0, 0.5])
"""The weights of the samples in a batch."""


def _program(case: RecipeCase) -> Program:
    return build_program(
        parse(
            f"""net a {{ input({INPUTS}) -> fc({CLASSES}) }}
            data {{ source = digits, batch = {len(WEIGHTS)} }}
            train {{ {case.text} }}"""
        )
    )


def _batches() -> list[tuple[Array, Array]]:
    rng = np.random.RandomState(5)
    return [
        (rng.standard_normal((len(WEIGHTS), INPUTS)), rng.randint(0, CLASSES, len(WEIGHTS)))
        for _ in range(UPDATES)
    ]


def recipe_numbers(case: RecipeCase) -> Numbers:
    """netdsl's results: the losses, and the weights (and their averages) after each update."""
    of = _program(case)
    recipe = resolve_recipe(of, None)
    settings = Settings(len(WEIGHTS), True, dtype="float64")
    network = elaborate(of, "a", settings)
    step = training_graph(network, recipe)
    (image,) = (n.name for n in network.graph.inputs)
    learnt = {n.name: make_values_by_name(n.name, n.type.shape) for n in network.parameters}
    state = {n.name: np.zeros(n.type.shape) for n in step.states} | learnt
    shown = [n for n in sorted(state) if n in learnt or n.endswith(".ema")]
    names, counts = tuple(map(str, range(CLASSES))), np.ones(CLASSES)
    class_weights = recipe.loss.find_class_weights(names, counts, CLASSES)
    losses, found = [], {name: list[Array]() for name in shown}
    for i, (x, labels) in enumerate(_batches()):
        given = {image: x, "labels": labels, "weights": WEIGHTS, "step": np.int32(i)}
        given |= class_weights
        given["lr"] = np.float64(recipe.optimizer.arguments["lr"])
        given["ema_rate"] = np.float64(Progress(update=i).ema_rate(recipe.ema or 0.0))
        out = evaluate_results(step, {**state, **given})
        state = {name: out.get(f"update {name}", state[name]) for name in state}
        losses.append(out["loss"])
        for name, history in found.items():
            history.append(state[name])
    return {"loss": digest(losses), **{name: digest(x) for name, x in found.items()}}


def torch_recipe_numbers(t: Any, case: RecipeCase) -> Numbers:
    """The same numbers from PyTorch. The average starts as the weights after the first update; its
    decay is that of TensorFlow's ExponentialMovingAverage, counted from the second."""
    network = elaborate(_program(case), "a", Settings(len(WEIGHTS), True, dtype="float64"))
    learnt = {
        n.name: t.tensor(make_values_by_name(n.name, n.type.shape), requires_grad=True)
        for n in network.parameters
    }
    weight, bias = (next(w for n, w in learnt.items() if n.endswith(e)) for e in ("weight", "bias"))
    optimizer, sample = case.optimizer(t, weight, bias), t.tensor(WEIGHTS)
    class_weights = t.tensor(case.class_weights, dtype=sample.dtype)
    losses, found = [], {name: list[Array]() for name in learnt}
    averages = {name: list[Array]() for name in learnt}
    for i, (x, labels) in enumerate(_batches()):
        optimizer.zero_grad()
        scores = t.nn.functional.linear(t.tensor(x), weight, bias)
        counted = (sample * class_weights[labels]).sum()
        loss = (case.loss(t, scores, t.tensor(labels)) * sample).sum() / counted
        loss.backward()
        if case.clip is not None:
            t.nn.utils.clip_grad_norm_([weight, bias], case.clip)
        optimizer.step()
        losses.append(loss.item())
        for name, w in learnt.items():
            new = w.detach().numpy().copy()
            found[name].append(new)
            if case.ema is not None:
                n = i - 1
                decay = min(case.ema, (1 + n) / (10 + n)) if i else 0.0
                before = averages[name][-1] if i else new
                averages[name].append(decay * before + (1 - decay) * new)
    shown = found | ({f"{n}.ema": x for n, x in averages.items()} if case.ema else {})
    return {"loss": digest(losses), **{name: digest(x) for name, x in shown.items()}}


# ---- schedules: the factor of every update in a run


@dataclass(frozen=True)
class ScheduleCase:
    """A schedule, and `torch(t, optimizer)`, which makes PyTorch's equivalent with one step per
    epoch."""

    name: str
    given: Mapping[str, Any]
    torch: Callable[[Any, Any], Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.given.items())})"


def _scheduler(name: str, **options: Any) -> Callable[[Any, Any], Any]:
    return lambda t, optimizer: getattr(t.optim.lr_scheduler, name)(optimizer, **options)


def _with_warmup(after: Callable[[Any, Any], Any], epochs: int) -> Callable[[Any, Any], Any]:
    """A rate that rises linearly and reaches its full value at the last warm-up step."""

    def schedule(t: Any, optimizer: Any) -> Any:
        of = t.optim.lr_scheduler
        rise = of.LinearLR(optimizer, start_factor=1 / epochs, total_iters=epochs - 1)
        return of.SequentialLR(optimizer, [rise, after(t, optimizer)], milestones=[epochs])

    return schedule


def _inverse(gamma: float, power: float) -> Callable[[Any, Any], Any]:
    return _scheduler("LambdaLR", lr_lambda=lambda step: (1 + gamma * step) ** -power)


def _plateau(**options: Any) -> Callable[[Any, Any], Any]:
    return _scheduler("ReduceLROnPlateau", eps=0, **options)


VALIDATION_LOSSES = [
    *(1.0, 0.9, 0.9, 0.89995, 0.8999, 0.89985, 0.95, 0.8, 0.8, 0.81, 0.82, 0.79995, 0.9, 0.9, 0.5),
    *(0.46, 0.46, 0.44, 0.43, 0.42, 0.41, 0.40, 0.39, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.19999, 0.19),
    *(0.1,) * 12,
    *(0.09, 0.05, 0.045, 0.04, 0.04, 0.0, 0.0, 0.0, 0.0),
]
"""Losses around the thresholds, with longer and shorter plateaus."""
SCHEDULE_CASES = (
    ScheduleCase("constant", {"warmup": 7}, _with_warmup(_scheduler("ConstantLR", factor=1.0), 7)),
    ScheduleCase("step", {"at": (10, 30)}, _scheduler("MultiStepLR", milestones=[10, 30])),
    ScheduleCase(
        "step",
        {"at": (5, 9, 40), "gamma": 0.3},
        _scheduler("MultiStepLR", milestones=[5, 9, 40], gamma=0.3),
    ),
    ScheduleCase("cosine", {}, _scheduler("CosineAnnealingLR", T_max=STEPS)),
    ScheduleCase("cosine", {"end": 0.1}, _scheduler("CosineAnnealingLR", T_max=STEPS, eta_min=0.1)),
    ScheduleCase(
        "cosine",
        {"end": 0.1, "warmup": 10},
        _with_warmup(_scheduler("CosineAnnealingLR", T_max=STEPS - 10, eta_min=0.1), 10),
    ),
    ScheduleCase(
        "onecycle",
        {},
        _scheduler("OneCycleLR", max_lr=1.0, total_steps=STEPS, cycle_momentum=False),
    ),
    ScheduleCase(
        "onecycle",
        {"rise": 0.42, "start": 0.2, "end": 0.01},
        _scheduler(
            "OneCycleLR",
            max_lr=1.0,
            total_steps=STEPS,
            cycle_momentum=False,
            pct_start=0.42,
            div_factor=5,
            final_div_factor=20,
        ),
    ),
    ScheduleCase("inverse", {}, _inverse(1e-4, 0.75)),
    ScheduleCase("inverse", {"gamma": 0.05, "power": 0.6}, _inverse(0.05, 0.6)),
    ScheduleCase("poly", {}, _scheduler("PolynomialLR", total_iters=STEPS)),
    ScheduleCase("poly", {"power": 0.9}, _scheduler("PolynomialLR", total_iters=STEPS, power=0.9)),
    ScheduleCase(
        "poly",
        {"power": 2, "warmup": 5},
        _with_warmup(_scheduler("PolynomialLR", total_iters=STEPS - 5, power=2), 5),
    ),
    ScheduleCase("plateau", {"patience": 2}, _plateau(patience=2)),
    ScheduleCase("plateau", {"factor": 0.5, "patience": 0}, _plateau(factor=0.5, patience=0)),
    ScheduleCase(
        "plateau",
        {"factor": 0.5, "patience": 3, "threshold": 0.05},
        _plateau(factor=0.5, patience=3, threshold=0.05),
    ),
    ScheduleCase(
        "plateau",
        {"factor": 0.5, "patience": 1, "threshold": 0, "end": 0.2},
        _plateau(factor=0.5, patience=1, threshold=0, min_lr=0.2),
    ),
)
"""netdsl's plateau has no cooldown."""


def schedule_numbers(case: ScheduleCase, steps: int = 1) -> list[float]:
    """The factor of each update, with `steps` updates per epoch: arguments in epochs are scaled
    down accordingly."""
    record = SCHEDULES[case.name]
    given = {**case.given}
    if "at" in given:
        given["at"] = tuple(epoch / steps for epoch in given["at"])
    if "warmup" in given:
        given["warmup"] /= steps
    arguments = [Argument(k, v) for k, v in given.items()]
    chosen = BoundCall(case.name, record, record.signature.bind(arguments, None))
    moments = (
        Moment(i / steps, STEPS // steps, steps, VALIDATION_LOSSES[:i]) for i in range(STEPS)
    )
    return [float(rate_factor(chosen, moment)) for moment in moments]


def torch_schedule_numbers(t: Any, case: ScheduleCase) -> list[float]:
    """The same numbers from PyTorch."""
    optimizer = t.optim.SGD([t.zeros(1, requires_grad=True)], lr=1.0)
    schedule, found = case.torch(t, optimizer), []
    for loss in VALIDATION_LOSSES[:STEPS]:
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step(*([loss] if case.name == "plateau" else []))
    return found

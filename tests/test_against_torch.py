"""References against PyTorch, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdsl.ops import OPS
from netdsl.ops.draw import RandomDraw, arrays

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional if torch else None


def nchw(x: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1).numpy()


def padded(x: Any, pad: Any, value: float = 0.0) -> Any:
    (top, bottom), (left, right) = pad
    return F.pad(nchw(x), (left, right, top, bottom), value=value)


@pytest.mark.parametrize("seed", range(30))
def test_conv2d(seed: int) -> None:
    rng = np.random.default_rng(seed)
    example = OPS["conv2d"].examples(RandomDraw(rng))
    x, w = arrays(example, rng)
    a = dict(example.attrs)
    expected = F.conv2d(
        padded(x, a["pad"]), nchw(w), None, a["stride"], 0, a["dilation"], a["groups"]
    )
    np.testing.assert_allclose(OPS["conv2d"].reference(np, x, w, **a), nhwc(expected), atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_max_pool(seed: int) -> None:
    rng = np.random.default_rng(seed)
    example = OPS["max_pool"].examples(RandomDraw(rng))
    (x,) = arrays(example, rng)
    a = dict(example.attrs)
    expected = F.max_pool2d(padded(x, a["pad"], -np.inf), a["kernel"], a["stride"])
    np.testing.assert_array_equal(OPS["max_pool"].reference(np, x, **a), nhwc(expected))


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("relu", lambda x: F.relu(x)),
        ("leaky_relu", lambda x: F.leaky_relu(x, 0.01)),
        ("elu", lambda x: F.elu(x)),
        ("gelu", lambda x: F.gelu(x, approximate="tanh")),
        ("sigmoid", lambda x: torch.sigmoid(x)),
        ("tanh", lambda x: torch.tanh(x)),
        ("softmax", lambda x: F.softmax(x, -1)),
        ("log_softmax", lambda x: F.log_softmax(x, -1)),
    ],
)
def test_activations(op: str, function: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)) * 3
    attrs = {p.name: p.default for p in OPS[op].attrs}
    expected = function(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(OPS[op].reference(np, x, **attrs), expected, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    expected = F.cross_entropy(
        torch.from_numpy(x), torch.from_numpy(labels), label_smoothing=smoothing, reduction="none"
    )
    found = OPS["cross_entropy"].reference(np, x, labels, smoothing=smoothing)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)


def test_lrn_is_torch_s_with_alpha_times_size() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 8))
    expected = F.local_response_norm(nchw(x), 5, alpha=1e-2 * 5, beta=0.75, k=2.0)
    found = OPS["lrn"].reference(np, x, size=5, alpha=1e-2, beta=0.75, k=2.0)
    np.testing.assert_allclose(found, nhwc(expected), atol=1e-12)

"""Graphs for tests: random ones with gradients and updates, and the steps of tests/blocks.net."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np

from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder, is_float
from netdsl.ir.verifier import verify_graph
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops import OPS
from netdsl.ops.example_values import RandomDraw, draw_operand
from netdsl.ops.op import Draw, Example, Operand
from netdsl.passes.algebraic_batch_norm import rewrite_batch_norms
from netdsl.passes.conv_lowering import lower_convolutions
from netdsl.passes.simplify import simplify
from netdsl.runtime.state import draw_initial_value as initial
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.step.graphs import training_graph
from netdsl.types import Array, Graph, Node, TensorType
from tests.conftest import ROOT

BLOCKS = str(ROOT / "tests" / "blocks.net")
BLOCK_NETS = list(load_program(BLOCKS).nets)


@cache
def block_step(net: str) -> Graph:
    """A training step of one of the small nets in float64, before any pass."""
    return training_step(BLOCKS, net, batch=2, dtype="float64")


def training_step(path: str, net: str, batch: int, dtype: str = "float32") -> Graph:
    """A training step with momentum and weight decay, before any pass."""
    network = elaborate(load_program(path), net, Settings(batch=batch, training=True, dtype=dtype))
    return training_graph(network, plain_recipe())


def assert_same_graph(one: Graph, other: Graph) -> None:
    """Asserts equal nodes in the same order, with the same output names."""
    assert one.name == other.name
    assert list(one.nodes.values()) == list(other.nodes.values())
    for found, expected in ((one.outputs, other.outputs), (one.updates, other.updates)):
        assert list(found.items()) == list(expected.items())


def rewrite_all_norms(graph: Graph) -> Graph:
    """Rewrites the batch norms of all products, whether it pays off or not."""
    return rewrite_batch_norms(graph, -math.inf)


def lowered_step(
    net: str, *passes: Callable[[Graph], Graph], batch: int = 2, dtype: str = "float64"
) -> Graph:
    """The step of one of the small nets after lowering and these passes."""
    network = elaborate(
        load_program(BLOCKS), net, Settings(batch=batch, training=True, dtype=dtype)
    )
    graph = lower_convolutions(network.graph)
    for run in passes:
        graph = run(graph)
    return simplify(training_graph(replace(network, graph=graph), plain_recipe()))


RECIPE = """
net any { input(1x1x1); fc(2) }
data { source = digits }
train {
  optimizer = sgd(lr=0.1, momentum=0.9, weight_decay=1e-4)
  loss = cross_entropy(smoothing=0.1)
}
"""


@cache
def plain_recipe() -> Recipe:
    """Cross-entropy, momentum and weight decay."""
    return resolve_recipe(build_program(parse(RECIPE)))


def make_values(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Random inputs, and states as in the middle of training: none has a special value."""
    rng = np.random.default_rng(seed)
    given: dict[str, Array] = {}
    for node in graph.inputs:
        kind = node.type
        if node.name == "weights":
            given[node.name] = np.linspace(0.5, 1.5, kind.size).astype(kind.dtype)
        elif is_float(kind):
            given[node.name] = 0.3 * rng.standard_normal(kind.shape).astype(kind.dtype)
        else:
            given[node.name] = rng.integers(0, 3, kind.shape).astype(kind.dtype)
    for node in graph.states:
        moved = initial(node, seed) + 0.1 * rng.random(node.type.shape)
        given[node.name] = moved.astype(node.type.dtype)
    return given


def with_dtype(example: Example, dtype: str) -> Example:
    """The same example in another float type, such as one that the backends have kernels for."""
    operands = (
        Operand(TensorType(o.type.shape, dtype), o.distribution) if o.type.dtype == "float64" else o
        for o in example.operands
    )
    attrs = dict(example.attrs)
    if attrs.get("dtype") == "float64":
        attrs["dtype"] = dtype
    return Example(tuple(operands), attrs)


def graph_of(op: str, example: Example) -> Graph:
    """One use of an operator, on the inputs `x0`, `x1`, ...; its output is `y`."""
    b = Builder(dtype="float32")
    inputs = [b.input(f"x{i}", o.type) for i, o in enumerate(example.operands)]
    return b.build({"y": b.emit(op, *inputs, **example.attrs)})


def all_operators_graph(rng: np.random.Generator, times: int) -> tuple[Graph, dict[str, Array]]:
    """Random examples of all operators in 32 bits, as outputs of one graph, with their operands."""
    b, given = Builder(), dict[str, Array]()
    outputs, seed = {}, int(rng.integers(1 << 31))
    for op in (n for n, record in OPS.items() if record.kind not in ("leaf", "view")):
        # a new operator leaves the examples of the others as they are
        rng = np.random.default_rng((seed, crc32(op.encode())))
        for i in range(times):
            example = with_dtype(OPS[op].draw_example(RandomDraw(rng)), "float32")
            nodes = [b.input(f"{op}{i}.{k}", o.type) for k, o in enumerate(example.operands)]
            drawn = zip(nodes, example.operands, strict=True)
            given |= {n.name: draw_operand(o, rng) for n, o in drawn}
            outputs[f"{op}{i}"] = b.emit(op, *nodes, **example.attrs)
    return b.build(outputs), given


def add_non_finite(given: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """The same operands with one in seven floats replaced by NaN or an infinity."""

    def some(x: Array) -> Array:
        odd = rng.choice(np.array([np.nan, np.inf, -np.inf], x.dtype), x.shape)
        return np.where(rng.random(x.shape) < 1 / 7, odd, x)

    return {k: some(x) if x.dtype.kind == "f" else x for k, x in given.items()}


NAN_SPREADING_OPS = {op for op, record in OPS.items() if record.kind == "anchor"} | {
    "max_pool_grad"
}
"""Operators whose reference produces NaNs that a backend need not produce: it multiplies by the
zeros of the padding, or by zeros where a window has its maximum elsewhere."""


def assert_non_finite_preserved(op: str, found: Array, expected: Array, what: str) -> None:
    """Asserts that whatever is non-finite in the reference is so in the backend, and that values
    finite in both are equal. A backend may spread a NaN further, for example if it computes moments
    relative to a first value, or by tiles."""
    if op in NAN_SPREADING_OPS:
        return
    found, expected = (np.asarray(x, "float64") for x in (found, expected))
    assert not np.isfinite(found[~np.isfinite(expected)]).any(), what
    good = np.isfinite(found)
    size = max(1e-2, float(np.abs(expected[good]).max(initial=0)))
    bound = {"rtol": 1e-3, "atol": 1e-3 * size}
    np.testing.assert_allclose(found[good], expected[good], **bound, err_msg=what)


def draw_training_step(draw: Draw, dtype: str = "float64") -> Graph:
    """A random net with its gradients and updates."""
    return append_training_step(draw_forward(draw, dtype), dtype)


def draw_forward(draw: Draw, dtype: str = "float64") -> Graph:
    """A random net with residuals, concatenations, gates and norms."""
    net = _NetGenerator(draw, dtype)
    for _ in range(draw.integer(1, 7)):
        getattr(net, draw.choice(_NET_STEPS))()
    return net.forward()


_NET_STEPS = (
    "conv",
    "conv",
    "pointwise",
    "bias",
    "norm",
    "normed",
    "activation",
    "residual",
    "concat",
    "pool",
    "gate",
    "dropout",
    "cut",
    "grown",
    "split",
    "lrn",
)


class _NetGenerator:
    """A chain of random steps over images, with all intermediate values available for reuse."""

    def __init__(self, draw: Draw, dtype: str) -> None:
        self.draw = draw
        self.dtype = dtype
        self.b = Builder(dtype=dtype)
        shape = (2, draw.integer(1, 6), draw.integer(1, 6), draw.integer(1, 4))
        self.x = self.b.input("x", TensorType(shape, self.dtype))
        self.seen = [self.x]
        self.params: list[Node] = []
        self.updates: dict[str, Node] = {}

    def param(self, *shape: int) -> Node:
        name = f"w{len(self.params)}"
        kind = TensorType(shape, self.dtype)
        self.params.append(self.b.state(name, kind, ("normal", 0.5)))
        return self.params[-1]

    def flow(self, y: Node) -> None:
        self.x = y
        self.seen.append(y)

    def conv(self) -> None:
        _, h, w, c = self.x.type.shape
        d = self.draw
        groups = d.choice([g for g in (1, 1, 2, 3, c) if c % g == 0])
        kernel = (d.integer(1, min(3, h + 2)), d.integer(1, min(3, w + 2)))
        edges = ((d.integer(0, 2), 2), (1, d.integer(1, 2)))
        fits = kernel[0] <= h and kernel[1] <= w
        pad = d.choice((edges, ((0, 0), (0, 0)))) if fits else edges
        weight = self.param(groups * d.integer(1, 3), *kernel, c // groups)
        stride = (d.integer(1, 2), d.integer(1, 3))
        room = (h + sum(pad[0]), w + sum(pad[1]))
        most = ((n - 1) // (k - 1) if k > 1 else 3 for n, k in zip(room, kernel, strict=True))
        dilation = tuple(d.integer(1, min(3, m)) for m in most)
        how = {"stride": stride, "pad": pad, "dilation": dilation, "groups": groups}
        self.flow(self.b.conv2d(self.x, weight, **how))

    def pointwise(self) -> None:
        weight = self.param(self.draw.integer(1, 4), 1, 1, self.x.type.shape[3])
        stride = self.draw.choice(((1, 1), (1, 1), (2, 2), (1, 2), (2, 1)))
        self.flow(self.b.conv2d(self.x, weight, stride=stride))

    def bias(self) -> None:
        self.flow(self.b.add(self.x, self.param(self.x.type.shape[3])))

    def normed(self) -> None:
        """A product and its batch norm, which algebraic rewriting may merge."""
        self.pointwise()
        self.norm((0, 1, 2))
        if self.draw.choice((True, False)):
            self.activation()

    def norm(self, axes: tuple[int, ...] = ()) -> None:
        axes = axes or self.draw.choice(((0, 1, 2), (1, 2), (1, 2, 3)))
        m = self.b.moments(self.x, axes=axes)
        y = self.b.normalize(self.x, m, axes=axes, eps=self.draw.choice((0.1, 0.3, 2.0)))
        c = self.x.type.shape[3]
        if axes == (0, 1, 2):
            kind = TensorType((c,), self.dtype)
            running = self.b.state(f"mean{len(self.seen)}", kind, ("constant", 0.0), False)
            row = self.b.slice(m, start=(0, 0), stop=(1, c), step=(1, 1))
            mean = self.b.mul(self.b.reshape(row, shape=(c,)), self.b.const(1.0))
            self.updates[running.name] = self.b.ema(running, mean, decay=0.9)
        self.flow(self.b.add(self.b.mul(y, self.param(c)), self.param(c)))

    def activation(self) -> None:
        op = self.draw.choice(("relu", "tanh", "leaky_relu", "gelu", "sigmoid", "elu", "clamp"))
        self.flow(self.b.emit(op, self.x))

    def residual(self) -> None:
        alike = [s for s in self.seen if s.type == self.x.type]
        self.flow(self.b.add(self.x, self.draw.choice(alike)))

    def concat(self) -> None:
        near = [s for s in self.seen if s.type.shape[:3] == self.x.type.shape[:3]]
        self.flow(self.b.concat(self.x, self.draw.choice(near), axis=3))

    def pool(self) -> None:
        _, h, w, _ = self.x.type.shape
        window = {"kernel": (min(h, 2), min(w, 3)), "stride": (1, 2), "pad": ((0, 0), (0, 0))}
        if self.draw.choice((True, False)):
            self.flow(self.b.max_pool(self.x, **window))
        else:
            self.flow(self.b.avg_pool(self.x, **window))

    def gate(self) -> None:
        mean = self.b.reduce_mean(self.x, axes=(1, 2), keepdims=True)
        self.flow(self.b.mul(self.x, self.b.sigmoid(mean)))

    def dropout(self) -> None:
        scalars = (self.b.input(n, TensorType((), "int32")) for n in ("seed", "step", "rank"))
        self.flow(self.b.dropout(self.x, *scalars, key=f"d{len(self.seen)}", rate=0.3))

    def cut(self) -> None:
        n, h, w, c = self.x.type.shape
        start = (0, self.draw.integer(0, h - 1), 0, self.draw.integer(0, c - 1))
        self.flow(self.b.slice(self.x, start=start, stop=(n, h, w, c), step=(1, 1, 2, 1)))

    def grown(self) -> None:
        amounts = {"low": (0, 1, 0, 0), "high": (0, 0, 1, 1), "interior": (0, 1, 0, 0)}
        self.flow(self.b.pad(self.x, **amounts, value=0.0))

    def split(self) -> None:
        n, h, w, c = self.x.type.shape
        turned = self.b.transpose(self.x, perm=(0, 2, 1, 3))
        self.flow(self.b.reshape(turned, shape=(n, h, w, c)))

    def lrn(self) -> None:
        self.flow(self.b.lrn(self.x, size=3, alpha=0.1))

    def forward(self) -> Graph:
        """The net alone; the running averages that it updates are outputs."""
        moved = {f"moved {name}": node for name, node in self.updates.items()}
        return verify_graph(self.b.build({"x": self.x, **moved}, name="drawn"))


def append_training_step(forward: Graph, dtype: str = "float64") -> Graph:
    """Adds loss, gradients and momentum updates to a random net."""
    b = Builder(forward, dtype)
    x, params = b.nodes[forward.outputs["x"]], [n for n in forward.states if n.attrs["trainable"]]
    features = math.prod(x.type.shape[1:])
    w = b.state("last", TensorType((3, features), dtype), ("normal", 0.5))
    scores = b.matmul(b.reshape(x, shape=(2, features)), w)
    labels = b.input("labels", TensorType((2,), "int32"))
    loss = b.reduce_sum(b.cross_entropy(scores, labels), axes=(0,))
    params = [*params, w]
    gradients = grad(b, loss, params)
    lr = b.input("lr", TensorType((), dtype))
    updates = {
        label.removeprefix("moved "): b.nodes[name]
        for label, name in forward.outputs.items()
        if label != "x"
    }
    for w in params:
        slot = b.state(f"{w.name}.v", w.type, ("constant", 0.0), False)
        v = b.momentum(slot, gradients[w.name], momentum=0.9)
        updates |= {slot.name: v, w.name: b.descend(w, v, lr)}
    shown = {f"d {name}": g for name, g in gradients.items()}
    return verify_graph(b.build({"loss": loss, "x": x, **shown}, updates, "drawn"))


def draw_inference(draw: Draw) -> Graph:
    """A random inference graph: products with states, followed by operations that fold into them
    and others that must not: factors and offsets per channel, for all elements, per column; known
    moments over various axes."""
    return _InferenceGenerator(draw).graph()


class _InferenceGenerator:
    """A chain of products and of values that are the same for every input."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.b = Builder(dtype="float64")
        side = draw.integer(2, 4)
        """Often also the number of channels, so that a vector along a wrong axis still fits."""
        shape = (2, draw.choice((1, side, 3)), side, draw.choice((side, side, 2, 4)))
        self.x = self.b.input("x", TensorType(shape, "float64"))
        self.seen = [self.x]
        self.count = 0

    def graph(self) -> Graph:
        draw = self.draw
        steps = (self.scaled, self.scaled, self.shifted, self.shifted, self.normal, self.other)
        for _ in range(draw.integer(1, 3)):
            self.flow(draw.choice((self.conv, self.conv, self.matmul, self.transposed))())
            for _ in range(draw.integer(1, 5)):
                self.flow(draw.choice(steps)())
        if draw.integer(1, 6) == 1:
            self.flow(self.b.mul(self.x, self.state(1, 1, 1, 1, self.x.type.shape[-1])))
        outputs = {"y": self.x}
        if draw.integer(1, 4) == 1:
            outputs["also"] = draw.choice(self.seen)
        return verify_graph(self.b.build(outputs, name="inference"))

    def flow(self, y: Node) -> None:
        self.x = y
        self.seen.append(y)

    def state(self, *shape: int) -> Node:
        self.count += 1
        kind = TensorType(shape, "float64")
        return self.b.state(
            f"s{self.count}", kind, ("normal", 0.7), self.draw.choice((True, False))
        )

    def still(self) -> Node:
        """A value that depends on no input and broadcasts to the current one, along its channels or
        otherwise."""
        _, h, w, c = self.x.type.shape
        shapes: list[tuple[int, ...]] = [(c,), (c,), (c,), (), (1,), (1, 1, c), (1, 1, 1, c)]
        shapes += [(w, 1), (h, 1, 1), (1, w, 1), (w, c), (h, w, c), (1, 1, 1), (1, 1, 1, 1)]
        shapes += [(3,), (1, 1, 3)] if c == 1 else []  # the current value is broadcast, too
        value = self.state(*self.draw.choice(shapes))
        if self.draw.integer(1, 4) == 1:
            value = self.b.tanh(value)
        return value if self.draw.integer(1, 6) > 1 else self.b.const(self.draw.choice((0.5, -2.0)))

    def pair(self) -> tuple[Node, Node]:
        both = self.x, self.still()
        return both if self.draw.choice((True, False)) else both[::-1]

    def scaled(self) -> Node:
        return self.b.mul(*self.pair())

    def shifted(self) -> Node:
        return self.b.add(*self.pair())

    def normal(self) -> Node:
        """Normalises by moments that are states: mostly those of a batch norm."""
        axes = self.draw.choice(((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 3), (0, 2), (0, 1, 2, 3)))
        kept = tuple(s for a, s in enumerate(self.x.type.shape) if a not in axes)
        mean, spread = self.state(*kept), self.state(*kept)
        rows = (self.b.reshape(v, shape=(1, *kept)) for v in (mean, self.b.mul(spread, spread)))
        m = self.b.concat(*rows, axis=0)
        return self.b.normalize(self.x, m, axes=axes, eps=self.draw.choice((1e-3, 0.3, 2.0)))

    def other(self) -> Node:
        """An operation that nothing is folded through, or a sum or product with an earlier
        value."""
        alike = [s for s in self.seen if s.type == self.x.type]
        kind = self.draw.choice(("relu", "sub", "residual", "residual", "gate"))
        if kind == "relu":
            return self.b.relu(self.x)
        if kind == "sub":
            return self.b.sub(*self.pair())
        return (self.b.add if kind == "residual" else self.b.mul)(self.x, self.draw.choice(alike))

    def conv(self) -> Node:
        _, h, w, c = self.x.type.shape
        d = self.draw
        groups = d.choice([g for g in (1, 2, 3, c) if c % g == 0])
        kernel = (d.integer(1, min(2, h)), d.integer(1, min(3, w)))
        weight = self.state(groups * d.integer(1, 3), *kernel, c // groups)
        edges = ((1, 1), (d.integer(0, 2), 1)), (d.integer(1, 2), 1)
        pad, dilation = d.choice((edges, (((0, 0), (0, 0)), (1, 1))))
        return self.b.conv2d(self.x, weight, pad=pad, dilation=dilation, groups=groups)

    def matmul(self) -> Node:
        c = self.x.type.shape[-1]
        return self.b.matmul(self.x, self.state(self.draw.choice((c, 1, 3)), c))

    def transposed(self) -> Node:
        _, h, w, c = self.x.type.shape
        groups = self.draw.choice([g for g in (1, 1, 2) if c % g == 0])
        weight = self.state(c, 2, 2, self.draw.integer(1, 3))
        how = {"stride": (1, 2), "size": (h + 1, 2 * w), "groups": groups}
        return self.b.conv2d_dgrad(self.x, weight, **how)


SMALL_CONVOLUTIONS = [
    ((3, 9, 8, 1), 6, (5, 5), (1, 1), 2, (1, 1)),
    ((2, 14, 14, 6), 16, (5, 5), (1, 1), 0, (1, 1)),
    ((2, 11, 10, 3), 5, (3, 4), (2, 3), 1, (1, 1)),
    ((1, 12, 9, 2), 17, (3, 3), (1, 1), 2, (2, 2)),
    ((2, 40, 40, 12), 12, (3, 3), (1, 1), 1, (1, 1)),
]
"""Image shape, output channels, kernel, stride, padding, dilation; the last needs many bands."""


def convolution_with_gradients(
    image: Any, count: int, kernel: Any, stride: Any, pad: int, dilation: Any, dtype: str
) -> Graph:
    b = Builder()

    def given(name: str, shape: Any) -> Node:
        return b.cast(b.input(name, TensorType(shape, "float32")), dtype=dtype)

    x, w = given("x", image), given("w", (count, *kernel, image[3]))
    y = b.conv2d(x, w, stride=stride, pad=((pad, pad), (pad, pad)), dilation=dilation)
    offset, u = given("offset", (count,)), given("u", y.type.shape)
    gradients = grad(b, y, [x, w], cotangent=u)
    positive = b.greater(given("mask", image), b.const(0.0, dtype))
    outputs = {
        "y": b.relu(b.add(y, offset)),
        "dx": b.select(positive, gradients[x.name], b.const(0.0, dtype)),
        "dw": gradients[w.name],
    }
    wide = {name: b.cast(value, dtype="float32") for name, value in outputs.items()}
    return simplify(b.build(wide))

"""Small ONNX models for tests: built from lines of text, run by onnxruntime and through the
import."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from netdsl.types import Array
from tests.onnx_conformance import run_import

IR_VERSION = 10
"""Of onnx 1.16, the oldest that the import is made for."""
_LINE = re.compile(r"([\w, ]+?) = (\w+)\(([^)]*)\)(?: (.*))?")


@dataclass(frozen=True)
class ModelText:
    """A model as lines `y = Conv(x, w) strides=[2, 2]`, which reads `x` and gives the result of the
    last line. Constants are arrays, or shapes to draw: a layer is named after the first."""

    name: str
    lines: str
    input_shape: tuple[int, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    element_type: int = TensorProto.FLOAT

    def arrays(self) -> dict[str, Array]:
        """The constants: a tuple is the shape of normal numbers, all else the array itself."""
        rng = np.random.default_rng(0)
        return {
            name: rng.standard_normal(value).astype(np.float32)
            if isinstance(value, tuple)
            else np.asarray(value)
            for name, value in self.constants.items()
        }

    def input(self) -> Array:
        rng = np.random.default_rng(1)
        if self.element_type == TensorProto.UINT8:
            return rng.integers(0, 256, self.input_shape).astype(np.uint8)
        return rng.standard_normal(self.input_shape).astype(np.float32)

    def model(self) -> Any:
        nodes = [_make_node(line) for line in self.lines.strip().splitlines()]
        graph = helper.make_graph(
            nodes,
            "main",
            [helper.make_tensor_value_info("x", self.element_type, self.input_shape)],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in self.arrays().items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def write(self, folder: Path) -> Path:
        path = folder / f"{re.sub(chr(92) + 'W+', '_', self.name)}.onnx"
        path.write_bytes(self.model().SerializeToString())
        return path


def _make_node(line: str) -> Any:
    found = _LINE.fullmatch(line.strip())
    assert found, line
    outputs, operator, inputs, attributes = found.groups()
    pairs = re.findall(r"(\w+)=(\[[^\]]*\]|\S+)", attributes or "")
    return helper.make_node(
        operator,
        _split(inputs),
        _split(outputs),
        **{key: _value(text) for key, text in pairs},
    )


def _split(names: str) -> list[str]:
    return [n.strip() for n in names.split(",")] if names.strip() else []


def _value(text: str) -> Any:
    if text.startswith("["):
        return [_value(t.strip()) for t in text[1:-1].split(",") if t.strip()]
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", text):
        return float(text)
    return text


def run_onnxruntime(path: Path, inputs: Mapping[str, Array]) -> Array:
    """The first output of a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, dict(inputs))[0]
    return found


def difference(path: Path, inputs: Mapping[str, Array]) -> float:
    """The largest difference between the import and onnxruntime, as a share of the largest
    value."""
    expected = run_onnxruntime(path, inputs)
    found = run_import(path, inputs).reshape(expected.shape)
    return float(np.abs(found - expected).max() / max(1e-6, np.abs(expected).max()))


CONV = {"w": (8, 3, 3, 3), "b": (8,)}
X = (1, 3, 12, 10)
ONES4, ZEROS4 = np.ones(4, np.float32), np.zeros(4, np.float32)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def f32(*values: float) -> Array:
    return np.array(values if len(values) > 1 else values[0], np.float32)


MODELS: Sequence[ModelText] = (
    ModelText("conv", "y = Conv(x, w, b)", X, CONV),
    ModelText("conv pads", "y = Conv(x, w) pads=[1,0,2,1] strides=[2,1]", X, {"w": (8, 3, 3, 3)}),
    ModelText("conv same upper", "y = Conv(x, w) auto_pad=SAME_UPPER strides=[2,2]", X, CONV),
    ModelText("conv same lower", "y = Conv(x, w) auto_pad=SAME_LOWER strides=[2,2]", X, CONV),
    ModelText("conv dilated", "y = Conv(x, w) dilations=[2,1] pads=[2,1,2,1]", X, CONV),
    ModelText("conv groups", "y = Conv(x, w) group=2", (1, 4, 9, 9), {"w": (6, 2, 3, 3)}),
    ModelText(
        "depthwise", "y = Conv(x, w, b) group=4", (1, 4, 9, 9), {"w": (8, 1, 3, 3), "b": (8,)}
    ),
    ModelText("conv row", "y = Conv(x, w) pads=[1,1]", (2, 3, 10), {"w": (5, 3, 3)}),
    ModelText(
        "conv and bias",
        "a = Conv(x, w)\nb = Add(a, c)\ny = Relu(b)",
        X,
        {"w": (8, 3, 3, 3), "c": (8, 1, 1)},
    ),
    ModelText(
        "pad and conv",
        "p = Pad(x, pads)\ny = Conv(p, w) pads=[1,1,1,1]",
        X,
        {**CONV, "pads": i64(0, 0, 0, 1, 0, 0, 1, 2)},
    ),
    ModelText(
        "pad and pool",
        "r = Relu(x)\np = Pad(r, pads)\nm = MaxPool(p) kernel_shape=[3,3]\n"
        "q = Pad(m, pads)\ny = AveragePool(q) kernel_shape=[3,3] strides=[2,2]",
        X,
        {"pads": i64(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    ModelText(
        "transposed",
        "y = ConvTranspose(x, w, b) strides=[2,2] pads=[1,1,1,1] output_padding=[1,1]",
        X,
        {"w": (3, 4, 3, 3), "b": (4,)},
    ),
    ModelText(
        "transposed groups",
        "y = ConvTranspose(x, w) strides=[2,3] group=2",
        (1, 4, 5, 6),
        {"w": (4, 3, 2, 3)},
    ),
    ModelText(
        "transposed size",
        "y = ConvTranspose(x, w) strides=[2,2] output_shape=[23,20]",
        X,
        {"w": (3, 4, 3, 3)},
    ),
    ModelText(
        "flatten and fc",
        "f = Flatten(x)\ny = Gemm(f, w, b) transB=1 alpha=0.5 beta=2.0",
        (2, 3, 4, 5),
        {"w": (7, 60), "b": (7,)},
    ),
    ModelText(
        "reshape and matmul",
        "r = Relu(x)\ns = Shape(r)\nn = Gather(s, zero)\nu = Unsqueeze(n, axis)\n"
        "k = Concat(u, rest) axis=0\nf = Reshape(r, k)\nm = MatMul(f, w)\ny = Add(b, m)",
        (2, 3, 4, 5),
        {
            "w": (60, 7),
            "b": (7,),
            "zero": np.array(0),
            "axis": i64(0),
            "rest": i64(-1),
        },
    ),
    ModelText(
        "linear of pixels",
        "t = Transpose(x) perm=[0,2,3,1]\nm = MatMul(t, w)\na = Add(m, b)\n"
        "y = Transpose(a) perm=[0,3,1,2]",
        X,
        {"w": (3, 6), "b": (6,)},
    ),
    ModelText(
        "batch norm",
        "y = BatchNormalization(x, g, b, m, v) epsilon=0.001",
        X,
        {"g": (3,), "b": (3,), "m": (3,), "v": f32(0.5, 1.0, 2.0)},
    ),
    ModelText("instance norm", "y = InstanceNormalization(x, g, b)", X, {"g": (3,), "b": (3,)}),
    ModelText(
        "group norm of PyTorch",
        "r = Reshape(x, s)\ni = InstanceNormalization(r, one, zero)\nq = Reshape(i, t)\n"
        "m = Mul(q, g)\ny = Add(m, b)",
        (1, 6, 4, 4),
        {
            "s": i64(0, 2, -1),
            "t": i64(1, 6, 4, 4),
            "one": np.ones(2, np.float32),
            "zero": np.zeros(2, np.float32),
            "g": (6, 1, 1),
            "b": (6, 1, 1),
        },
    ),
    ModelText(
        "layer norm of channels",
        "t = Transpose(x) perm=[0,2,3,1]\nn = LayerNormalization(t, g, b)\n"
        "y = Transpose(n) perm=[0,3,1,2]",
        X,
        {"g": (3,), "b": (3,)},
    ),
    ModelText(
        "layer norm in parts",
        "t = Transpose(x) perm=[0,2,3,1]\nu = ReduceMean(t) axes=[-1]\nd = Sub(t, u)\n"
        "q = Pow(d, two)\nv = ReduceMean(q) axes=[-1]\ne = Add(v, eps)\ns = Sqrt(e)\n"
        "n = Div(d, s)\nm = Mul(n, g)\na = Add(m, b)\ny = Transpose(a) perm=[0,3,1,2]",
        X,
        {"two": f32(2), "eps": f32(1e-5), "g": (3,), "b": (3,)},
    ),
    ModelText(
        "channels-first layer norm",
        "u = ReduceMean(x) axes=[1]\nd = Sub(x, u)\nq = Mul(d, d)\nv = ReduceMean(q) axes=[1]\n"
        "e = Add(v, eps)\ns = Sqrt(e)\ny = Div(d, s)",
        X,
        {"eps": f32(1e-5)},
    ),
    ModelText(
        "rms norm",
        "q = Pow(x, two)\nv = ReduceMean(q) axes=[1]\ne = Add(v, eps)\ns = Sqrt(e)\nn = Div(x, s)\n"
        "y = Mul(n, g)",
        X,
        {"two": f32(2), "eps": f32(1e-5), "g": (3, 1, 1)},
    ),
    ModelText("lrn", "y = LRN(x) size=3 alpha=0.3 beta=0.5 bias=2.0", (1, 6, 4, 4)),
    *(
        ModelText(
            f"gelu {i}",
            f"d = {first}\ne = Erf(d)\np = Add(e, one)\n{last}",
            X,
            {"root": f32(1.41421356), "inverse": f32(0.70710678), "one": f32(1), "half": f32(0.5)},
        )
        for i, (first, last) in enumerate(
            (
                ("Div(x, root)", "m = Mul(x, p)\ny = Mul(m, half)"),
                ("Mul(x, inverse)", "h = Mul(half, x)\ny = Mul(h, p)"),
                ("Div(x, root)", "h = Mul(p, half)\ny = Mul(x, h)"),
            )
        )
    ),
    ModelText(
        "gelu by tanh",
        "q = Pow(x, three)\ns = Mul(q, c)\na = Add(x, s)\nm = Mul(a, k)\nt = Tanh(m)\n"
        "p = Add(t, one)\nh = Mul(x, half)\ny = Mul(h, p)",
        X,
        {
            "three": f32(3),
            "c": f32(0.044715),
            "k": f32(0.7978845608),
            "one": f32(1),
            "half": f32(0.5),
        },
    ),
    ModelText("swish", "s = Sigmoid(x)\ny = Mul(s, x)", X),
    ModelText("mish", "s = Softplus(x)\nt = Tanh(s)\ny = Mul(x, t)", X),
    ModelText(
        "hard swish",
        "a = Add(x, three)\nc = Clip(a, low, six)\nm = Mul(x, c)\ny = Div(m, six)",
        X,
        {"three": f32(3), "low": f32(0), "six": f32(6)},
    ),
    ModelText("hard swish of opset 7", "h = HardSigmoid(x) alpha=0.16666667\ny = Mul(x, h)", X),
    ModelText("hard sigmoid", "y = HardSigmoid(x) alpha=0.3 beta=0.4", X),
    ModelText("selu", "a = Selu(x)\nb = Selu(a) alpha=2.0 gamma=3.0\ny = Celu(b) alpha=0.5", X),
    ModelText(
        "activations",
        "a = LeakyRelu(x) alpha=0.2\nb = Elu(a) alpha=0.5\nc = Softplus(b)\nd = Softsign(c)\n"
        "e = HardSwish(d)\nf = Tanh(e)\ny = Abs(f)",
        X,
    ),
    ModelText("prelu", "a = PRelu(x, s)\ny = PRelu(a, t)", X, {"s": (3, 1, 1), "t": f32(0.3)}),
    ModelText("clip of opset 7", "y = Clip(x) min=0.0 max=6.0", X, opset=7),
    ModelText("clip", "a = Clip(x, l)\ny = Clip(a, , h)", X, {"l": f32(-0.5), "h": f32(0.7)}),
    ModelText(
        "extremes",
        "a = Neg(x)\nb = Max(a, x)\nc = Min(b, half)\ny = Max(c, x, a)",
        X,
        {"half": f32(0.5)},
    ),
    ModelText("max pool", "y = MaxPool(x) kernel_shape=[3,2] strides=[2,2] ceil_mode=1", X),
    ModelText(
        "average pool",
        "y = AveragePool(x) kernel_shape=[3,3] strides=[2,2] pads=[1,1,1,1] count_include_pad=1",
        X,
    ),
    ModelText(
        "average pool without pads",
        "y = AveragePool(x) kernel_shape=[3,3] strides=[2,2] pads=[1,1,1,1]",
        X,
    ),
    ModelText(
        "global pool", "a = GlobalAveragePool(x)\nf = Flatten(a)\ny = Gemm(f, w)", X, {"w": (3, 4)}
    ),
    ModelText("mean of pixels", "y = ReduceMean(x) axes=[2,3] keepdims=0", X),
    ModelText("mean of rows", "a = ReduceMean(x) axes=[2]\ny = ReduceMax(a) axes=[-1]", X),
    ModelText("sum of pixels", "y = ReduceSum(x, axes) keepdims=0", X, {"axes": i64(2, 3)}),
    ModelText(
        "squeeze and excitation",
        "a = GlobalAveragePool(x)\ns = Squeeze(a, axes)\nf = Gemm(s, w)\nr = Relu(f)\n"
        "g = Gemm(r, v)\nh = Sigmoid(g)\nu = Unsqueeze(h, axes)\ny = Mul(x, u)",
        X,
        {"w": (3, 2), "v": (2, 3), "axes": i64(2, 3)},
    ),
    ModelText("global context", "a = GlobalAveragePool(x)\ny = Add(x, a)", X),
    ModelText(
        "arithmetic",
        "a = Mul(x, two)\nb = Add(a, one)\nc = Sub(one, b)\nd = Div(c, v)\ne = Neg(d)\n"
        "f = Pow(e, two)\ng = Sum(f, x, e)\ny = Mean(g, x)",
        X,
        {"two": f32(2), "one": f32(1), "v": f32(2, 4, 8).reshape(3, 1, 1)},
    ),
    ModelText("offset alone", "y = Add(x, v)", X, {"v": (3, 1, 1)}),
    ModelText(
        "branches", "a = Relu(x)\nb = Sigmoid(x)\nc = Sub(a, b)\nd = Mul(c, a)\ny = Add(d, x)", X
    ),
    ModelText("concat", "a = Relu(x)\ny = Concat(a, x, a) axis=1", X),
    ModelText(
        "dense block",
        "a = Conv(x, w)\nc = Concat(x, a) axis=1\nr = Relu(c)\nb = Conv(r, v)\n"
        "d = Concat(x, a, b) axis=1\ny = Relu(d)",
        X,
        {"w": (2, 3, 1, 1), "v": (2, 5, 1, 1)},
    ),
    ModelText(
        "resize nearest",
        "y = Resize(x, , s)",
        X,
        {"s": f32(1, 1, 2, 3)},
    ),
    ModelText(
        "resize asymmetric",
        "y = Resize(x, , s) coordinate_transformation_mode=asymmetric nearest_mode=floor",
        X,
        {"s": f32(1, 1, 2, 2)},
    ),
    ModelText(
        "resize linear",
        "y = Resize(x, , , s) mode=linear coordinate_transformation_mode=pytorch_half_pixel",
        X,
        {"s": i64(1, 3, 24, 20)},
    ),
    ModelText(
        "resize smaller",
        "y = Resize(x, , s) coordinate_transformation_mode=asymmetric nearest_mode=floor",
        X,
        {"s": f32(1, 1, 0.5, 0.5)},
    ),
    ModelText("upsample", "y = Upsample(x, s)", X, {"s": f32(1, 1, 2, 2)}, opset=9),
    ModelText("pixel shuffle", "y = DepthToSpace(x) blocksize=2 mode=CRD", (1, 12, 3, 4)),
    ModelText("depth to space", "y = DepthToSpace(x) blocksize=2", (1, 12, 3, 4)),
    ModelText("space to depth", "y = SpaceToDepth(x) blocksize=2", X),
    ModelText(
        "channel shuffle",
        "a = Reshape(x, s)\nb = Transpose(a) perm=[0,2,1,3,4]\ny = Reshape(b, t)",
        (1, 6, 3, 4),
        {"s": i64(0, 2, 3, 3, 4), "t": i64(0, -1, 3, 4)},
    ),
    ModelText("split", "a, b = Split(x, s) axis=1\ny = Concat(b, a) axis=1", X, {"s": i64(1, 2)}),
    ModelText(
        "slices",
        "a = Slice(x, s, e, ax, st)\ny = Relu(a)",
        X,
        {"s": i64(1, 2), "e": i64(3, 2**31), "ax": i64(1, 3), "st": i64(1, 2)},
    ),
    ModelText(
        "entries",
        "a = Gather(x, i) axis=1\nu = Unsqueeze(a, one)\nm = Mul(u, v)\nb = Gather(x, k) axis=1\n"
        "y = Concat(m, b) axis=1",
        X,
        {"i": np.array(1), "k": i64(0, 1), "one": i64(1), "v": f32(2)},
    ),
    ModelText("reflect", "y = Pad(x, p) mode=reflect", X, {"p": i64(0, 0, 1, 2, 0, 0, 1, 2)}),
    ModelText("edge", "y = Pad(x, p) mode=edge", X, {"p": i64(0, 0, 1, 0, 0, 0, 1, 2)}),
    ModelText(
        "border of ones", "y = Pad(x, p, v)", X, {"p": i64(0, 1, 1, 0, 0, 0, 1, 2), "v": f32(1)}
    ),
    ModelText("softmax", "f = Flatten(x)\na = Gemm(f, w)\ny = Softmax(a)", X, {"w": (360, 5)}),
    ModelText("softmax inside", "a = Softmax(x) axis=1\ny = Mul(x, a)", X),
    ModelText(
        "softmax of opset 7",
        "f = Flatten(x)\na = LogSoftmax(f)\ny = Relu(a)",
        (1, 4, 1, 1),
        opset=7,
    ),
    ModelText("dropout", "a = Dropout(x)\nb = Identity(a)\ny = Relu(b)", X),
    ModelText("max of pixels", "y = GlobalMaxPool(x)", X),
    ModelText(
        "gelu of opset 20", "a = Gelu(x)\nb = Mish(a)\ny = Gelu(b) approximate=tanh", X, opset=20
    ),
    ModelText("swish of opset 24", "y = Swish(x)", X, opset=24),
    ModelText(
        "group norm",
        "y = GroupNormalization(x, g, b) num_groups=2",
        (1, 6, 4, 4),
        {"g": (6,), "b": (6,)},
        opset=21,
    ),
    ModelText(
        "group norm of opset 18",
        "y = GroupNormalization(x, g, b) num_groups=2",
        (1, 6, 4, 4),
        {"g": (2,), "b": (2,)},
        opset=18,
    ),
    ModelText(
        "sizes",
        "n = Size(x)\nu = Unsqueeze(n, axis)\nf = Reshape(x, u)\ns = Shape(x)\nr = Reshape(f, s)\n"
        "e = Expand(r, s)\ny = Relu(e)",
        X,
        {"axis": i64(0)},
    ),
    ModelText(
        "one convolution twice",
        "a = Conv(x, w)\nb = Relu(a)\ny = Conv(b, w)",
        X,
        {"w": (3, 3, 3, 3)},
    ),
    ModelText("squares", "y = Mul(x, x)", X),
    ModelText(
        "TensorFlow",
        "t = Transpose(x) perm=[0,3,1,2]\nc = Conv(t, w) auto_pad=SAME_UPPER strides=[2,2]\n"
        "u = Transpose(c) perm=[0,2,3,1]\nr = Relu(u)\na = Add(r, b)\n"
        "m = ReduceMean(a) axes=[1,2] keepdims=0\ny = MatMul(m, v)",
        (1, 12, 10, 3),
        {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 5)},
    ),
    ModelText(
        "PyTorch, not optimised",
        "n = Shape(x) start=0 end=1\nz = CastLike(k, x)\ne = Expand(z, i)\nc = Conv(x, w, e)\n"
        "u = BatchNormalization(c, s, o, m, v)\ny = CastLike(u, x)",
        X,
        {"w": (4, 3, 3, 3), "k": f32(0), "i": i64(4), "s": (4,), "o": (4,), "m": (4,), "v": ONES4},
    ),
    ModelText(
        "bytes",
        "f = Cast(x) to=1\ns = Mul(f, k)\nm = Sub(s, u)\nd = Div(m, v)\n"
        "t = Transpose(d) perm=[0,3,1,2]\ny = Conv(t, w)",
        (1, 12, 10, 3),
        {"k": f32(1 / 255), "u": f32(0.485, 0.456, 0.406), "v": f32(0.229, 0.224, 0.225), **CONV},
        element_type=TensorProto.UINT8,
    ),
)

"""Kernels of local response normalisation, which hold pixels in shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from netdsl.backends.cuda.c_expression import REGISTER_TYPES, pointer_parameter
from netdsl.backends.cuda.cuda_launch import THREADS_PER_BLOCK, CudaLaunch, KernelArgument
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.layout import row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Node

_TILE_ELEMENTS = 1024
"""Elements that a block holds, and so the most channels that a pixel may have."""

_SOURCE = """
__device__ __forceinline__ float power(float s) {{ return exp2f(-(float)BETA * log2f(s)); }}
__device__ __forceinline__ double power(double s) {{ return pow(s, -(double)BETA); }}
#define EACH for (int i = threadIdx.x; i < count; i += blockDim.x)
#define NEAR(array, v) R v = 0; {{ const int c = i % cols; \\
  for (int k = max(c - HALF, 0); k <= min(c + HALF, cols - 1); k++) v += array[i - c + k]; }}
extern "C" __global__ void local({parameters}) {{
  __shared__ R xs[{tile}], squares[{tile}];
  const int cols = (int)cols_, tile = (int)tile_;
  const i64 first = blockIdx.x * (i64)tile;
  const int count = (int)(size - first < tile ? size - first : tile);
{places}  EACH {{ const R v = (R)widen(x[first + i]); xs[i] = v; squares[i] = v * v; }}
  __syncthreads();
{body}}}
"""
_FORWARD = """
  EACH { NEAR(squares, v) const R r = xs[i] * power((R)KK + (R)ALPHA * v); store<1>(y + first + i, &r); }
"""
_BACKWARD = """
  __shared__ R shared_[TILE], own[TILE];
  EACH { NEAR(squares, v) const R s = (R)KK + (R)ALPHA * v, f = power(s), d = (R)widen(g[first + i]);
    own[i] = d * f; shared_[i] = d * xs[i] * f / s; }
  __syncthreads();
  EACH { NEAR(shared_, v) const R r = own[i] - 2 * (R)ALPHA * (R)BETA * xs[i] * v; store<1>(y + first + i, &r); }
"""


def lrn_launches(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    """Returns the launch of the normalisation or its gradient; none for other operators."""
    if node.op not in ("lrn", "lrn_grad"):
        return ()
    places = dict(zip(("x",) if node.op == "lrn" else ("g", "x"), args, strict=True)) | {"y": out}
    if any(p.layout.strides != row_major_strides(p.layout.shape) for p in places.values()):
        raise UnsupportedKernelError("pixels are not contiguous")
    shape = out.layout.shape
    cols, size = shape[-1], math.prod(shape)
    if cols > _TILE_ELEMENTS:
        raise UnsupportedKernelError("more channels than a block holds")
    tile = _TILE_ELEMENTS // cols * cols
    words: list[KernelArgument] = [size, cols, tile]
    parameters, text = ["i64 size", "i64 cols_", "i64 tile_"], ""
    for name, place in places.items():
        parameter, line, word = pointer_parameter(name, place, name == "y")
        parameters.append(parameter)
        words.append(word)
        text += line
    a = node.attrs
    constants = {"ALPHA": a["alpha"], "BETA": a["beta"], "KK": a["k"], "HALF": a["size"] // 2}
    macros = "".join(f"#define {k} {v!r}\n" for k, v in constants.items())
    macros += f"#define R {REGISTER_TYPES[out.dtype]}\n#define TILE {_TILE_ELEMENTS}\n"
    body = _FORWARD if node.op == "lrn" else _BACKWARD
    source = _SOURCE.format(
        parameters=", ".join(parameters), places=text, body=body, tile=_TILE_ELEMENTS
    )
    blocks = -(-size // tile)
    return (
        CudaLaunch(
            f"{PRELUDE}\n{macros}{source}", "local", (blocks, 1), THREADS_PER_BLOCK, tuple(words)
        ),
    )

"""Local response normalisation: pixels in shared memory, each channel sees its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from netdsl.backends.cuda.expression import REGISTER, pointer
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import THREADS, Launch, Word
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.plan.layout import row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Node

_TILE = 1024
"""Elements that a block holds; a pixel has at most as many channels."""

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


def launch(node: Node, args: Sequence[Placement], out: Placement) -> tuple[Launch, ...]:
    """The kernel of the normalisation or its gradient; none for other operators."""
    if node.op not in ("lrn", "lrn_grad"):
        return ()
    places = dict(zip(("x",) if node.op == "lrn" else ("g", "x"), args, strict=True)) | {"y": out}
    if any(p.layout.strides != row_major_strides(p.layout.shape) for p in places.values()):
        raise Unmappable("pixels do not follow each other")
    shape = out.layout.shape
    cols, size = shape[-1], math.prod(shape)
    if cols > _TILE:
        raise Unmappable("more channels than a block holds")
    tile = _TILE // cols * cols
    words: list[Word] = [size, cols, tile]
    given, text = ["i64 size", "i64 cols_", "i64 tile_"], ""
    for name, place in places.items():
        parameter, line, word = pointer(name, place, name == "y")
        given.append(parameter)
        words.append(word)
        text += line
    a = node.attrs
    constants = {"ALPHA": a["alpha"], "BETA": a["beta"], "KK": a["k"], "HALF": a["size"] // 2}
    defined = "".join(f"#define {k} {v!r}\n" for k, v in constants.items())
    defined += f"#define R {REGISTER[out.dtype]}\n#define TILE {_TILE}\n"
    body = _FORWARD if node.op == "lrn" else _BACKWARD
    source = _SOURCE.format(parameters=", ".join(given), places=text, body=body, tile=_TILE)
    blocks = -(-size // tile)
    return (Launch(f"{PRELUDE}\n{defined}{source}", "local", (blocks, 1), THREADS, tuple(words)),)

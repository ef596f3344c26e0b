"""Kernels over rows of classes: softmax, losses, hits and one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.backends.cuda.c_expression import REGISTER_TYPES, pointer_parameter
from netdsl.backends.cuda.cuda_launch import CudaLaunch, KernelArgument
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.layout import row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Node

_THREADS = 128

_HEAD = """
#define TREE(v, joined) {{ __syncthreads(); sm[t] = v; __syncthreads(); \\
  for (int n = {threads} / 2; n; n /= 2) {{ if (t < n) {{ const R x = sm[t], z = sm[t + n]; sm[t] = joined; }} __syncthreads(); }} \\
  v = sm[0]; }}
#define EACH for (i64 k = t; k < cols; k += {threads})
extern "C" __global__ void rows({parameters}) {{
  __shared__ R sm[{threads}]; const int t = threadIdx.x; const i64 row = blockIdx.x;
{body}}}
"""

_STATISTICS = """
  R m = -INFINITY; EACH { const R v = (R)widen(a[row * cols + k]); m = v > m || v != v ? v : m; }
  TREE(m, x >= z || x != x ? x : z)
  R s = 0; EACH s += exp((R)widen(a[row * cols + k]) - m);
  TREE(s, x + z)
"""
_SOFTMAX = "  EACH { const R r = exp((R)widen(a[row * cols + k]) - m) / s; store<1>(y + row * cols + k, &r); }\n"
_LOG = "  s = log(s); EACH { const R r = (R)widen(a[row * cols + k]) - m - s; store<1>(y + row * cols + k, &r); }\n"
_LOSS = """
  s = log(s); R loss = 0;
  EACH { const R target = (k == b[row] ? 1 - SMOOTHING : (R)0) + SMOOTHING / cols;
    if (target != 0) loss -= target * ((R)widen(a[row * cols + k]) - m - s); }
  TREE(loss, x + z)
  if (t == 0) store<1>(y + row, &loss);
"""
_HIT = """
  const i64 label = b[row]; const R own = (R)widen(a[row * cols + label]); R better = 0;
  EACH { const R v = (R)widen(a[row * cols + k]);
    better += v != v ? K : v > own || (v == own && k < label) ? 1 : 0; }
  TREE(better, x + z)
  if (t == 0) { const R r = better < K ? 1 : 0; store<1>(y + row, &r); }
"""
_ONE_HOT = """
  EACH { const R r = (k == a[row] ? 1 - SMOOTHING : (R)0) + SMOOTHING / cols; store<1>(y + row * cols + k, &r); }
  (void)sm;
"""
_BODIES = {
    "softmax": _STATISTICS + _SOFTMAX,
    "log_softmax": _STATISTICS + _LOG,
    "cross_entropy": _STATISTICS + _LOSS,
    "top_hit": _HIT,
    "one_hot": _ONE_HOT,
}
OPERATORS = tuple(_BODIES)


def row_launches(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    """Returns the launch of an operator over rows, one block per row."""
    if node.op not in _BODIES:
        raise UnsupportedKernelError(f"there is no kernel for {node.op}")
    places = {"a": args[0], **({"b": args[1]} if len(args) > 1 else {}), "y": out}
    for place in places.values():
        if place.layout.strides != row_major_strides(place.layout.shape):
            raise UnsupportedKernelError("rows are not contiguous")
    matrix = out if node.op == "one_hot" else args[0]
    cols = matrix.layout.shape[-1]
    register = REGISTER_TYPES[matrix.dtype]
    words: list[KernelArgument] = [cols]
    parameters, text = ["i64 cols"], ""
    for name, place in places.items():
        parameter, line, word = pointer_parameter(name, place, name == "y")
        parameters.append(parameter)
        words.append(word)
        text += line
    size = 1
    for extent in matrix.layout.shape[:-1]:
        size *= extent
    macros = f"#define R {register}\n" + "".join(
        f"#define {k} (({register}){v!r})\n" if isinstance(v, float) else f"#define {k} {v}\n"
        for k, v in _constants(node).items()
    )
    head = _HEAD.format(
        parameters=", ".join(parameters), body=text + _BODIES[node.op], threads=_THREADS
    )
    return (CudaLaunch(f"{PRELUDE}\n{macros}{head}", "rows", (size, 1), _THREADS, tuple(words)),)


def _constants(node: Node) -> dict[str, float | int]:
    a = node.attrs
    if node.op == "top_hit":
        return {"K": a["k"]}
    if "smoothing" in a:
        return {"SMOOTHING": float(a["smoothing"])}
    return {}

"""Kernels over windows: pooling, im2col, and the gradients of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from netdsl.backends.cuda.c_expression import REGISTER_TYPES, pointer_parameter
from netdsl.backends.cuda.cuda_launch import (
    THREADS_PER_BLOCK,
    WORKSPACE,
    WORKSPACE_BYTES,
    CudaLaunch,
    KernelArgument,
)
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.layout import Layout, make_contiguous
from netdsl.plan.placement import Placement
from netdsl.types import Node

_MAX_UNROLLED_TAPS = 64
_HEAD = """
#define AT(p, n, h, w) (p + (n) * p##_n + (h) * p##_h + (w) * p##_w + c)
#define EACH UNROLL for (int j = 0; j < V; j++)
extern "C" __global__ void window({parameters}) {{
  const i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (at >= total) return;
  i64 rest = at / lanes; const i64 c = (at % lanes) * V;
  const int q = (int)(rest % across); rest /= across;
  const int p = (int)(rest % down); const i64 n = rest / down;
{body}}}
"""

_MAX = """
  R m[V]; EACH m[j] = -INFINITY;
  ROWS for (int r = 0; r < KR; r++) ROWS for (int s = 0; s < KS; s++) {
    const int h = p * SH - PT + r, w = q * SW - PL + s;
    if (h >= 0 && h < H && w >= 0 && w < W) {
      R v[V]; unpack<R>(load<V>(AT(a, n, h, w)), v);
      EACH m[j] = m[j] >= v[j] || m[j] != m[j] ? m[j] : v[j];
    }
  }
  store<V>(AT(y, n, p, q), m);
"""

# the index of the maximum in each window; then every pixel looks at the windows that contain it
_ARGMAX = """
  R m[V]; int k[V]; EACH { m[j] = -INFINITY; k[j] = 255; }
  ROWS for (int r = 0; r < KR; r++) ROWS for (int s = 0; s < KS; s++) {
    const int h = p * SH - PT + r, w = q * SW - PL + s;
    if (h >= 0 && h < H && w >= 0 && w < W) {
      R v[V]; unpack<R>(load<V>(AT(a, n, h, w)), v);
      EACH { const bool up = v[j] > m[j] || k[j] == 255; m[j] = up ? v[j] : m[j]; k[j] = up ? r * KS + s : k[j]; }
    }
  }
  store<V>(AT(y, n, p, q), k);
"""
_MAX_GRAD = """
  R d[V]; EACH d[j] = 0;
  ROWS for (int e = 0; e < (KR + SH - 1) / SH; e++) ROWS for (int f = 0; f < (KS + SW - 1) / SW; f++) {
    const int oh = (p + PT) / SH - e, ow = (q + PL) / SW - f;
    const int r = p + PT - oh * SH, s = q + PL - ow * SW;
    if (oh >= 0 && oh < OH && ow >= 0 && ow < OW && r < KR && s < KS) {
      R g[V]; int k[V]; unpack<R>(load<V>(AT(a, n, oh, ow)), g); unpack<int>(load<V>(AT(b, n, oh, ow)), k);
      EACH d[j] += k[j] == r * KS + s ? g[j] : (R)0;
    }
  }
  store<V>(AT(y, n, p, q), d);
"""

_COUNT = """
  #define SPAN(o, S, P, K, C0, C1, L) (min((o) * S - P + K, L + C1) - max((o) * S - P, -C0))
  #define COUNT(oh, ow) ((R)(SPAN(oh, SH, PT, KR, CT, CB, (int)H) * SPAN(ow, SW, PL, KS, CL, CR, (int)W)))
"""

_MEAN = (
    _COUNT
    + """
  R m[V]; EACH m[j] = 0;
  ROWS for (int r = 0; r < KR; r++) ROWS for (int s = 0; s < KS; s++) {
    const int h = p * SH - PT + r, w = q * SW - PL + s;
    if (h >= 0 && h < H && w >= 0 && w < W) {
      R v[V]; unpack<R>(load<V>(AT(a, n, h, w)), v); EACH m[j] += v[j];
    }
  }
  const R count = COUNT(p, q); EACH m[j] /= count;
  store<V>(AT(y, n, p, q), m);
"""
)

_MEAN_GRAD = (
    _COUNT
    + """
  R d[V]; EACH d[j] = 0;
  for (int r = 0; r < KR; r++) for (int s = 0; s < KS; s++) {
    const int h = p + PT - r, w = q + PL - s, oh = h / SH, ow = w / SW;
    if (h >= 0 && w >= 0 && h % SH == 0 && w % SW == 0 && oh < OH && ow < OW) {
      R v[V]; unpack<R>(load<V>(AT(a, n, oh, ow)), v);
      const R count = COUNT(oh, ow); EACH d[j] += v[j] / count;
    }
  }
  store<V>(AT(y, n, p, q), d);
"""
)


# channel `own` of a column matrix is channel c of the pixel at r, s of its window
_COLUMNS = """
  const int own = (int)c, r = own / C / KS, s = own / C % KS;
  const int h = p * SH - PT + r * DH, w = q * SW - PL + s * DW;
  R v[V]; EACH v[j] = 0;
  if (h >= 0 && h < H && w >= 0 && w < W) {
    const i64 c = own % C;
    unpack<R>(load<V>(AT(a, n, h, w)), v);
  }
  store<V>(AT(y, n, p, q), v);
"""

_FROM_COLUMNS = """
  R d[V]; EACH d[j] = 0;
  const i64 own = c;
  for (int r = 0; r < KR; r++) for (int s = 0; s < KS; s++) {
    const int h = p + PT - r * DH, w = q + PL - s * DW, oh = h / SH, ow = w / SW;
    if (h >= 0 && w >= 0 && h % SH == 0 && w % SW == 0 && oh < OH && ow < OW) {
      const i64 c = (i64)(r * KS + s) * C + own;
      R v[V]; unpack<R>(load<V>(AT(a, n, oh, ow)), v);
      EACH d[j] += v[j];
    }
  }
  store<V>(AT(y, n, p, q), d);
"""


def window_launches(
    node: Node, args: Sequence[Placement], out: Placement
) -> tuple[CudaLaunch, ...]:
    """Returns the launches of an operator over windows, or of its gradient; else none."""
    make = {
        "max_pool": _max_pool,
        "max_pool_grad": _max_pool_grad,
        "avg_pool": _avg_pool,
        "avg_pool_grad": _avg_pool_grad,
        "im2col": _im2col,
        "col2im": _col2im,
    }.get(node.op)
    return make(node, args, out) if make else ()


def _window_constants(node: Node) -> dict[str, int]:
    a = node.attrs
    (kr, ks), (sh, sw), ((pt, _), (pl, _)) = a["kernel"], a["stride"], a["pad"]
    found = {"KR": kr, "KS": ks, "SH": sh, "SW": sw, "PT": pt, "PL": pl}
    if "dilation" in a:
        found |= dict(zip(("DH", "DW"), a["dilation"], strict=True))
    if "counted" in a:
        (ct, cb), (cl, cr) = a["counted"]
        found |= {"CT": ct, "CB": cb, "CL": cl, "CR": cr}
    return found


def _max_pool(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    return (
        _make_launch(_MAX, _window_constants(node), {"a": args[0], "y": out}, out, args[0], out),
    )


def _avg_pool(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    return (
        _make_launch(_MEAN, _window_constants(node), {"a": args[0], "y": out}, out, args[0], out),
    )


def _avg_pool_grad(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    return (
        _make_launch(
            _MEAN_GRAD, _window_constants(node), {"a": args[0], "y": out}, out, out, args[0]
        ),
    )


def _im2col(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    window = {**_window_constants(node), "C": args[0].layout.shape[3]}
    return (_make_launch(_COLUMNS, window, {"a": args[0], "y": out}, out, args[0], out),)


def _col2im(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    window = {**_window_constants(node), "C": out.layout.shape[3]}
    return (_make_launch(_FROM_COLUMNS, window, {"a": args[0], "y": out}, out, out, args[0]),)


def _max_pool_grad(node: Node, args: Sequence[Placement], out: Placement) -> tuple[CudaLaunch, ...]:
    g, x = args
    window, (images, *image_shape) = _window_constants(node), g.layout.shape
    images_per_pass = WORKSPACE_BYTES // math.prod(image_shape)
    if images_per_pass == 0 or window["KR"] * window["KS"] > 255:
        raise UnsupportedKernelError("too many windows for the workspace")
    found = list[CudaLaunch]()
    for first in range(0, images, images_per_pass):
        slices = [_slice_images(p, first, images_per_pass) for p in (g, x, out)]
        argmax = Placement(WORKSPACE, "uint8", make_contiguous(slices[0].layout.shape))
        found.append(
            _make_launch(_ARGMAX, window, {"a": slices[1], "y": argmax}, argmax, *slices[1::-1])
        )
        operands = {"a": slices[0], "b": argmax, "y": slices[2]}
        found.append(_make_launch(_MAX_GRAD, window, operands, slices[2], *slices[1::-1]))
    return tuple(found)


def _slice_images(place: Placement, first: int, count: int) -> Placement:
    """Returns the placement of some images of a batch."""
    (n, *shape), strides = place.layout.shape, place.layout.strides
    offset = place.layout.offset + first * strides[0]
    return replace(place, layout=Layout((min(count, n - first), *shape), strides, offset))


def _make_launch(
    body: str,
    constants: dict[str, int],
    places: dict[str, Placement],
    thread_domain: Placement,
    image: Placement,
    pooled: Placement,
) -> CudaLaunch:
    """Returns a launch with a thread for each pixel and vector of channels of `thread_domain`."""
    n, h, w, channels = thread_domain.layout.shape
    if any(p.layout.strides[3] != 1 for p in places.values()):
        raise UnsupportedKernelError("channels are not contiguous")
    channel_vector = vector_width(places.values())
    lanes = channels // channel_vector
    total = n * h * w * lanes
    words: list[KernelArgument] = [total, lanes, h, w]
    names = ["total", "lanes", "down", "across"]
    for label, size in zip(
        ("H", "W", "OH", "OW"), (*image.layout.shape[1:3], *pooled.layout.shape[1:3]), strict=True
    ):
        names.append(label)
        words.append(size)
    parameters = [f"i64 {name}" for name in names]
    text = ""
    for name, place in places.items():
        parameter, line, word = pointer_parameter(name, place, name == "y")
        parameters.append(parameter)
        words.append(word)
        text += line
        for axis, stride in zip("nhw", place.layout.strides, strict=False):
            parameters.append(f"i64 {name}_{axis}")
            words.append(stride)
    constants = {"V": channel_vector, **constants}
    # unrolling large windows would cost more compile time than it saves
    rows = "UNROLL" if constants["KR"] * constants["KS"] <= _MAX_UNROLLED_TAPS else ""
    macros = "".join(f"#define {k} ({v})\n" for k, v in constants.items())
    macros += f"#define ROWS {rows}\n"
    register = REGISTER_TYPES[places["a"].dtype]
    head = _HEAD.format(parameters=", ".join(parameters), body=text + body)
    source = f"{PRELUDE}\n#define R {register}\n{macros}{head}"
    return CudaLaunch(
        source, "window", (-(-total // THREADS_PER_BLOCK), 1), THREADS_PER_BLOCK, tuple(words)
    )


def vector_width(places: Iterable[Placement]) -> int:
    """Returns the largest number of channels that all placements can load or store at once."""
    found = 8
    for p in places:
        layout, size = p.layout, p.itemsize
        found = min(found, 8 if size <= 2 else 4)
        while found > 1 and (
            layout.shape[-1] % found
            or any(s * size % min(16, found * size) for s in (*layout.strides[:-1], layout.offset))
        ):
            found //= 2
    return found

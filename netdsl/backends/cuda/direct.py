"""Convolutions of few channels, and their gradients, as kernels of our own.

Libraries want channels by eights, and images of one, three or six of them leave most of their tiles
empty. Here a block holds a band of an image and all weights in shared memory, as floats, with zeros
where the image ends; a thread computes a pixel of the result, or the gradient of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from netdsl.backends.cuda.epilogue import Epilogue
from netdsl.backends.cuda.expression import MEMORY, pointer
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import (
    SCRATCH,
    SCRATCH_BYTES,
    THREADS,
    Address,
    Launch,
    Word,
)
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.plan.placement import Placement
from netdsl.types import Node

_SHARED = 44 << 10
"""Bytes of shared memory that a block may have."""
_MOST_WEIGHTS = 4096
_MOST_CHANNELS = 64
_BLOCKS_EACH = 4
"""Blocks for each multiprocessor."""
_SLICES = 8
"""Into how many parts the partial sums of a weight's gradient are divided."""

_HEAD = """
#define AT(p, n, h, w, c) ((i64)(n) * p##_N + (h) * p##_H + (w) * p##_W + (c))
#define EACH(i, size) for (int i = threadIdx.x; i < (size); i += blockDim.x)
"""
_BAND = """__device__ __forceinline__ void band(const X* x, float* xs, int n, int first) {{
  EACH(i, TALL * WIDE * C) {{
    const int c = i % C, w = i / C % WIDE - LEFT, h = first * SH - TOP + i / (C * WIDE);
    xs[i] = h >= 0 && h < XH && w >= 0 && w < XW ? (float)widen(x[AT(x, n, h, w, c)]) : 0.0f;
  }}
}}
"""

_DIRECT = """
extern "C" __global__ void direct({parameters}) {{
  alignas(16) __shared__ float ws[RH * RW * C * KP];
  __shared__ float xs[TALL * WIDE * C];
{places}
  EACH(i, RH * RW * C * KP) {{
    const int k = i % KP, c = i / KP % C, s = i / (KP * C) % RW, r = i / (KP * C * RW);
    ws[i] = k < K ? (float)widen(w[WEIGHT]) : 0.0f;
  }}
  for (int unit = blockIdx.x; unit < N * BANDS; unit += gridDim.x) {{
    const int n = unit / BANDS, first = unit % BANDS * BAND;
    __syncthreads();
    band(x, xs, n, first);
    __syncthreads();
    EACH(t, BAND * YW * (KP / KT)) {{
      const int k = t % (KP / KT) * KT, q = t / (KP / KT) % YW, p = t / (KP / KT * YW);
      if (first + p >= YH) continue;
      float sums[KT];
      UNROLL for (int j = 0; j < KT; j++) sums[j] = 0.0f;
      for (int r = 0; r < RH; r++) UNROLL for (int s = 0; s < RW; s++) UNROLL for (int c = 0; c < C; c++) {{
        const float v = xs[((p * SH + r * DH) * WIDE + q * SW + s * DW) * C + c];
        UNROLL for (int j = 0; j < KT; j += 4) {{
          const Pack<float, 4> weights = load<4>(ws + ((r * RW + s) * C + c) * KP + k + j);
          UNROLL for (int i = 0; i < 4; i++) sums[j + i] = fmaf(v, weights.v[i], sums[j + i]);
        }}
      }}
      UNROLL for (int j = 0; j < KT; j++) if (k + j < K) {{
        float v = sums[j];
{epilogue}        store<1>(y + AT(y, n, first + p, q, k + j), &v);
      }}
    }}
  }}
}}
"""

_WGRAD = """
extern "C" __global__ void direct({parameters}) {{
  alignas(16) __shared__ float gs[BAND * YW * KP];
  __shared__ float xs[TALL * WIDE * C], total[RH * RW * C * KP];
{places}  float* part = (float*)part_at + (i64)blockIdx.x * (TAPS * KP);
  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  float sums[EACH_TAPS][KP];
  int from[EACH_TAPS];
  UNROLL for (int j = 0; j < EACH_TAPS; j++) {{
    const int tap = min(lane + j * LANES, TAPS - 1), c = tap % C, s = tap / C % RW, r = tap / (C * RW);
    from[j] = (r * DH * WIDE + s * DW) * C + c;
    UNROLL for (int k = 0; k < KP; k++) sums[j][k] = 0.0f;
  }}
  for (int unit = blockIdx.x; unit < N * BANDS; unit += gridDim.x) {{
    const int n = unit / BANDS, first = unit % BANDS * BAND;
    __syncthreads();
    band(x, xs, n, first);
    EACH(i, BAND * YW * KP) {{
      const int k = i % KP, q = i / KP % YW, p = first + i / (KP * YW);
      gs[i] = k < K && p < YH ? (float)widen(g[AT(g, n, p, q, k)]) : 0.0f;
    }}
    __syncthreads();
    if (group < GROUPS) for (int m = group; m < BAND * YW; m += GROUPS) {{
      const int at = (m / YW * SH * WIDE + m % YW * SW) * C;
      UNROLL for (int k = 0; k < KP; k += 4) {{
        const Pack<float, 4> d = load<4>(gs + m * KP + k);
        UNROLL for (int j = 0; j < EACH_TAPS; j++) UNROLL for (int i = 0; i < 4; i++)
          sums[j][k + i] = fmaf(xs[at + from[j]], d.v[i], sums[j][k + i]);
      }}
    }}
  }}
  for (int one = 0; one < GROUPS; one++) {{
    __syncthreads();
    if (group == one) UNROLL for (int j = 0; j < EACH_TAPS; j++) if (lane + j * LANES < TAPS)
      UNROLL for (int k = 0; k < KP; k++) {{
        float* here = total + (lane + j * LANES) * KP + k;
        *here = one ? *here + sums[j][k] : sums[j][k];
      }}
  }}
  __syncthreads();
  EACH(i, TAPS * KP) part[i] = total[i];
}}
"""

_GATHERED = """
extern "C" __global__ void gathered({parameters}) {{
  __shared__ float sums[SLICES][32];
  const int lane = threadIdx.x % 32, slice = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
{places}  const float* part = (const float*)part_at + i;
  float sum = 0.0f;
  if (i < TAPS * KP) for (int b = slice; b < PARTS; b += SLICES) sum += part[(i64)b * (TAPS * KP)];
  sums[slice][lane] = sum;
  __syncthreads();
  const int k = i % KP, c = i / KP % C, s = i / (KP * C) % RW, r = i / (KP * C * RW);
  if (slice == 0 && i < TAPS * KP && k < K) {{
    UNROLL for (int j = 1; j < SLICES; j++) sum += sums[j][lane];
    store<1>(w + AT(w, k, r, s, c), &sum);
  }}
}}
"""


@dataclass(frozen=True)
class _Shape:
    """A convolution from images `x` to images `y` over windows of `kernel`."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    corner: tuple[int, int]
    """How far above and left of the first pixel the first window begins."""

    @property
    def taps(self) -> int:
        return prod(self.kernel) * self.x[3]

    @property
    def outer(self) -> int:
        """Channels of the result, in fours."""
        return -(-self.y[3] // 4) * 4

    def band(self, beside: int, row: int) -> tuple[int, int, int]:
        """Rows of the result that a block computes at once, and what of the image it holds for
        them: rows and pixels. `beside` floats lie in shared memory too, and `row` for each row."""
        wide = (self.y[2] - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        for rows in range(self.y[1], 0, -1):
            tall = (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
            if 4 * (tall * wide * self.x[3] + beside + rows * row) <= _SHARED:
                return rows, tall, wide
        raise Unmappable("a row of the image has no place in shared memory")

    def constants(self, band: tuple[int, int, int]) -> dict[str, int]:
        rows, tall, wide = band
        pairs: dict[str, tuple[int, ...]] = {
            "N C XH XW": (self.x[0], self.x[3], *self.x[1:3]),
            "K KP YH YW": (self.y[3], self.outer, *self.y[1:3]),
            "RH RW SH SW DH DW": (*self.kernel, *self.stride, *self.dilation),
            "TOP LEFT TAPS": (*self.corner, self.taps),
            "BAND BANDS TALL WIDE": (rows, -(-self.y[1] // rows), tall, wide),
        }
        return {n: v for names, vs in pairs.items() for n, v in zip(names.split(), vs, strict=True)}


def offered(node: Node, image: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Whether a convolution, or a gradient of one, between images of these shapes has so few
    channels that a kernel of its own may be the fastest."""
    a = node.attrs
    forward = node.op != "conv2d_dgrad" or a["stride"] == (1, 1)
    channels = image[3], result[3]
    by_eights = all(c % 8 == 0 for c in channels)
    few = max(channels) <= _MOST_CHANNELS and not (by_eights and min(channels) > 16)
    return forward and few and a["groups"] == 1


def launches(
    node: Node,
    given: tuple[Placement, Placement],
    out: Placement,
    multiprocessors: int,
    epilogue: Epilogue | None = None,
    beside: Mapping[str, Placement] | None = None,
) -> tuple[Launch, ...]:
    """The kernels of a convolution or a gradient of one; `beside` are the epilogue's operands by
    its fields. Raises Unmappable where there is none."""
    first, second = given
    if "float64" in (first.dtype, second.dtype, out.dtype):
        raise Unmappable("sums are of 32 bits")
    if node.op == "conv2d_wgrad":
        return _wgrad(node, first, second, out, multiprocessors)
    forward = node.op == "conv2d"
    shape = _shape(node, first, second.layout.shape[1:3], out)
    weights = shape.taps * shape.outer
    if weights > _MOST_WEIGHTS:
        raise Unmappable("too many weights for shared memory")
    constants = shape.constants(shape.band(weights, 0))
    kt = 8 if shape.outer % 8 == 0 else 4
    turned = "AT(w, c, RH - 1 - r, RW - 1 - s, k)"
    defined = {**constants, "KT": kt, "WEIGHT": "AT(w, k, r, s, c)" if forward else turned}
    places = {"x": first, "w": second, "y": out, **(beside or {})}
    units = constants["N"] * constants["BANDS"]
    text = _applied(epilogue) if epilogue else ""
    blocks = min(units, _BLOCKS_EACH * multiprocessors)
    body = _BAND + _DIRECT
    return (_launch("direct", body, places, defined, blocks, {}, written="y", epilogue=text),)


def _applied(epilogue: Epilogue) -> str:
    lines = []
    if epilogue.bias:
        lines.append("v += (float)widen(bias[(k + j) * bias_W]);")
    if epilogue.beside:
        lines.append("v += (float)widen(beside[AT(beside, n, first + p, q, k + j)]);")
    if epilogue.mask:
        lines.append("v = (float)widen(mask[AT(mask, n, first + p, q, k + j)]) > 0.0f ? v : 0.0f;")
    if epilogue.relu:
        lines.append("v = v > 0.0f || v != v ? v : 0.0f;")
    return "".join(f"        {line}\n" for line in lines)


def _wgrad(
    node: Node, g: Placement, image: Placement, out: Placement, multiprocessors: int
) -> tuple[Launch, ...]:
    shape = _shape(node, image, out.layout.shape[1:3], g)
    taps, outer = shape.taps, shape.outer
    each = -(-taps // THREADS)
    if each * outer > 96 or taps * outer > _MOST_WEIGHTS:
        raise Unmappable("more sums than registers")
    constants = shape.constants(shape.band(taps * outer, shape.y[2] * outer))
    lanes = -(-taps // each)
    constants |= {"EACH_TAPS": each, "LANES": lanes, "GROUPS": THREADS // lanes}
    units = constants["N"] * constants["BANDS"]
    fits = SCRATCH_BYTES // (4 * taps * outer)
    parts = min(units, _BLOCKS_EACH * multiprocessors, fits)
    scratch = {"part": Address(SCRATCH, 0)}
    gathering = {**constants, "PARTS": parts, "SLICES": _SLICES}
    blocks = -(-taps * outer // 32)
    return (
        _launch("direct", _BAND + _WGRAD, {"x": image, "g": g}, constants, parts, scratch),
        _launch("gathered", _GATHERED, {"w": out}, gathering, blocks, scratch, written="w"),
    )


def _shape(node: Node, image: Placement, kernel: tuple[int, ...], out: Placement) -> _Shape:
    """What a thread computes: of the gradient for the image, a convolution of what comes from
    behind with the turned kernel."""
    x, y, a = image.layout.shape, out.layout.shape, node.attrs
    r, s = kernel
    (top, _), (left, _) = a["pad"]
    if node.op == "conv2d_dgrad":
        (dh, dw) = a["dilation"]
        top, left = dh * (r - 1) - top, dw * (s - 1) - left
    return _Shape(x, y, (r, s), a["stride"], a["dilation"], (top, left))


def _launch(
    name: str,
    template: str,
    places: Mapping[str, Placement],
    constants: Mapping[str, Any],
    blocks: int,
    addresses: Mapping[str, Address],
    written: str = "",
    **text: str,
) -> Launch:
    """A source with its constants; `places` are pointers to elements, `addresses` to bytes."""
    lines, given, words, defined = "", list[str](), list[Word](), dict(constants)
    for p, place in places.items():
        parameter, line, word = pointer(p, place, p == written)
        given.append(parameter)
        words.append(word)
        lines += line
        defined |= dict(_strides(p, place))
    words += addresses.values()
    parameters = ", ".join((*given, *(f"i64 {a}_at" for a in addresses)))
    macros = "".join(f"#define {k} {v}\n" for k, v in defined.items())
    if "x" in places:
        macros += f"#define X {MEMORY[places['x'].dtype]}\n"
    body = template.format(parameters=parameters, places=lines, **text)
    return Launch(f"{PRELUDE}\n{macros}{_HEAD}{body}", name, (blocks, 1), THREADS, tuple(words))


def _strides(name: str, place: Placement) -> Iterator[tuple[str, int]]:
    """The strides of an image, or the one of a vector."""
    layout = place.layout
    if name == "bias":
        yield "bias_W", layout.strides[-1]
        return
    if len(layout.shape) != 4 or (layout.strides[3] != 1 and layout.shape[3] > 1):
        raise Unmappable("channels do not follow each other")
    for axis, stride in zip("NHW", layout.strides, strict=False):
        yield f"{name}_{axis}", stride

"""Direct convolution kernels for images of few channels, and their gradients.

Libraries compute with multiples of eight channels, so images of one, three or six leave most of
their tiles empty. Here a block holds a band of an image (padded with zeros) and all weights in
shared memory, as floats; a thread computes some channels of a pixel of the result, or the gradient
of some weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from netdsl.backends.cuda.c_expression import MEMORY_TYPES, pointer_parameter
from netdsl.backends.cuda.cuda_launch import (
    SCRATCH,
    SCRATCH_BYTES,
    THREADS_PER_BLOCK,
    Address,
    CudaLaunch,
    KernelArgument,
)
from netdsl.backends.cuda.epilogue import Epilogue
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.placement import Placement
from netdsl.types import Node

_MAX_SHARED_BYTES = 44 << 10
"""Bytes of shared memory that a block may use."""
_MAX_WEIGHTS = 4096
_MAX_CHANNELS = 64
_BLOCKS_PER_MULTIPROCESSOR = 4
_SLICES = 8
"""Threads that add up the partial sums of one weight's gradient."""

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

_PARTIAL_SUM_REDUCTION = """
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
class _ConvolutionShape:
    """A convolution from images `x` to images `y` over windows of `kernel`."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    """How far above and left of the first pixel the first window starts."""

    @property
    def taps(self) -> int:
        return prod(self.kernel) * self.x[3]

    @property
    def padded_channels(self) -> int:
        """The channels of the result, padded to a multiple of 4."""
        return -(-self.y[3] // 4) * 4

    def band(self, other_floats: int, floats_per_row: int) -> tuple[int, int, int]:
        """Returns the rows of the result that a block computes at once, and the height and width of
        the image band that it holds for them, so that the band, `other_floats` and `floats_per_row`
        for each row fit into shared memory."""
        band_width = (self.y[2] - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        for rows in range(self.y[1], 0, -1):
            band_height = (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
            if (
                4 * (band_height * band_width * self.x[3] + other_floats + rows * floats_per_row)
                <= _MAX_SHARED_BYTES
            ):
                return rows, band_height, band_width
        raise UnsupportedKernelError("a row of the image does not fit into shared memory")

    def constants(self, band: tuple[int, int, int]) -> dict[str, int]:
        rows, band_height, band_width = band
        pairs: dict[str, tuple[int, ...]] = {
            "N C XH XW": (self.x[0], self.x[3], *self.x[1:3]),
            "K KP YH YW": (self.y[3], self.padded_channels, *self.y[1:3]),
            "RH RW SH SW DH DW": (*self.kernel, *self.stride, *self.dilation),
            "TOP LEFT TAPS": (*self.pad, self.taps),
            "BAND BANDS TALL WIDE": (rows, -(-self.y[1] // rows), band_height, band_width),
        }
        return {n: v for names, vs in pairs.items() for n, v in zip(names.split(), vs, strict=True)}


def has_few_channels(node: Node, image: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Returns whether a convolution, or a gradient of one, between images of these shapes has so
    few channels that a direct kernel may be the fastest."""
    a = node.attrs
    is_convolution = node.op != "conv2d_dgrad" or a["stride"] == (1, 1)
    channels = image[3], result[3]
    is_multiple_of_8 = all(c % 8 == 0 for c in channels)
    is_small = max(channels) <= _MAX_CHANNELS and not (is_multiple_of_8 and min(channels) > 16)
    return is_convolution and is_small and a["groups"] == 1


def direct_launches(
    node: Node,
    operands: tuple[Placement, Placement],
    out: Placement,
    multiprocessors: int,
    epilogue: Epilogue | None = None,
    epilogue_operands: Mapping[str, Placement] | None = None,
) -> tuple[CudaLaunch, ...]:
    """Returns the launches of a convolution or a gradient of one; `epilogue_operands` are named as
    in `Epilogue.operand_names`. Raises UnsupportedKernelError if there is no kernel."""
    first, second = operands
    if "float64" in (first.dtype, second.dtype, out.dtype):
        raise UnsupportedKernelError("direct convolutions add up in 32 bits")
    if node.op == "conv2d_wgrad":
        return _wgrad_launches(node, first, second, out, multiprocessors)
    is_forward = node.op == "conv2d"
    shape = _make_shape(node, first, second.layout.shape[1:3], out)
    weights = shape.taps * shape.padded_channels
    if weights > _MAX_WEIGHTS:
        raise UnsupportedKernelError("too many weights for shared memory")
    constants = shape.constants(shape.band(weights, 0))
    kt = 8 if shape.padded_channels % 8 == 0 else 4
    flipped_weight = "AT(w, c, RH - 1 - r, RW - 1 - s, k)"
    macros = {
        **constants,
        "KT": kt,
        "WEIGHT": "AT(w, k, r, s, c)" if is_forward else flipped_weight,
    }
    places = {"x": first, "w": second, "y": out, **(epilogue_operands or {})}
    band_count = constants["N"] * constants["BANDS"]
    text = _epilogue_code(epilogue) if epilogue else ""
    blocks = min(band_count, _BLOCKS_PER_MULTIPROCESSOR * multiprocessors)
    body = _BAND + _DIRECT
    return (
        _make_launch("direct", body, places, macros, blocks, {}, output_name="y", epilogue=text),
    )


def _epilogue_code(epilogue: Epilogue) -> str:
    lines = []
    if epilogue.bias:
        lines.append("v += (float)widen(bias[(k + j) * bias_W]);")
    if epilogue.addend:
        lines.append("v += (float)widen(beside[AT(beside, n, first + p, q, k + j)]);")
    if epilogue.mask:
        lines.append("v = (float)widen(mask[AT(mask, n, first + p, q, k + j)]) > 0.0f ? v : 0.0f;")
    if epilogue.relu:
        lines.append("v = v > 0.0f || v != v ? v : 0.0f;")
    return "".join(f"        {line}\n" for line in lines)


def _wgrad_launches(
    node: Node, g: Placement, image: Placement, out: Placement, multiprocessors: int
) -> tuple[CudaLaunch, ...]:
    shape = _make_shape(node, image, out.layout.shape[1:3], g)
    taps, padded_channels = shape.taps, shape.padded_channels
    taps_per_thread = -(-taps // THREADS_PER_BLOCK)
    if taps_per_thread * padded_channels > 96 or taps * padded_channels > _MAX_WEIGHTS:
        raise UnsupportedKernelError("too many sums for registers")
    constants = shape.constants(shape.band(taps * padded_channels, shape.y[2] * padded_channels))
    lanes = -(-taps // taps_per_thread)
    constants |= {
        "EACH_TAPS": taps_per_thread,
        "LANES": lanes,
        "GROUPS": THREADS_PER_BLOCK // lanes,
    }
    band_count = constants["N"] * constants["BANDS"]
    max_parts = SCRATCH_BYTES // (4 * taps * padded_channels)
    parts = min(band_count, _BLOCKS_PER_MULTIPROCESSOR * multiprocessors, max_parts)
    scratch = {"part": Address(SCRATCH, 0)}
    reduction_constants = {**constants, "PARTS": parts, "SLICES": _SLICES}
    blocks = -(-taps * padded_channels // 32)
    return (
        _make_launch("direct", _BAND + _WGRAD, {"x": image, "g": g}, constants, parts, scratch),
        _make_launch(
            "gathered",
            _PARTIAL_SUM_REDUCTION,
            {"w": out},
            reduction_constants,
            blocks,
            scratch,
            output_name="w",
        ),
    )


def _make_shape(
    node: Node, image: Placement, kernel: tuple[int, ...], out: Placement
) -> _ConvolutionShape:
    """Returns the convolution to compute; the gradient for an image is one too, of the result's
    gradient with the flipped kernel."""
    x, y, a = image.layout.shape, out.layout.shape, node.attrs
    r, s = kernel
    (top, _), (left, _) = a["pad"]
    if node.op == "conv2d_dgrad":
        (dh, dw) = a["dilation"]
        top, left = dh * (r - 1) - top, dw * (s - 1) - left
    return _ConvolutionShape(x, y, (r, s), a["stride"], a["dilation"], (top, left))


def _make_launch(
    name: str,
    template: str,
    places: Mapping[str, Placement],
    constants: Mapping[str, Any],
    blocks: int,
    addresses: Mapping[str, Address],
    output_name: str = "",
    **text: str,
) -> CudaLaunch:
    """Returns a launch of a template with its constants; `places` become pointers to elements,
    `addresses` to bytes. `output_name` is the place that is written."""
    lines, declarations, words, defined = "", list[str](), list[KernelArgument](), dict(constants)
    for p, place in places.items():
        parameter, line, word = pointer_parameter(p, place, p == output_name)
        declarations.append(parameter)
        words.append(word)
        lines += line
        defined |= dict(_strides(p, place))
    words += addresses.values()
    parameters = ", ".join((*declarations, *(f"i64 {a}_at" for a in addresses)))
    macros = "".join(f"#define {k} {v}\n" for k, v in defined.items())
    if "x" in places:
        macros += f"#define X {MEMORY_TYPES[places['x'].dtype]}\n"
    body = template.format(parameters=parameters, places=lines, **text)
    return CudaLaunch(
        f"{PRELUDE}\n{macros}{_HEAD}{body}", name, (blocks, 1), THREADS_PER_BLOCK, tuple(words)
    )


def _strides(name: str, place: Placement) -> Iterator[tuple[str, int]]:
    """Yields the strides of an image, or the one of a vector."""
    layout = place.layout
    if name == "bias":
        yield "bias_W", layout.strides[-1]
        return
    if len(layout.shape) != 4 or (layout.strides[3] != 1 and layout.shape[3] > 1):
        raise UnsupportedKernelError("channels are not contiguous")
    for axis, stride in zip("NHW", layout.strides, strict=False):
        yield f"{name}_{axis}", stride

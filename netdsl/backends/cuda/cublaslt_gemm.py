"""Matrix products by cuBLASLt's fastest algorithm, for all strides that one leading dimension can
express."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

from netdsl.backends.cuda.cuda_launch import WORKSPACE_BYTES
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.libraries import load_cublaslt
from netdsl.backends.cuda.tuning import TimedCandidate
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.layout import IntTuple, Layout
from netdsl.plan.placement import Placement

_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_TYPES = {"float64": 70}
_DEFAULT_COMPUTE_TYPE = 68
_RESULT_BYTES = 96
_ALGORITHM_BYTES = 64
"""The first bytes of a heuristic result: the algorithm."""
_STATE_BYTES = slice(72, 76)
"""The bytes of a heuristic result that hold its status: 0 for a usable algorithm."""
_MAX_ALGORITHMS = 8
_NO_EPILOGUE, _RELU, _BIAS = 1, 2, 4


@dataclass(frozen=True)
class Matrix:
    """A column-major matrix as cuBLASLt describes it; `is_transposed` if it is to be transposed."""

    dtype: str
    rows: int
    cols: int
    leading_dimension: int
    is_transposed: bool
    batch_count: int = 1
    batch_stride: int = 0

    def __repr__(self) -> str:
        """A part of the keys of the tuning cache: fixed, whatever the fields are called."""
        return (
            f"Matrix(dtype={self.dtype!r}, rows={self.rows}, cols={self.cols}, "
            f"leading={self.leading_dimension}, turned={self.is_transposed}, "
            f"count={self.batch_count}, apart={self.batch_stride})"
        )


@dataclass(frozen=True)
class Gemm:
    """D = op(A) op(B), column-major: the result transposed, so that the weight comes first."""

    a: Matrix
    b: Matrix
    d: Matrix
    alignments: IntTuple
    addend: Matrix | None = None
    bias_alignment: int = 0
    """The alignment of the bias in bytes; 0 without a bias."""
    relu: bool = False

    def __repr__(self) -> str:
        """A part of the keys of the tuning cache, as `Matrix.__repr__` is."""
        return (
            f"Product(a={self.a}, b={self.b}, d={self.d}, alignments={self.alignments}, "
            f"beside={self.addend}, bias={self.bias_alignment}, relu={self.relu})"
        )

    @property
    def epilogue(self) -> int:
        """The value of cublasLtEpilogue_t."""
        return _RELU * self.relu + _BIAS * bool(self.bias_alignment) or _NO_EPILOGUE


def make_gemm(x: Placement, w: Placement, out: Placement) -> Gemm:
    """Returns the product x w'. Raises UnsupportedKernelError if strides forbid it."""
    batch = len(w.layout.shape) - 2
    a = _make_matrix(w.dtype, _flatten_axes(w.layout, batch), is_first=True)
    b = _make_matrix(x.dtype, _flatten_axes(x.layout, batch), is_first=False)
    return Gemm(a, b, _result_matrix(out, batch), _alignments(w, x, out))


def make_gram(x: Placement, out: Placement) -> Gemm:
    """Returns the product x'x. Raises UnsupportedKernelError if strides forbid it."""
    m = _flatten_axes(x.layout, 0)
    transposed = _StridedBatch(1, 0, m.cols, m.rows, m.col_stride, m.row_stride)
    a, b = (_make_matrix(x.dtype, transposed, first) for first in (True, False))
    return Gemm(a, b, _result_matrix(out, 0), _alignments(x, x, out))


def with_epilogue(
    gemm: Gemm,
    out: Placement,
    addend: Placement | None,
    bias: Placement | None,
    relu: bool,
) -> Gemm:
    """Returns the product with a matrix and a bias added to it and a ReLU. Raises
    UnsupportedKernelError for a batch of products, and if the layout of `addend` is none that a
    result may have."""
    if gemm.d.batch_count > 1 or (addend and addend.dtype != out.dtype):
        raise UnsupportedKernelError("the addend has another type, or the product is batched")
    addend_matrix = _result_matrix(addend, 0) if addend else None
    alignments = (*gemm.alignments, *(_alignments(addend) if addend else ()))
    (bias_alignment,) = _alignments(bias) if bias else (0,)
    return replace(
        gemm, alignments=alignments, addend=addend_matrix, bias_alignment=bias_alignment, relu=relu
    )


def _result_matrix(out: Placement, batch: int) -> Matrix:
    found = _make_matrix(out.dtype, _flatten_axes(out.layout, batch), is_first=False)
    if found.is_transposed:
        raise UnsupportedKernelError("the result is transposed")
    return found


def _alignments(*places: Placement) -> IntTuple:
    return tuple(math.gcd(p.start, 256) for p in places)


def can_address(place: Placement, batch: int, is_result: bool = False) -> bool:
    """Returns whether the library can read, or write, a value in place."""
    try:
        return not (
            _make_matrix(place.dtype, _flatten_axes(place.layout, batch), False).is_transposed
            and is_result
        )
    except UnsupportedKernelError:
        return False


@dataclass(frozen=True)
class _StridedBatch:
    """A batch of row-strided matrices."""

    batch_count: int
    batch_stride: int
    rows: int
    cols: int
    row_stride: int
    col_stride: int


def _flatten_axes(layout: Layout, batch: int) -> _StridedBatch:
    """Merges the first `batch` axes, and the others except the last one."""
    count, batch_stride = _merge_axes(layout.shape[:batch], layout.strides[:batch])
    rows, row_stride = _merge_axes(layout.shape[batch:-1], layout.strides[batch:-1])
    return _StridedBatch(
        count, batch_stride, rows, layout.shape[-1], row_stride, layout.strides[-1]
    )


def _merge_axes(shape: IntTuple, strides: IntTuple) -> tuple[int, int]:
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            raise UnsupportedKernelError("the rows of a matrix have no common stride")
    return math.prod(shape), axes[-1][1] if axes else 0


def _make_matrix(dtype: str, m: _StridedBatch, is_first: bool) -> Matrix:
    """Describes a row-major matrix. Read column-major it is its transpose, so the first one (the
    weight) is transposed back."""
    rows, cols = m.rows, m.cols
    row_stride = m.row_stride if rows > 1 else max(cols, 1)
    if m.col_stride == 1 or cols == 1:
        leading = max(row_stride, cols) if rows == 1 else row_stride
        if leading >= cols:
            return Matrix(dtype, cols, rows, leading, is_first, m.batch_count, m.batch_stride)
    if m.row_stride == 1 or rows == 1:
        leading = m.col_stride if cols > 1 else rows
        if leading >= rows:
            return Matrix(dtype, rows, cols, leading, not is_first, m.batch_count, m.batch_stride)
    raise UnsupportedKernelError("neither axis of a matrix has stride 1")


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"cuBLASLt refuses {what} with status {status}")


@cache
def _handle() -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(load_cublaslt().cublasLtCreate(ctypes.byref(handle)), "a handle")
    return handle


def _set_attribute(descriptor: ctypes.c_void_p, number: int, value: Any) -> None:
    status = load_cublaslt().cublasLtMatmulDescSetAttribute(
        descriptor, ctypes.c_int(number), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
    )
    _check(status, "a product's description")


def _make_layout(m: Matrix) -> ctypes.c_void_p:
    found = ctypes.c_void_p()
    lib = load_cublaslt()
    status = lib.cublasLtMatrixLayoutCreate(
        ctypes.byref(found),
        ctypes.c_int(_DATA_TYPES[m.dtype]),
        ctypes.c_uint64(m.rows),
        ctypes.c_uint64(m.cols),
        ctypes.c_int64(m.leading_dimension),
    )
    _check(status, "a layout")
    if m.batch_count > 1:
        for number, value in (
            (5, ctypes.c_int32(m.batch_count)),
            (6, ctypes.c_int64(m.batch_stride)),
        ):
            status = lib.cublasLtMatrixLayoutSetAttribute(
                found,
                ctypes.c_int(number),
                ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )
            _check(status, "a batch")
    return found


@dataclass(frozen=True)
class GemmPointers:
    """The addresses of a product's matrices and bias."""

    weight: int
    inputs: int
    result: int
    addend: int = 0
    bias: int = 0


class _GemmCall:
    """A product with its descriptors, for any addresses and any algorithm."""

    def __init__(self, device: Device, gemm: Gemm) -> None:
        self.device = device
        self.gemm = gemm
        self.lib = load_cublaslt()
        scale = ctypes.c_double if gemm.d.dtype == "float64" else ctypes.c_float
        self.one, self.zero = scale(1), scale(0)
        la, lb, ld = (_make_layout(m) for m in (gemm.a, gemm.b, gemm.d))
        # an in-place addend must have the same layout descriptor
        lc = ld if gemm.addend in (None, gemm.d) else _make_layout(gemm.addend)
        self.layouts = (la, lb, lc, ld)

    def make_descriptor(self, bias: int) -> ctypes.c_void_p:
        """Returns a descriptor of the operation, with the address of the bias."""
        gemm, descriptor = self.gemm, ctypes.c_void_p()
        is_double = gemm.d.dtype == "float64"
        compute = _COMPUTE_TYPES.get(gemm.d.dtype, _DEFAULT_COMPUTE_TYPE)
        status = self.lib.cublasLtMatmulDescCreate(
            ctypes.byref(descriptor), ctypes.c_int(compute), ctypes.c_int(is_double)
        )
        _check(status, "a product")
        for number, is_transposed in ((3, gemm.a.is_transposed), (4, gemm.b.is_transposed)):
            _set_attribute(descriptor, number, ctypes.c_int32(is_transposed))
        if gemm.epilogue != _NO_EPILOGUE:
            _set_attribute(descriptor, 7, ctypes.c_uint32(gemm.epilogue))
        if gemm.bias_alignment:
            _set_attribute(descriptor, 8, ctypes.c_void_p(bias))
        return descriptor

    def find_algorithms(self, bias: int) -> list[Any]:
        """Returns the algorithms that the library's heuristic suggests, the best guess first."""
        preference = ctypes.c_void_p()
        _check(self.lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "a preference")
        a, b, d, *rest = self.gemm.alignments
        alignments = (a, b, *(rest or (d,)), d)
        settings: list[tuple[int, Any]] = [(1, ctypes.c_uint64(WORKSPACE_BYTES))]
        settings += [(n, ctypes.c_uint32(v)) for n, v in zip((5, 6, 7, 8), alignments, strict=True)]
        for number, value in settings:
            status = self.lib.cublasLtMatmulPreferenceSetAttribute(
                preference,
                ctypes.c_int(number),
                ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )
            _check(status, "a preference")
        results = (ctypes.c_uint8 * (_RESULT_BYTES * _MAX_ALGORITHMS))()
        found = ctypes.c_int(0)
        status = self.lib.cublasLtMatmulAlgoGetHeuristic(
            _handle(), self.make_descriptor(bias), *self.layouts, preference,
            ctypes.c_int(_MAX_ALGORITHMS), results, ctypes.byref(found),
        )  # fmt: skip
        _check(status, "to suggest an algorithm")
        size = _RESULT_BYTES
        candidates = [results[size * i : size * (i + 1)] for i in range(found.value)]
        return [(ctypes.c_uint8 * size)(*r) for r in candidates if not any(r[_STATE_BYTES])]

    def make_thunk(self, algorithm: Any, pointers: GemmPointers) -> Thunk:
        pw, px, pd = (
            ctypes.c_void_p(p) for p in (pointers.weight, pointers.inputs, pointers.result)
        )
        pc = ctypes.c_void_p(pointers.addend) if self.gemm.addend else pd
        la, lb, lc, ld = self.layouts
        workspace = ctypes.c_void_p(int(self.device.workspace.data.ptr))
        stream = ctypes.c_void_p(int(self.device.stream.ptr))
        one = ctypes.byref(self.one)
        beta = one if self.gemm.addend else ctypes.byref(self.zero)
        size, algorithm_pointer = ctypes.c_size_t(WORKSPACE_BYTES), ctypes.byref(algorithm)
        call, handle, descriptor = (
            self.lib.cublasLtMatmul,
            _handle(),
            self.make_descriptor(pointers.bias),
        )

        def run() -> None:
            status = call(
                handle, descriptor, one, pw, la, px, lb, beta, pc, lc, pd, ld,
                algorithm_pointer, workspace, size, stream,
            )  # fmt: skip
            _check(status, "a product")

        return run


def bind(device: Device, gemm: Gemm, pointers: GemmPointers) -> Thunk:
    """Binds the product to addresses, with its fastest algorithm. Raises RuntimeError without one."""
    key = ("product", gemm)
    if key not in device.chosen_plans:
        call = _GemmCall(device, gemm)
        candidates = [
            TimedCandidate(bytes(a)[:_ALGORITHM_BYTES].hex(), partial(_identity, a))
            for a in call.find_algorithms(pointers.bias)
        ]
        measure = lambda a: device.measure_milliseconds(call.make_thunk(a, pointers))
        device.chosen_plans[key] = (
            call,
            device.tuner.choose_fastest(key, candidates, measure, _MAX_ALGORITHMS),
        )
    call, algorithm = device.chosen_plans[key]
    return call.thunk(algorithm, pointers)


def _identity(algorithm: Any) -> Any:
    return algorithm

"""Matrix products by cuBLASLt: any strides that one leading dimension can express, timed."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import WORKSPACE_BYTES
from netdsl.backends.cuda.libraries import cublaslt
from netdsl.backends.cuda.tuning import Candidate
from netdsl.plan.layout import IntTuple, Layout
from netdsl.plan.placement import Placement

_TYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE = {"float64": 70}
_COMPUTE_32 = 68
_RESULT_BYTES = 96
_ALGORITHM_BYTES = 64
"""The part of what the heuristic returns that says which algorithm it is."""
_STATE = slice(72, 76)
"""The part that is not zero where an algorithm is none."""
_MOST = 8
_NOTHING, _RELU, _BIAS = 1, 2, 4


@dataclass(frozen=True)
class Matrix:
    """A column-major matrix as the library wants it: `turned` where it is to be transposed."""

    dtype: str
    rows: int
    cols: int
    leading: int
    turned: bool
    count: int = 1
    apart: int = 0


@dataclass(frozen=True)
class Product:
    """D = op(A) op(B), column-major: the result's transpose, weight first."""

    a: Matrix
    b: Matrix
    d: Matrix
    alignments: IntTuple
    beside: Matrix | None = None
    bias: int = 0
    """What the address of the bias is a multiple of, where there is one."""
    relu: bool = False

    @property
    def epilogue(self) -> int:
        """The library's number for what is done before the result is written."""
        return _RELU * self.relu + _BIAS * bool(self.bias) or _NOTHING


def product_of(x: Placement, w: Placement, out: Placement) -> Product:
    """The product x w' at these places. Raises Unmappable where strides forbid it."""
    batch = len(w.layout.shape) - 2
    a = _matrix(w.dtype, _flat(w.layout, batch), first=True)
    b = _matrix(x.dtype, _flat(x.layout, batch), first=False)
    return Product(a, b, _result(out, batch), _alignments(w, x, out))


def gram_of(x: Placement, out: Placement) -> Product:
    """The product x'x at these places. Raises Unmappable where strides forbid it."""
    m = _flat(x.layout, 0)
    turned = _Rows(1, 0, m.cols, m.rows, m.col_stride, m.row_stride)
    a, b = (_matrix(x.dtype, turned, first) for first in (True, False))
    return Product(a, b, _result(out, 0), _alignments(x, x, out))


def finished(
    product: Product,
    out: Placement,
    beside: Placement | None,
    bias: Placement | None,
    relu: bool,
) -> Product:
    """The product with what is added to it and done to the sum. Raises Unmappable for a batch of
    products, and where `beside` does not lie like a result."""
    if product.d.count > 1 or (beside and beside.dtype != out.dtype):
        raise Unmappable("what is added has another type, or there is a batch of products")
    added = _result(beside, 0) if beside else None
    aligned = (*product.alignments, *(_alignments(beside) if beside else ()))
    (even,) = _alignments(bias) if bias else (0,)
    return replace(product, alignments=aligned, beside=added, bias=even, relu=relu)


def _result(out: Placement, batch: int) -> Matrix:
    found = _matrix(out.dtype, _flat(out.layout, batch), first=False)
    if found.turned:
        raise Unmappable("the result is transposed")
    return found


def _alignments(*places: Placement) -> IntTuple:
    return tuple(math.gcd(p.start, 256) for p in places)


def mappable(place: Placement, batch: int, result: bool = False) -> bool:
    """Whether the library reads, or writes, a value where it lies."""
    try:
        return not (_matrix(place.dtype, _flat(place.layout, batch), False).turned and result)
    except Unmappable:
        return False


@dataclass(frozen=True)
class _Rows:
    """A batch of row-strided matrices."""

    count: int
    apart: int
    rows: int
    cols: int
    row_stride: int
    col_stride: int


def _flat(layout: Layout, batch: int) -> _Rows:
    """The axes of a batch as one, and those before the last as one."""
    count, apart = _joined(layout.shape[:batch], layout.strides[:batch])
    rows, row_stride = _joined(layout.shape[batch:-1], layout.strides[batch:-1])
    return _Rows(count, apart, rows, layout.shape[-1], row_stride, layout.strides[-1])


def _joined(shape: IntTuple, strides: IntTuple) -> tuple[int, int]:
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            raise Unmappable("rows of a matrix do not lie evenly")
    return math.prod(shape), axes[-1][1] if axes else 0


def _matrix(dtype: str, m: _Rows, first: bool) -> Matrix:
    """Row-major memory read column-major is the transpose: the weight is to be turned back."""
    rows, cols = m.rows, m.cols
    row_stride = m.row_stride if rows > 1 else max(cols, 1)
    if m.col_stride == 1 or cols == 1:
        leading = max(row_stride, cols) if rows == 1 else row_stride
        if leading >= cols:
            return Matrix(dtype, cols, rows, leading, first, m.count, m.apart)
    if m.row_stride == 1 or rows == 1:
        leading = m.col_stride if cols > 1 else rows
        if leading >= rows:
            return Matrix(dtype, rows, cols, leading, not first, m.count, m.apart)
    raise Unmappable("neither axis of a matrix has stride 1")


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"cuBLASLt refuses {what} with status {status}")


@cache
def _handle() -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(cublaslt().cublasLtCreate(ctypes.byref(handle)), "a handle")
    return handle


def _set(what: ctypes.c_void_p, number: int, value: Any) -> None:
    status = cublaslt().cublasLtMatmulDescSetAttribute(
        what, ctypes.c_int(number), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
    )
    _check(status, "a product's description")


def _layout(m: Matrix) -> ctypes.c_void_p:
    found = ctypes.c_void_p()
    lib = cublaslt()
    status = lib.cublasLtMatrixLayoutCreate(
        ctypes.byref(found),
        ctypes.c_int(_TYPE[m.dtype]),
        ctypes.c_uint64(m.rows),
        ctypes.c_uint64(m.cols),
        ctypes.c_int64(m.leading),
    )
    _check(status, "a layout")
    if m.count > 1:
        for number, value in ((5, ctypes.c_int32(m.count)), (6, ctypes.c_int64(m.apart))):
            status = lib.cublasLtMatrixLayoutSetAttribute(
                found,
                ctypes.c_int(number),
                ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )
            _check(status, "a batch")
    return found


@dataclass(frozen=True)
class Pointers:
    """Where a product's weight, rows and result begin, and what is added to it."""

    weight: int
    rows: int
    result: int
    beside: int = 0
    bias: int = 0


class _Call:
    """A product with its descriptors, ready for addresses and an algorithm."""

    def __init__(self, device: Device, product: Product) -> None:
        self.device = device
        self.product = product
        self.lib = cublaslt()
        scale = ctypes.c_double if product.d.dtype == "float64" else ctypes.c_float
        self.one, self.zero = scale(1), scale(0)
        la, lb, ld = (_layout(m) for m in (product.a, product.b, product.d))
        # what is written over must be described by the same layout
        lc = ld if product.beside in (None, product.d) else _layout(product.beside)
        self.layouts = (la, lb, lc, ld)

    def described(self, bias: int) -> ctypes.c_void_p:
        """What is computed; it holds the bias's address."""
        product, what = self.product, ctypes.c_void_p()
        double = product.d.dtype == "float64"
        compute = _COMPUTE.get(product.d.dtype, _COMPUTE_32)
        status = self.lib.cublasLtMatmulDescCreate(
            ctypes.byref(what), ctypes.c_int(compute), ctypes.c_int(double)
        )
        _check(status, "a product")
        for number, turned in ((3, product.a.turned), (4, product.b.turned)):
            _set(what, number, ctypes.c_int32(turned))
        if product.epilogue != _NOTHING:
            _set(what, 7, ctypes.c_uint32(product.epilogue))
        if product.bias:
            _set(what, 8, ctypes.c_void_p(bias))
        return what

    def algorithms(self, bias: int) -> list[Any]:
        """What the library's heuristic offers, the best guess first."""
        preference = ctypes.c_void_p()
        _check(self.lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "a preference")
        a, b, d, *rest = self.product.alignments
        aligned = (a, b, *(rest or (d,)), d)
        settings: list[tuple[int, Any]] = [(1, ctypes.c_uint64(WORKSPACE_BYTES))]
        settings += [(n, ctypes.c_uint32(v)) for n, v in zip((5, 6, 7, 8), aligned, strict=True)]
        for number, value in settings:
            status = self.lib.cublasLtMatmulPreferenceSetAttribute(
                preference,
                ctypes.c_int(number),
                ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )
            _check(status, "a preference")
        results = (ctypes.c_uint8 * (_RESULT_BYTES * _MOST))()
        found = ctypes.c_int(0)
        status = self.lib.cublasLtMatmulAlgoGetHeuristic(
            _handle(), self.described(bias), *self.layouts, preference, ctypes.c_int(_MOST),
            results, ctypes.byref(found),
        )  # fmt: skip
        _check(status, "to suggest an algorithm")
        size = _RESULT_BYTES
        offered = [results[size * i : size * (i + 1)] for i in range(found.value)]
        return [(ctypes.c_uint8 * size)(*r) for r in offered if not any(r[_STATE])]

    def thunk(self, algorithm: Any, at: Pointers) -> Thunk:
        pw, px, pd = (ctypes.c_void_p(p) for p in (at.weight, at.rows, at.result))
        pc = ctypes.c_void_p(at.beside) if self.product.beside else pd
        la, lb, lc, ld = self.layouts
        workspace = ctypes.c_void_p(int(self.device.workspace.data.ptr))
        stream = ctypes.c_void_p(int(self.device.stream.ptr))
        one = ctypes.byref(self.one)
        share = one if self.product.beside else ctypes.byref(self.zero)
        size, how = ctypes.c_size_t(WORKSPACE_BYTES), ctypes.byref(algorithm)
        call, handle, what = self.lib.cublasLtMatmul, _handle(), self.described(at.bias)

        def run() -> None:
            status = call(
                handle, what, one, pw, la, px, lb, share, pc, lc, pd, ld, how, workspace, size,
                stream,
            )  # fmt: skip
            _check(status, "a product")

        return run


def bound(device: Device, product: Product, at: Pointers) -> Thunk:
    """The product at these addresses by its fastest algorithm. Raises RuntimeError where cuBLASLt
    has none."""
    key = ("product", product)
    if key not in device.chosen:
        call = _Call(device, product)
        offered = [
            Candidate(bytes(a)[:_ALGORITHM_BYTES].hex(), partial(_same, a))
            for a in call.algorithms(at.bias)
        ]
        timed = lambda a: device.milliseconds(call.thunk(a, at))
        device.chosen[key] = call, device.tuner.fastest(key, offered, timed, _MOST)
    call, algorithm = device.chosen[key]
    return call.thunk(algorithm, at)


def _same(algorithm: Any) -> Any:
    return algorithm

"""Reading and writing memory by address in Numba's functions, and calling functions by address."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic
_LONG = ir.IntType(64)
_LLVM = {types.int64: _LONG, types.float32: ir.FloatType(), types.int32: ir.IntType(32)}


def _loader(kind: Any) -> Any:
    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
            return b.load(b.inttoptr(args[0], _LLVM[kind].as_pointer()))

        return kind(types.int64), emit

    return load


def _storer(kind: Any) -> Any:
    @intrinsic
    def store(typing: Any, address: Any, value: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
            b.store(args[1], b.inttoptr(args[0], _LLVM[kind].as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, kind), emit

    return store


long_at = _loader(types.int64)
int_at = _loader(types.int32)
float_at = _loader(types.float32)
put_long = _storer(types.int64)
put_float = _storer(types.float32)


def _caller(count: int, emit: Any) -> Any:
    return types.void(*[types.int64] * (count + 1)), emit


def _call(context: Any, b: Any, signature: Any, args: Any) -> Any:
    function, *given = args
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(given))
    b.call(b.inttoptr(function, kind.as_pointer()), given)
    return context.get_dummy_value()


@intrinsic
def call_task(typing: Any, f: Any, args: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Calls a task of a kernel: `f(args, a, b, c, d, e)`."""
    return _caller(6, _call)


@intrinsic
def call_tile(
    typing: Any,
    f: Any,
    a: Any,
    ai: Any,
    ak: Any,
    b: Any,
    bk: Any,
    c: Any,
    ci: Any,
    taps: Any,
    count: Any,
    depth: Any,
    add: Any,
    columns: Any,
    ahead: Any,
    jump: Any,
    times: Any,
    reads: Any,
) -> Any:
    """Calls a micro-kernel; see tile.py."""
    return _caller(16, _call)


@intrinsic
def take(typing: Any, address: Any) -> Any:
    """The number at an address, which is raised by one: no two threads take the same."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.inttoptr(args[0], _LONG.as_pointer())
        return b.atomic_rmw("add", place, ir.Constant(_LONG, 1), "seq_cst")

    return types.int64(types.int64), emit


@intrinsic
def claim(typing: Any, address: Any) -> Any:
    """Writes 1 to an address and gives what was there: 0 for one thread alone."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.inttoptr(args[0], _LONG.as_pointer())
        return b.atomic_rmw("xchg", place, ir.Constant(_LONG, 1), "seq_cst")

    return types.int64(types.int64), emit


@intrinsic
def touch(typing: Any, address: Any) -> Any:
    """Writes what is at an address, whoever else writes there: in its place zero for zero, which
    no compiler makes a mere reading of."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.inttoptr(args[0], _LONG.as_pointer())
        zero = ir.Constant(_LONG, 0)
        b.cmpxchg(place, zero, zero, "monotonic", "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def peek(typing: Any, address: Any) -> Any:
    """The number at an address as other threads have left it."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.inttoptr(args[0], _LONG.as_pointer())
        return b.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic
def publish(typing: Any, address: Any, value: Any) -> Any:
    """Writes a number for other threads, after all that was written before."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.inttoptr(args[0], _LONG.as_pointer())
        b.store_atomic(args[1], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def rest(typing: Any) -> Any:
    """Tells the processor that this thread only waits."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit

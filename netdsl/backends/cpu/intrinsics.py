"""What loops do that Python has no word for: memory by address, functions by address, and what
threads leave each other. Each is an instruction or two; see numba_loops.py."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

_I64, _F32, _I32 = ir.IntType(64), ir.FloatType(), ir.IntType(32)
_VOID = ir.VoidType()


@dataclass(frozen=True, eq=False)
class Intrinsic:
    """A function of machine code: Numba's names of the types that it takes and gives, and what
    writes it with an IR builder."""

    argument_types: tuple[str, ...]
    result_type: str
    emit: Callable[[Any, Sequence[Any]], Any]

    def __call__(self, *args: Any) -> Any:
        raise TypeError("this exists only as machine code")


def _make_intrinsic(*argument_types: str, result_type: str = "void") -> Callable[[Any], Intrinsic]:
    return lambda emit: Intrinsic(argument_types, result_type, emit)


def _to_pointer(b: Any, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


@_make_intrinsic("int64", "int64", result_type="int64")
def load_i64(b: Any, args: Sequence[Any]) -> Any:
    """The i-th of the i64 that begin at an address."""
    address, i = args
    return b.load(_to_pointer(b, b.add(address, b.mul(i, ir.Constant(_I64, 8))), _I64))


@_make_intrinsic("int64", result_type="int64")
def load_i32(b: Any, args: Sequence[Any]) -> Any:
    """A number of 32 bits."""
    return b.sext(b.load(_to_pointer(b, args[0], _I32)), _I64)


@_make_intrinsic("int64", result_type="float32")
def load_f32(b: Any, args: Sequence[Any]) -> Any:
    return b.load(_to_pointer(b, args[0], _F32))


@_make_intrinsic("int64", "int64")
def store_i64(b: Any, args: Sequence[Any]) -> Any:
    return b.store(args[1], _to_pointer(b, args[0], _I64))


@_make_intrinsic("int64", "float32")
def store_f32(b: Any, args: Sequence[Any]) -> Any:
    return b.store(args[1], _to_pointer(b, args[0], _F32))


def _emit_call(b: Any, args: Sequence[Any]) -> Any:
    function, *arguments = args
    kind = ir.FunctionType(_VOID, [_I64] * len(arguments))
    return b.call(_to_pointer(b, function, kind), arguments)


call_task = Intrinsic(("int64",) * 7, "void", _emit_call)
"""Calls a task of a kernel: `call_task(f, args, a, b, c, d, e)`."""

call_tile = Intrinsic(("int64",) * 17, "void", _emit_call)
"""Calls a micro-kernel: `call_tile(f, a, ai, ak, b, bk, c, ci, taps, count, depth, add, columns,
ahead, jump, times, reads)`; see micro_kernel.py."""


@_make_intrinsic("int64", result_type="int64")
def fetch_and_increment(b: Any, args: Sequence[Any]) -> Any:
    """The number at an address, which is raised by one: no two threads take the same."""
    return b.atomic_rmw("add", _to_pointer(b, args[0], _I64), ir.Constant(_I64, 1), "seq_cst")


@_make_intrinsic("int64", result_type="int64")
def test_and_set(b: Any, args: Sequence[Any]) -> Any:
    """Writes 1 to an address and gives what was there: 0 for one thread alone."""
    return b.atomic_rmw("xchg", _to_pointer(b, args[0], _I64), ir.Constant(_I64, 1), "seq_cst")


@_make_intrinsic("int64")
def touch_page(b: Any, args: Sequence[Any]) -> Any:
    """Writes what is at an address, whoever else writes there: in its place zero for zero, which
    no compiler makes a mere reading of."""
    zero = ir.Constant(_I64, 0)
    return b.cmpxchg(_to_pointer(b, args[0], _I64), zero, zero, "monotonic", "monotonic")


@_make_intrinsic("int64", result_type="int64")
def atomic_load(b: Any, args: Sequence[Any]) -> Any:
    """The number at an address as other threads have left it."""
    return b.load_atomic(_to_pointer(b, args[0], _I64), "seq_cst", 8)


@_make_intrinsic("int64", "int64")
def atomic_store(b: Any, args: Sequence[Any]) -> Any:
    """Writes a number for other threads, after all that was written before."""
    return b.store_atomic(args[1], _to_pointer(b, args[0], _I64), "seq_cst", 8)


@_make_intrinsic()
def cpu_pause(b: Any, args: Sequence[Any]) -> Any:
    """Tells the processor that this thread only waits."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        pause = ir.FunctionType(_VOID, [])
        name = "llvm.x86.sse2.pause"
        declared = b.module.globals.get(name) or ir.Function(b.module, pause, name)
        b.call(declared, [])

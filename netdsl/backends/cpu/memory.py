"""What loops do that Python has no word for: memory by address, functions by address, and what
threads leave each other. Each is an instruction or two; see loops.py."""

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

    takes: tuple[str, ...]
    gives: str
    emit: Callable[[Any, Sequence[Any]], Any]

    def __call__(self, *args: Any) -> Any:
        raise TypeError("this exists in machine code alone")


def _intrinsic(*takes: str, gives: str = "void") -> Callable[[Any], Intrinsic]:
    return lambda emit: Intrinsic(takes, gives, emit)


def _at(b: Any, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


@_intrinsic("int64", "int64", gives="int64")
def long_nth(b: Any, args: Sequence[Any]) -> Any:
    """The i-th of the i64 that begin at an address."""
    address, i = args
    return b.load(_at(b, b.add(address, b.mul(i, ir.Constant(_I64, 8))), _I64))


@_intrinsic("int64", gives="int64")
def int_at(b: Any, args: Sequence[Any]) -> Any:
    """A number of 32 bits."""
    return b.sext(b.load(_at(b, args[0], _I32)), _I64)


@_intrinsic("int64", gives="float32")
def float_at(b: Any, args: Sequence[Any]) -> Any:
    return b.load(_at(b, args[0], _F32))


@_intrinsic("int64", "int64")
def put_long(b: Any, args: Sequence[Any]) -> Any:
    return b.store(args[1], _at(b, args[0], _I64))


@_intrinsic("int64", "float32")
def put_float(b: Any, args: Sequence[Any]) -> Any:
    return b.store(args[1], _at(b, args[0], _F32))


def _call(b: Any, args: Sequence[Any]) -> Any:
    function, *given = args
    kind = ir.FunctionType(_VOID, [_I64] * len(given))
    return b.call(_at(b, function, kind), given)


call_task = Intrinsic(("int64",) * 7, "void", _call)
"""Calls a task of a kernel: `call_task(f, args, a, b, c, d, e)`."""

call_tile = Intrinsic(("int64",) * 17, "void", _call)
"""Calls a micro-kernel: `call_tile(f, a, ai, ak, b, bk, c, ci, taps, count, depth, add, columns,
ahead, jump, times, reads)`; see tile.py."""


@_intrinsic("int64", gives="int64")
def take(b: Any, args: Sequence[Any]) -> Any:
    """The number at an address, which is raised by one: no two threads take the same."""
    return b.atomic_rmw("add", _at(b, args[0], _I64), ir.Constant(_I64, 1), "seq_cst")


@_intrinsic("int64", gives="int64")
def claim(b: Any, args: Sequence[Any]) -> Any:
    """Writes 1 to an address and gives what was there: 0 for one thread alone."""
    return b.atomic_rmw("xchg", _at(b, args[0], _I64), ir.Constant(_I64, 1), "seq_cst")


@_intrinsic("int64")
def touch(b: Any, args: Sequence[Any]) -> Any:
    """Writes what is at an address, whoever else writes there: in its place zero for zero, which
    no compiler makes a mere reading of."""
    zero = ir.Constant(_I64, 0)
    return b.cmpxchg(_at(b, args[0], _I64), zero, zero, "monotonic", "monotonic")


@_intrinsic("int64", gives="int64")
def peek(b: Any, args: Sequence[Any]) -> Any:
    """The number at an address as other threads have left it."""
    return b.load_atomic(_at(b, args[0], _I64), "seq_cst", 8)


@_intrinsic("int64", "int64")
def publish(b: Any, args: Sequence[Any]) -> Any:
    """Writes a number for other threads, after all that was written before."""
    return b.store_atomic(args[1], _at(b, args[0], _I64), "seq_cst", 8)


@_intrinsic()
def rest(b: Any, args: Sequence[Any]) -> Any:
    """Tells the processor that this thread only waits."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        pause = ir.FunctionType(_VOID, [])
        name = "llvm.x86.sse2.pause"
        known = b.module.globals.get(name) or ir.Function(b.module, pause, name)
        b.call(known, [])

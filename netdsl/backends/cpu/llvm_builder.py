"""Writing functions in LLVM's language: loops, vectors of float32, masked memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from netdsl.backends.cpu.llvm_jit import vector_width
from netdsl.backends.cpu.record import Record, RecordField

I64, I32, I8, I1 = (ir.IntType(n) for n in (64, 32, 8, 1))
F32, F64 = ir.FloatType(), ir.DoubleType()
_LLVM_TYPES = {"i64": I64, "f64": F64, "f32": F32}
Value = Any


def const_i64(n: int) -> Value:
    return ir.Constant(I64, n)


@dataclass
class LlvmFunction:
    """A function in the making, of integers: a task's is `f(args, a, b, c, d, e)`."""

    name: str
    parameter_count: int = 6

    def __post_init__(self) -> None:
        self.module = ir.Module(self.name)
        kind = ir.FunctionType(ir.VoidType(), [I64] * self.parameter_count)
        self.function = ir.Function(self.module, kind, self.name)
        self.b = ir.IRBuilder(self.function.append_basic_block())
        self.args = self.function.args
        self._slots = 0

    def text(self) -> str:
        self.b.ret_void()
        return str(self.module)

    def record(self, record: type[Record], address: Value = None) -> Any:
        """The fields of the record at an address (the function's first argument), by name."""
        base = self.args[0] if address is None else address
        return SimpleNamespace(**{n: self._load_field(base, f) for n, f in record.layout.items()})

    def nth(self, record: type[Record], address: Value, i: Value) -> Any:
        """The fields of the i-th of the records that begin at an address."""
        return self.record(
            record, self.b.add(address, self.b.mul(i, const_i64(record.dtype.itemsize)))
        )

    def _load_field(self, base: Value, field: RecordField) -> Value:
        kind = _LLVM_TYPES[field.kind]
        at = self.b.inttoptr(self.b.add(base, const_i64(field.offset)), kind.as_pointer())
        return self.b.load(at, typ=kind)

    def load_i64(self, address: Value, i: Value) -> Value:
        """The i-th of the i64 that begin at an address."""
        at = self.b.add(address, self.b.mul(i, const_i64(8)))
        return self.b.load(self.b.inttoptr(at, I64.as_pointer()), typ=I64)

    @contextmanager
    def loop(self, start: Value, stop: Value, step: Value) -> Iterator[Value]:
        """for i in range(start, stop, step)"""
        b, f = self.b, self.function
        before = b.block
        head, body, done = (f.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(start, before)
        b.cbranch(b.icmp_signed("<", i, stop), body, done)
        b.position_at_end(body)
        yield i
        i.add_incoming(b.add(i, step), b.block)
        b.branch(head)
        b.position_at_end(done)

    def min_i64(self, x: Value, z: Value) -> Value:
        return self.b.select(self.b.icmp_signed("<", x, z), x, z)

    def max_i64(self, x: Value, z: Value) -> Value:
        return self.b.select(self.b.icmp_signed(">", x, z), x, z)

    def call_intrinsic(self, name: str, result: Any, *args: Value) -> Value:
        kind = ir.FunctionType(result, [a.type for a in args])
        declared = self.module.globals.get(name)
        return self.b.call(declared or ir.Function(self.module, kind, name), args)


@dataclass
class Lanes:
    """The vector that is being computed: how wide, and which of its lanes count (None: all)."""

    f: LlvmFunction
    mask: Value = None
    count: int = 0

    def __post_init__(self) -> None:
        self.count = self.count or vector_width()
        self.float_type = ir.VectorType(F32, self.count)
        self.mask_type = ir.VectorType(I1, self.count)

    def vector_type(self, kind: Any) -> Any:
        return ir.VectorType(kind, self.count)

    def splat(self, value: Value) -> Value:
        """One number in all lanes."""
        b, kind = self.f.b, ir.VectorType(value.type, self.count)
        one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        zeros = ir.Constant(self.vector_type(I32), [0] * self.count)
        return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def load_splat(self, address: Value, kind: Any = F32) -> Value:
        """The number at an address, in all lanes."""
        b = self.f.b
        return self.splat(b.load(b.inttoptr(address, kind.as_pointer()), typ=kind))

    def const(self, number: float) -> Value:
        return ir.Constant(self.float_type, [number] * self.count)

    def lane_indices(self, kind: Any = I64) -> Value:
        """0, 1, 2, ..."""
        return ir.Constant(self.vector_type(kind), list(range(self.count)))

    def load(self, address: Value, kind: Any = F32, mask: Value = None) -> Value:
        """Consecutive elements; where the mask is false, zero."""
        vector = self.vector_type(kind)
        pointer = self.f.b.inttoptr(address, vector.as_pointer())
        masked = self.combine_masks(mask)
        size = _type_bytes(kind)
        if masked is None:
            found = self.f.b.load(pointer, typ=vector)
            found.align = size
            return found
        zero = ir.Constant(vector, None)
        name = f"llvm.masked.load.v{self.count}{_type_suffix(kind)}.p0"
        return self.f.call_intrinsic(name, vector, pointer, ir.Constant(I32, size), masked, zero)

    def store(self, value: Value, address: Value, kind: Any = F32) -> None:
        pointer = self.f.b.inttoptr(address, self.vector_type(kind).as_pointer())
        size = _type_bytes(kind)
        if self.mask is None:
            self.f.b.store(value, pointer).align = size
            return
        name = f"llvm.masked.store.v{self.count}{_type_suffix(kind)}.p0"
        args = (value, pointer, ir.Constant(I32, size), self.mask)
        self.f.call_intrinsic(name, ir.VoidType(), *args)

    def gather(self, address: Value, stride: Value, kind: Any = F32) -> Value:
        """Elements `stride` bytes apart."""
        vector, mask = self.vector_type(kind), self.full_mask()
        zero = ir.Constant(vector, None)
        name = f"llvm.masked.gather.v{self.count}{_type_suffix(kind)}.v{self.count}p0"
        places = self._lane_pointers(address, stride, kind)
        return self.f.call_intrinsic(
            name, vector, places, ir.Constant(I32, _type_bytes(kind)), mask, zero
        )

    def scatter(self, value: Value, address: Value, stride: Value, kind: Any = F32) -> None:
        name = f"llvm.masked.scatter.v{self.count}{_type_suffix(kind)}.v{self.count}p0"
        places = self._lane_pointers(address, stride, kind)
        size = ir.Constant(I32, _type_bytes(kind))
        self.f.call_intrinsic(name, ir.VoidType(), value, places, size, self.full_mask())

    def _lane_pointers(self, address: Value, stride: Value, kind: Any) -> Value:
        b = self.f.b
        byte_offsets = b.mul(self.splat(stride), self.lane_indices())
        return b.inttoptr(
            b.add(self.splat(address), byte_offsets), self.vector_type(kind.as_pointer())
        )

    def full_mask(self) -> Value:
        return ir.Constant(self.mask_type, [1] * self.count) if self.mask is None else self.mask

    def combine_masks(self, mask: Value) -> Value:
        if mask is None or self.mask is None:
            return self.mask if mask is None else mask
        return self.f.b.and_(mask, self.mask)

    def prefix_mask(self, count: Value) -> Value:
        """The mask of the first lanes."""
        return self.f.b.icmp_signed("<", self.lane_indices(), self.splat(count))

    def map(self, name: str, *args: Value) -> Value:
        """An LLVM function of floats, lane by lane."""
        return self.f.call_intrinsic(f"{name}.v{self.count}f32", self.float_type, *args)


class Float64Scalar(Lanes):
    """One number in float64, for factors that are computed once."""

    def __post_init__(self) -> None:
        self.count, self.float_type, self.mask_type = 1, F64, I1

    def const(self, number: float) -> Value:
        return ir.Constant(F64, number)

    def map(self, name: str, *args: Value) -> Value:
        return self.f.call_intrinsic(f"{name}.f64", F64, *args)


def _type_bytes(kind: Any) -> int:
    return {str(F32): 4, str(I8): 1, str(I32): 4, str(F64): 8, str(I64): 8}[str(kind)]


def _type_suffix(kind: Any) -> str:
    return {str(F32): "f32", str(I8): "i8", str(I32): "i32"}[str(kind)]


Compute = Callable[..., Value]

"""Loops over addresses, written in Python: Numba compiles them once, and their machine code is kept
beside that of tiles. A process that finds it there does without Numba, whose import takes longer
than a small net's first steps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import Parameter, Signature
from types import FunctionType, ModuleType
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from netdsl.backends.cpu.memory import Intrinsic
from netdsl.backends.cpu.record import Record
from netdsl.backends.cpu.target import written


@dataclass(frozen=True, eq=False)
class Inlined:
    """A part of loops: it stands in their machine code."""

    function: FunctionType

    def __call__(self, *args: Any) -> Any:
        raise TypeError("this exists in machine code alone")


class Loop:
    """A function of whole numbers of 64 bits that gives nothing back. As a task it is given its
    arguments' address and five numbers of its own."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._count = function.__code__.co_argcount

    @cached_property
    def address(self) -> int:
        name = self._function.__name__
        return written(name, self._function.__module__, self._text)

    @cached_property
    def call(self) -> Callable[..., None]:
        """What calls it from Python, which other threads may run meanwhile."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * self._count)(self.address)

    def _text(self) -> str:
        """In LLVM's language, by Numba. Of its module nothing else is left that others see."""
        library, native = _compiled(self._function, self._count)
        module = llvm.parse_assembly(library)
        for one in module.functions:
            if not one.is_declaration:
                one.linkage = "internal"
        given = [f"i64 %{i}" for i in range(self._count)]
        return f"""{module}
define void @{self._function.__name__}({", ".join(given)}) {{
  %result = alloca ptr
  %raised = alloca ptr
  %status = call i32 @"{native}"({", ".join(("ptr %result", "ptr %raised", *given))})
  ret void
}}
"""


def _compiled(function: FunctionType, count: int) -> tuple[str, str]:
    """A library in LLVM's language, and the function's name in it. Numba leaves the code as it is:
    what is kept has passes of its own."""
    from numba import types
    from numba.core import compiler, config
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    flags: Any = compiler.Flags()
    flags.error_model, flags.no_cpython_wrapper, flags.no_cfunc_wrapper = "numpy", True, True
    given = (types.int64,) * count
    target = cpu_target.typing_context, cpu_target.target_context
    settings: Any = config
    with global_compiler_lock:
        level = settings.OPT
        settings.OPT = type(level)(0)
        try:
            found = compiler.compile_extra(*target, _ready(function), given, types.void, flags, {})
        finally:
            settings.OPT = level
    return found.library.get_llvm_str(), found.fndesc.llvm_func_name


def loop(function: Any) -> Loop:
    """Makes a function a loop."""
    return Loop(function)


def inlined(function: Any) -> Any:
    """Makes a function part of the loops that call it."""
    return Inlined(function)


def _ready(function: FunctionType) -> FunctionType:
    """A function as Numba can read it: what it calls is Numba's."""
    code, known = function.__code__, function.__globals__
    named = {n: _numbas(known[n]) for n in code.co_names if n in known}
    return FunctionType(code, {**known, **named}, function.__name__)


def _numbas(value: Any) -> Any:
    if isinstance(value, Intrinsic):
        return _intrinsic(value)
    if _is_record(value):
        return _record(value)
    return _part(value) if isinstance(value, Inlined) else value


def _is_record(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Record)


@cache
def _part(one: Inlined) -> Any:
    from numba import njit

    return njit(error_model="numpy")(_ready(one.function))


@cache
def _intrinsic(one: Intrinsic) -> Any:
    from numba import extending, types

    signature = getattr(types, one.gives)(*(getattr(types, t) for t in one.takes))

    def typed(typing: Any, *given: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            found = one.emit(builder, args)
            return context.get_dummy_value() if one.gives == "void" else found

        return signature, emit

    names = ("typing", *(f"a{i}" for i in range(len(one.takes))))
    kind = Parameter.POSITIONAL_OR_KEYWORD
    typed.__signature__ = Signature([Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return extending.intrinsic(typed)


@cache
def _record(record: Any) -> ModuleType:
    """A record's class as Numba can read it: a module whose functions give an address that
    has the fields as attributes."""
    from numba import extending, types

    kind, size = _address_type()(record), ir.Constant(ir.IntType(64), record.dtype.itemsize)

    def at(typing: Any, address: Any) -> Any:
        return kind(types.int64), lambda context, b, signature, args: args[0]

    def nth(typing: Any, address: Any, i: Any) -> Any:
        signature = kind(types.int64, types.int64)
        return signature, lambda context, b, s, args: b.add(args[0], b.mul(args[1], size))

    found = ModuleType(f"{record.__module__}.{record.__qualname__}")
    found.__dict__.update(at=extending.intrinsic(at), nth=extending.intrinsic(nth))
    return found


@cache
def _address_type() -> Any:
    """Numba's type of a record's address: its attributes are loads of the kind that they have."""
    from numba import extending, types
    from numba.core import typing

    class RecordAddress(types.Type):
        def __init__(self, record: type[Record]) -> None:
            self.record = record
            super().__init__(f"RecordAddress({record.__module__}.{record.__qualname__})")

    kinds = {"i64": types.int64, "f64": types.float64, "f32": types.float32}

    @extending.register_model(RecordAddress)
    class _Model(extending.models.PrimitiveModel):
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, ir.IntType(64))

    @extending.infer_getattr
    class _Attributes(typing.templates.AttributeTemplate):
        key = RecordAddress

        def generic_resolve(self, kind: Any, name: str) -> Any:  # type: ignore[override]
            field = kind.record.layout.get(name)
            return kinds[field.kind] if field else None

    @extending.lower_getattr_generic(RecordAddress)
    def _load(context: Any, builder: Any, kind: Any, address: Any, name: str) -> Any:
        field = kind.record.layout[name]
        at = builder.add(address, ir.Constant(ir.IntType(64), field.offset))
        pointer = context.get_value_type(kinds[field.kind]).as_pointer()
        return builder.load(builder.inttoptr(at, pointer))

    return RecordAddress

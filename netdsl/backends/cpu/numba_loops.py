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

from netdsl.backends.cpu.intrinsics import Intrinsic
from netdsl.backends.cpu.llvm_jit import compile_cached
from netdsl.backends.cpu.record import Record


@dataclass(frozen=True, eq=False)
class InlinedFunction:
    """A part of loops: it stands in their machine code."""

    function: FunctionType

    def __call__(self, *args: Any) -> Any:
        raise TypeError("this exists only as machine code")


class CompiledLoop:
    """A function of integers of 64 bits that gives nothing back. As a task it is given its
    arguments' address and five numbers of its own."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._parameter_count = function.__code__.co_argcount

    @cached_property
    def address(self) -> int:
        name = self._function.__name__
        return compile_cached(name, self._function.__module__, self._generate_llvm)

    @cached_property
    def call(self) -> Callable[..., None]:
        """What calls it from Python, which other threads may run meanwhile."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * self._parameter_count)(self.address)

    def _generate_llvm(self) -> str:
        """In LLVM's language, by Numba. Of its module nothing else is left that others see."""
        library, native = _compile_with_numba(self._function, self._parameter_count)
        module = llvm.parse_assembly(library)
        for one in module.functions:
            if not one.is_declaration:
                one.linkage = "internal"
        parameters = [f"i64 %{i}" for i in range(self._parameter_count)]
        return f"""{module}
define void @{self._function.__name__}({", ".join(parameters)}) {{
  %result = alloca ptr
  %raised = alloca ptr
  %status = call i32 @"{native}"({", ".join(("ptr %result", "ptr %raised", *parameters))})
  ret void
}}
"""


def _compile_with_numba(function: FunctionType, count: int) -> tuple[str, str]:
    """A library in LLVM's language, and the function's name in it. Numba leaves the code as it is:
    what is kept has passes of its own."""
    from numba import types
    from numba.core import compiler, config
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    flags: Any = compiler.Flags()
    flags.error_model, flags.no_cpython_wrapper, flags.no_cfunc_wrapper = "numpy", True, True
    parameter_types = (types.int64,) * count
    target = cpu_target.typing_context, cpu_target.target_context
    settings: Any = config
    with global_compiler_lock:
        level = settings.OPT
        settings.OPT = type(level)(0)
        try:
            found = compiler.compile_extra(
                *target, _bind_numba_globals(function), parameter_types, types.void, flags, {}
            )
        finally:
            settings.OPT = level
    return found.library.get_llvm_str(), found.fndesc.llvm_func_name


def numba_loop(function: Any) -> CompiledLoop:
    """Makes a function a loop."""
    return CompiledLoop(function)


def numba_inline(function: Any) -> Any:
    """Makes a function part of the loops that call it."""
    return InlinedFunction(function)


def _bind_numba_globals(function: FunctionType) -> FunctionType:
    """A function as Numba can read it: what it calls is Numba's."""
    code, module_globals = function.__code__, function.__globals__
    numba_globals = {n: _to_numba(module_globals[n]) for n in code.co_names if n in module_globals}
    return FunctionType(code, {**module_globals, **numba_globals}, function.__name__)


def _to_numba(value: Any) -> Any:
    if isinstance(value, Intrinsic):
        return _to_numba_intrinsic(value)
    if _is_record(value):
        return _to_numba_record(value)
    return _to_numba_inline(value) if isinstance(value, InlinedFunction) else value


def _is_record(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Record)


@cache
def _to_numba_inline(inlined_function: InlinedFunction) -> Any:
    from numba import njit

    return njit(error_model="numpy")(_bind_numba_globals(inlined_function.function))


@cache
def _to_numba_intrinsic(intrinsic: Intrinsic) -> Any:
    from numba import extending, types

    signature = getattr(types, intrinsic.result_type)(
        *(getattr(types, t) for t in intrinsic.argument_types)
    )

    def typed(typing: Any, *given: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            found = intrinsic.emit(builder, args)
            return context.get_dummy_value() if intrinsic.result_type == "void" else found

        return signature, emit

    names = ("typing", *(f"a{i}" for i in range(len(intrinsic.argument_types))))
    kind = Parameter.POSITIONAL_OR_KEYWORD
    typed.__signature__ = Signature([Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return extending.intrinsic(typed)


@cache
def _to_numba_record(record: Any) -> ModuleType:
    """A record's class as Numba can read it: a module whose functions give an address that
    has the fields as attributes."""
    from numba import extending, types

    kind, size = _make_address_type()(record), ir.Constant(ir.IntType(64), record.dtype.itemsize)

    def at(typing: Any, address: Any) -> Any:
        return kind(types.int64), lambda context, b, signature, args: args[0]

    def nth(typing: Any, address: Any, i: Any) -> Any:
        signature = kind(types.int64, types.int64)
        return signature, lambda context, b, s, args: b.add(args[0], b.mul(args[1], size))

    found = ModuleType(f"{record.__module__}.{record.__qualname__}")
    found.__dict__.update(at=extending.intrinsic(at), nth=extending.intrinsic(nth))
    return found


@cache
def _make_address_type() -> Any:
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

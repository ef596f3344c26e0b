"""This processor: how wide its vectors are, and machine code for it from LLVM's language, kept on
disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from llvmlite import binding as llvm

from netdsl.disk_cache import CPU_CACHE, make_key
from netdsl.environment import format_variable, read_variable
from netdsl.errors import fail
from netdsl.ops import dropout

_VECTOR_WIDTHS = (16, 8, 4)
_loaded_libraries: list[Any] = []
"""What owns the machine code: it lives as long as the process."""
_library_numbers = count()
_cached_addresses: dict[str, int] = {}
_functions_by_address: dict[int, tuple[str, Callable[[], str]]] = {}


@cache
def cpu_features() -> dict[str, bool]:
    return dict(llvm.get_host_cpu_features())


@cache
def vector_width() -> int:
    """How many float32 one vector register holds; NETDSL_VECTOR forces less."""
    natural = 16 if cpu_features().get("avx512f") else 8 if cpu_features().get("avx2") else 4
    forced = read_variable("NETDSL_VECTOR")
    if forced is None:
        return natural
    if forced not in map(str, _VECTOR_WIDTHS):
        raise fail(
            f"{format_variable('NETDSL_VECTOR', forced)} is not a vector width", help="4, 8 or 16"
        )
    return int(forced)


@cache
def _make_target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    flags = ",".join(("+" if on else "-") + name for name, on in sorted(cpu_features().items()))
    if vector_width() == 16:
        flags += ",-prefer-256-bit"
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(llvm.get_host_cpu_name(), flags, opt=3, jit=True)


@cache
def _make_jit() -> Any:
    return llvm.create_lljit_compiler(_make_target_machine())


@cache
def compile_llvm(name: str, text: str) -> int:
    """The address of the function `name` of a module in LLVM's language."""
    return _load_function(name, make_key(_compiler_key(), text), lambda: text)


def compile_cached(name: str, key: Hashable, write: Callable[[], str]) -> int:
    """As `compile_llvm`, of a module that is written only where these sources have not compiled it
    before: all that it depends on stands in `key`. A process loads it once, however many runs need
    it."""
    full_key = make_key(_compiler_key(), _hash_sources(), vector_width(), name, key)
    if full_key not in _cached_addresses:
        _cached_addresses[full_key] = _load_function(name, full_key, write)
    return _cached_addresses[full_key]


@cache
def _hash_sources() -> str:
    """What the modules are that write functions, and so what they write."""
    found = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(dropout.__file__)):
        found.update(path.read_bytes())
    return found.hexdigest()


def _load_function(name: str, key: str, write: Callable[[], str]) -> int:
    image = CPU_CACHE.load(key)
    if image is None:
        image = _compile_object(write())
        CPU_CACHE.store(key, image)
    library = (
        llvm.JITLibraryBuilder()
        .add_object_img(image)
        .add_current_process()
        .export_symbol(name)
        .link(_make_jit(), f"{name}-{next(_library_numbers)}")
    )
    _loaded_libraries.append(library)
    address = int(library[name])
    _functions_by_address[address] = name, cache(write)
    return address


def find_function_source(address: int) -> tuple[str, Callable[[], str]] | None:
    """The name of the function at an address, and what writes its module again; None where no
    function of this package begins there."""
    return _functions_by_address.get(address)


@cache
def _compiler_key() -> str:
    """The compiler and the processor that it compiles for: a part of every key."""
    enabled_features = sorted(name for name, yes in cpu_features().items() if yes)
    return (
        f"{llvm.llvm_version_info} {llvm.get_host_cpu_name()} {vector_width()} {enabled_features}"
    )


def _compile_object(text: str) -> bytes:
    module = llvm.parse_assembly(text)
    module.verify()
    machine = _make_target_machine()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return bytes(machine.emit_object(module))

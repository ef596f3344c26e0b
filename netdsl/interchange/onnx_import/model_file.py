"""ONNX files: reading, and the checks that make a stranger's file safe to open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.interchange.onnx_import.wire_format import check_wire, damaged_error
from netdsl.limits import MAX_ONNX_NODES
from netdsl.optional_imports import import_optional

MAX_ONNX_BYTES = 2**31 - 1
"""What protobuf allows; larger models keep their values in files beside it."""
MIN_OPSET = 7
_HEAD_SIZE = 256
_LFS_POINTER = b"version https://git-lfs"
_TEXT_BYTES = frozenset((*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0x100)))
_OWN_DOMAINS = ("", "ai.onnx")


def read_model(path: Path) -> Any:
    """The ModelProto of a file, with its functions expanded. Values in files beside it are not read
    yet. Raises NetError if the file is damaged or beyond the limits."""
    origin = str(path)
    onnx = import_onnx_package()
    data = _read_bytes(path)
    _check_head(data[:_HEAD_SIZE], origin)
    check_wire(memoryview(data), origin)
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, RuntimeError, ValueError):
        raise damaged_error(origin) from None
    if not model.HasField("graph") or not model.graph.output:
        raise damaged_error(origin)
    opset(model, origin)
    return _expand_functions(model, origin) if model.functions else model


def _check_head(head: bytes, origin: str) -> None:
    """Raises NetError for what is often found in the place of a model."""
    copied = "was it downloaded or copied completely?"
    if not head:
        raise fail(f"{origin} is empty", help=copied)
    if not any(head):
        raise fail(f"{origin} begins with zeros, so it is not an ONNX file", help=copied)
    if head.startswith(_LFS_POINTER):
        message = f"{origin} is a pointer of Git LFS, not the model"
        raise fail(message, help="`git lfs pull` downloads the model itself")
    if all(byte in _TEXT_BYTES for byte in head):
        is_page = head.lstrip()[:1] == b"<"
        raise fail(
            f"{origin} is text, not an ONNX file",
            help="the download returned a web page instead"
            if is_page
            else "export the model to ONNX with the program that it is from",
        )


def _read_bytes(path: Path) -> bytes:
    """The content of a file; memory is taken for its size, not for the largest that is allowed."""
    with open_regular_file(path) as f:
        size = os.fstat(f.fileno()).st_size
        if size > MAX_ONNX_BYTES:
            raise fail(
                f"{path} has {size:,} bytes, but an ONNX file has at most {MAX_ONNX_BYTES:,}",
                help="larger models keep their weights in separate files (external data)",
            )
        try:
            return f.read(size)
        except OSError as e:
            raise fail(f"cannot read {path}: {e.strerror or e}") from None


def import_onnx_package() -> Any:
    return import_optional(
        "onnx", "reading an ONNX model needs the package onnx", "pip install 'netdsl[onnx]'"
    )


def opset(model: Any, origin: str) -> int:
    """The version of the standard operators. Raises NetError if it is older than any supported."""
    versions = [o.version for o in model.opset_import if o.domain in _OWN_DOMAINS]
    version = max(versions, default=1)
    if version < MIN_OPSET:
        raise fail(
            f"{origin} has operators of opset {version}; netdsl reads {MIN_OPSET} and newer",
            help="`onnx.version_converter.convert_version(model, 17)` in Python converts it",
        )
    return int(version)


_FunctionKey = tuple[str, str, str]


def _expand_functions(model: Any, origin: str) -> Any:
    """Replaces calls of the model's own functions by their bodies."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    _check_expansion(model, functions, origin)
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as e:  # the inliner is C++, with errors of many types
        raise fail(f"the functions of {origin} cannot be expanded: {_first_line(e)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _check_expansion(model: Any, functions: Mapping[_FunctionKey, Any], origin: str) -> None:
    """Raises NetError if functions call each other in a circle, or expand beyond the limit."""
    sizes: dict[_FunctionKey, int] = {}

    def size_of(nodes: Iterable[Any], callers: tuple[_FunctionKey, ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            total += function_size(key, callers) if key in functions else 1
            for attribute in node.attribute:
                for graph in (
                    *attribute.graphs,
                    *([attribute.g] if attribute.HasField("g") else []),
                ):
                    total += size_of(graph.node, callers)
            if total > MAX_ONNX_NODES:
                raise _expansion_error(origin, f"expand to more than {MAX_ONNX_NODES:,} nodes")
        return total

    def function_size(key: _FunctionKey, callers: tuple[_FunctionKey, ...]) -> int:
        if key in callers:
            raise _expansion_error(origin, "call themselves")
        if len(callers) > 50:
            raise _expansion_error(origin, "are nested too deeply")
        if key not in sizes:
            sizes[key] = size_of(functions[key].node, (*callers, key))
        return sizes[key]

    size_of(model.graph.node, ())


def _expansion_error(origin: str, what: str) -> NetError:
    return fail(f"the functions of {origin} {what}")

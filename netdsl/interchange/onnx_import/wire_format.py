"""The wire format of an ONNX file, read without building anything: what a file contains is known
before memory is taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netdsl.errors import NetError, fail
from netdsl.limits import MAX_ONNX_DEPTH, MAX_ONNX_NODES, MAX_ONNX_STRUCTURE

DAMAGED_HELP = "was it downloaded or copied completely?"


@dataclass
class _Message:
    """A kind of message: its fields that hold values of tensors, and those that hold messages which
    may contain such fields. `is_counted` messages are limited in number."""

    values: frozenset[int] = frozenset()
    children: Mapping[int, _Message] = field(default_factory=dict)
    is_counted: bool = False
    is_graph: bool = False


_TENSOR = _Message(values=frozenset((4, 5, 7, 9, 10, 11)), is_counted=True)
_ATTRIBUTE = _Message()
_NODE = _Message(children={5: _ATTRIBUTE}, is_counted=True)
_GRAPH = _Message(children={1: _NODE, 5: _TENSOR}, is_graph=True)
_ATTRIBUTE.children = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH}
_FUNCTION = _Message(children={7: _NODE})
_MODEL = _Message(children={7: _GRAPH, 25: _FUNCTION})
"""Field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""
_ENTRY_COST = 8
"""Bytes that an entry counts for at least: a tiny one takes memory too."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def check_wire(data: memoryview, origin: str) -> None:
    """Raises NetError if a file is no ONNX model, ends early, or has more structure or nesting than
    a net needs."""
    stack = [(0, len(data), _MODEL, 0)]
    structure = count = 0
    while stack:
        at, end, message, depth = stack.pop()
        count += message.is_counted
        depth += message.is_graph
        if count > MAX_ONNX_NODES:
            raise fail(f"{origin} has more than {MAX_ONNX_NODES:,} nodes and tensors")
        if depth > MAX_ONNX_DEPTH:
            raise fail(f"{origin} nests graphs more than {MAX_ONNX_DEPTH} deep")
        while at < end:
            number, wire, start, stop = _read_field(data, at, end, origin)
            child = message.children.get(number) if wire == _LENGTH else None
            if child is not None:
                stack.append((start, stop, child, depth))
            is_bulk = child is not None or number in message.values
            structure += _ENTRY_COST if is_bulk else max(_ENTRY_COST, stop - at)
            if structure > MAX_ONNX_STRUCTURE:
                raise fail(
                    f"{origin} has more than {MAX_ONNX_STRUCTURE:,} bytes apart from its weights"
                )
            at = stop


def _read_field(data: memoryview, at: int, end: int, origin: str) -> tuple[int, int, int, int]:
    """Number, wire type, and the start and stop of the content of the field at `at`."""
    tag, start = _read_varint(data, at, end, origin)
    wire = tag & 7
    if wire == _LENGTH:
        length, start = _read_varint(data, start, end, origin)
        stop = start + length
    elif wire == _VARINT:
        _, stop = _read_varint(data, start, end, origin)
    elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
        stop = start + (8 if wire == _EIGHT_BYTES else 4)
    else:
        raise damaged_error(origin)
    if stop > end or tag >> 3 == 0:
        raise damaged_error(origin)
    return tag >> 3, wire, start, stop


def _read_varint(data: memoryview, at: int, end: int, origin: str) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= end:
            break
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise damaged_error(origin)


def damaged_error(origin: str) -> NetError:
    return fail(f"{origin} is not an ONNX file, or is damaged", help=DAMAGED_HELP)

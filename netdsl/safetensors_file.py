"""Safetensors files: the header, held against the file's own size, and the tensors behind it.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from netdsl.errors import internal_error
from netdsl.json_schema import (
    JsonArray,
    JsonInteger,
    JsonObject,
    JsonString,
    SchemaError,
    read_json,
)
from netdsl.types import Array, dims


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a file says of one tensor; `offset` counts from the begin of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorHeader:
    """What a file says that it contains."""

    metadata: Mapping[str, str]
    entries: tuple[TensorEntry, ...]


_STORED_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_TYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOAT_TYPES = tuple(_STORED_TYPES)
"""The element types that `read_tensor` reads."""
MAX_HEADER = 64 * 2**20
_HEADER_SCHEMA = JsonObject(
    {},
    {"__metadata__": JsonObject(additional=JsonString(MAX_HEADER, allow_surrogates=True))},
    additional=JsonObject(
        {
            "dtype": JsonString(20),
            "shape": JsonArray(JsonInteger(), 16),
            "data_offsets": JsonArray(JsonInteger(0, 2**60), 2, min_length=2),
        }
    ),
    max_entries=100_000,
)


def read_header(f: BinaryIO, size: int) -> TensorHeader:
    """What a file of `size` bytes says that it holds. Raises SchemaError where that is not so: no
    later read takes more memory than the file has bytes."""
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
        raise SchemaError("it ends within its header")
    if length > MAX_HEADER:
        raise SchemaError(f"its header has {length:,} bytes, over {MAX_HEADER:,}")
    header = read_json(f.read(length))
    _HEADER_SCHEMA.check(header, "header")
    metadata = header.pop("__metadata__", {})
    end = 0
    for begin, after in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if begin != end or after < begin:
            raise SchemaError("its weights are not contiguous")
        end = after
    if end != size - 8 - length:
        raise SchemaError(
            f"it has {size - 8 - length:,} bytes of weights, and its header lists {end:,}"
        )
    entries = (_read_entry(name, entry, 8 + length) for name, entry in header.items())
    return TensorHeader(metadata, tuple(entries))


def _read_entry(name: str, entry: Mapping[str, Any], start: int) -> TensorEntry:
    begin, end = entry["data_offsets"]
    return TensorEntry(name, entry["dtype"], tuple(entry["shape"]), start + begin, end - begin)


def read_tensor(f: BinaryIO, entry: TensorEntry) -> Array:
    """One tensor as float32. Raises SchemaError where it is not one of `FLOAT_TYPES`, or has not
    the bytes of its shape."""
    if entry.dtype not in _STORED_TYPES:
        raise SchemaError(
            f"`{entry.name}` is of type {entry.dtype}, which cannot represent weights"
        )
    stored, count = np.dtype(_STORED_TYPES[entry.dtype]), math.prod(entry.shape)
    if entry.nbytes != stored.itemsize * count:
        raise SchemaError(
            f"`{entry.name}` has {entry.nbytes:,} bytes, which are not {dims(entry.shape)} "
            f"{_TYPE_NAMES[entry.dtype]}"
        )
    f.seek(entry.offset)
    values = np.fromfile(f, stored, count)
    if entry.dtype == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):
        return values.astype("<f4", copy=False).reshape(entry.shape)


def encode_header(metadata: Mapping[str, str], tensors: Sequence[tuple[str, Array]]) -> bytes:
    """What a file begins with, whose tensors follow in this order, as `as_bytes` gives them. Raises
    ValueError where `read_header` would not read it."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors:
        begin, end = end, end + array.nbytes
        entries[name] = {
            "dtype": _type_name(name, array),
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    header = len(text).to_bytes(8, "little") + text
    read_header(BytesIO(header), len(header) + end)
    return header


def _type_name(name: str, array: Array) -> str:
    if array.dtype == np.int64:  # PyTorch's `num_batches_tracked`
        return "I64"
    if array.dtype != np.float32:
        raise internal_error(f"{name} is {array.dtype}, and weights are float32")
    return "F32"


def as_bytes(array: Array) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8))

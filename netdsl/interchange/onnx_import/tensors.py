"""Tensors of an ONNX file as arrays, from the file itself or from files beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.limits import MAX_AXES, MAX_TENSOR_SIZE
from netdsl.text_escaping import escape_line
from netdsl.types import Array, dims

_BFLOAT16 = 16
_DTYPES = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "?",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
    _BFLOAT16: "<u2",
}
"""By the numbers of TensorProto.DataType."""
_TYPED_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data"}
_TYPED_FIELDS |= {13: "uint64_data"}
"""Where values are that are not raw bytes; all others are in `int32_data`."""
_EXTERNAL = 1


def as_text(value: str | bytes) -> str:
    """A name in a file; protobuf gives bytes where it is not UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class TensorReader:
    """Reads the tensors of the ONNX file `path`, every size of which is checked before memory is
    taken. Files beside it are read only in its own folder and below."""

    def __init__(self, path: Path) -> None:
        self.origin = str(path)
        self.folder = path.resolve().parent

    def read(self, tensor: Any) -> Array:
        """The values of a TensorProto; bfloat16 becomes float32. Raises NetError if its bytes are
        not those of its shape."""
        shape, code = tuple(tensor.dims), tensor.data_type
        name = escape_line(as_text(tensor.name)) or "a constant"
        if code not in _DTYPES:
            raise self._error(name, f"has the element type {code}, which is not supported")
        if len(shape) > MAX_AXES or any(d < 0 for d in shape):
            raise self._error(name, "has no valid shape")
        if (count := math.prod(shape)) > MAX_TENSOR_SIZE:
            raise self._error(name, "is too large for any machine")
        dtype = np.dtype(_DTYPES[code])
        if tensor.data_location == _EXTERNAL:
            values = self._read_external(tensor, name, count, dtype)
        elif tensor.HasField("raw_data"):
            values = np.frombuffer(self._check_raw(tensor.raw_data, name, shape, dtype), dtype)
        else:
            values = self._read_typed(tensor, name, shape, dtype)
        if code == _BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(shape)

    def _check_raw(self, raw: bytes, name: str, shape: tuple[int, ...], dtype: Any) -> bytes:
        if len(raw) != math.prod(shape) * dtype.itemsize:
            size = dims(shape) if shape else "one value"
            raise self._error(
                name, f"has {len(raw):,} bytes, which is not {size} values of {dtype.name}"
            )
        return raw

    def _read_typed(self, tensor: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Values in a field of their type; 16-bit floats are stored as the integers of their
        bits."""
        field = getattr(tensor, _TYPED_FIELDS.get(tensor.data_type, "int32_data"))
        if len(field) != math.prod(shape):
            size = dims(shape) if shape else "one value"
            raise self._error(name, f"has {len(field):,} values, not {size}")
        if tensor.data_type in (10, _BFLOAT16):
            return np.array(field, np.int64).astype(np.uint16).view(dtype)
        return np.array(field).astype(dtype)

    def _read_external(self, tensor: Any, name: str, count: int, dtype: Any) -> Array:
        entries = {as_text(e.key): as_text(e.value) for e in tensor.external_data}
        path = self._find_beside(entries.get("location", ""), name)
        offset, size = self._read_number(entries, "offset", name), count * dtype.itemsize
        length = self._read_number(entries, "length", name) if "length" in entries else size
        if length != size:
            raise self._error(name, f"has {length:,} bytes in {path.name}, but needs {size:,}")
        with open_regular_file(path) as f:
            available = f.seek(0, 2)
            if offset + size > available:
                raise self._error(
                    name,
                    f"is at {offset:,} + {size:,} in {path.name}, which has {available:,} bytes",
                )
            f.seek(offset)
            return np.fromfile(f, dtype, count)

    def _find_beside(self, location: str, name: str) -> Path:
        """The file of that name, which may not leave the folder by `..`, a root or a link."""
        shown = escape_line(location)
        if not location or "\0" in location:
            raise self._error(name, "does not name a file for its values")
        try:
            path = (self.folder / location).resolve()
        except (OSError, RuntimeError):
            raise self._error(name, f"is in {shown}, which cannot be read") from None
        if not path.is_relative_to(self.folder):
            raise self._error(name, f"is in {shown}, outside the model's folder")
        if not path.is_file():
            raise fail(
                f"the values of `{name}` are in {shown}, which is not next to {self.origin}",
                help="an ONNX model with external data consists of several files",
            )
        return path

    def _read_number(self, entries: dict[str, str], key: str, name: str) -> int:
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise self._error(name, f"has an {key} that is not a number")
        return int(text)

    def _error(self, name: str, message: str) -> NetError:
        return fail(f"{self.origin}: the tensor `{name}` {message}")

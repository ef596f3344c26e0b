"""Arrays as bytes that one rank sends to others: a header in JSON, then their elements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PREFIX_BYTES = 8


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns arrays of numbers as bytes."""
    header = [[name, x.dtype.str, x.shape] for name, x in arrays.items()]
    text = json.dumps(header).encode()
    elements = (np.ascontiguousarray(x).tobytes() for x in arrays.values())
    return b"".join([len(text).to_bytes(_PREFIX_BYTES, "little"), text, *elements])


def unpack_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays that `pack_arrays` was given; they cannot be written to."""
    start = _PREFIX_BYTES + int.from_bytes(data[:_PREFIX_BYTES], "little")
    found = {}
    for name, dtype, shape in json.loads(data[_PREFIX_BYTES:start]):
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(data, dtype, count, start).reshape(shape)
        start += found[name].nbytes
    return found

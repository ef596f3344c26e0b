"""A fake NCCL over the communicator of the host, which notes its calls."""

from __future__ import annotations

import ctypes
import secrets
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdsl.ops.dtypes import dtype_of
from netdsl.ranks.communicator import Communicator
from tests.emulated_streams import EmulatedStream

UNIQUE_ID_BYTES = 128
TYPES = {
    2: "int32",
    4: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "bfloat16",
}
"""Types by their numbers in NCCL."""


@dataclass(frozen=True)
class NcclCall:
    """A reduction in place."""

    address: int
    count: int
    dtype: str
    stream: int

    def view(self) -> Any:
        """The elements, which a pointer leads to."""
        dtype = dtype_of(self.dtype)
        memory = (ctypes.c_byte * (self.count * dtype.itemsize)).from_address(self.address)
        return np.frombuffer(memory, dtype)


class NcclError(RuntimeError):
    """An error that NCCL reports."""


@dataclass
class FakeNccl:
    """CuPy's module `cuda.nccl` for one rank, on the streams of its emulated GPU."""

    communicator: Communicator
    streams: dict[int, EmulatedStream]
    version: int = 22807
    available: bool = True
    groups: list[tuple[NcclCall, ...]] = field(default_factory=list)
    """The calls of each group."""
    _open_group: list[NcclCall] | None = None

    is_connected: bool = True
    """Whether ranks can be connected."""

    NcclError = NcclError
    NCCL_SUM = 0
    NCCL_INT32, NCCL_INT64, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = TYPES

    def get_version(self) -> int:
        return self.version

    def get_unique_id(self) -> bytes:
        assert self.communicator.is_root
        return secrets.token_bytes(UNIQUE_ID_BYTES)

    def NcclCommunicator(self, size: int, identity: bytes, rank: int) -> FakeNcclRanks:
        assert (size, rank) == (self.communicator.size, self.communicator.rank)
        assert len(identity) == UNIQUE_ID_BYTES
        assert not any(s.is_capturing for s in self.streams.values())
        assert len(set(self.communicator.all_gather(identity))) == 1
        if not self.is_connected:
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error")
        return FakeNcclRanks(self)

    def groupStart(self) -> None:
        assert self._open_group is None
        self._open_group = []

    def groupEnd(self) -> None:
        assert self._open_group
        calls, self._open_group = tuple(self._open_group), None
        self.groups.append(calls)
        (stream,) = {c.stream for c in calls}
        arrays = [c.view() for c in calls]
        self.streams[stream].do(lambda: self._reduce(arrays), "all_reduce")

    def _reduce(self, arrays: list[Any]) -> None:
        self.communicator.start_all_reduce(arrays).result()

    def add(self, call: NcclCall) -> None:
        assert self._open_group is not None, "each call in a group"
        self._open_group.append(call)


@dataclass(frozen=True)
class FakeNcclRanks:
    """NCCL's communicator."""

    nccl: FakeNccl

    def allReduce(
        self, source: int, target: int, size: int, dtype: int, op: int, stream: int
    ) -> None:
        assert source == target, "reduced in place"
        assert op == FakeNccl.NCCL_SUM
        assert size > 0
        self.nccl.add(NcclCall(target, size, TYPES[dtype], stream))

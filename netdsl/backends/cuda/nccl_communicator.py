"""The binding of NCCL: a communicator of all ranks, and the stream on which it reduces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.errors import fail
from netdsl.ranks.communicator import Communicator

_HIGH_PRIORITY = -1
"""Of a stream; CUDA takes the nearest that it has."""
_made_with_nvls: list[bool] = []
"""For each communicator of this process, whether NCCL may reduce inside NVSwitches. NCCL reads the
setting once."""


@dataclass(frozen=True)
class ReducedBuffer:
    """Elements on the device that a collective replaces by their sums."""

    address: int
    count: int
    dtype: str


class NcclCommunicator:
    """NCCL's communicator of all ranks, on the current GPU. `nccl` and `cuda` are modules of CuPy.

    All ranks get the same bits from a reduction. In NVSwitches (NVLS), however, the order of a sum
    may differ from call to call; with `deterministic` it is not computed there.
    """

    def __init__(
        self, nccl: Any, cuda: Any, communicator: Communicator, deterministic: bool
    ) -> None:
        self.has_nvls = _set_nvls(deterministic)
        self._nccl = nccl
        identity = communicator.share(nccl.get_unique_id)
        self._ranks = _connect(nccl, communicator, identity)
        self.stream = cuda.Stream(non_blocking=True, priority=_HIGH_PRIORITY)
        self._types = {
            "float16": nccl.NCCL_FLOAT16,
            "bfloat16": nccl.NCCL_BFLOAT16,
            "float32": nccl.NCCL_FLOAT32,
            "float64": nccl.NCCL_FLOAT64,
            "int32": nccl.NCCL_INT32,
            "int64": nccl.NCCL_INT64,
        }

    def all_reduce(self, buffers: Sequence[ReducedBuffer]) -> None:
        """Enqueues the reduction of all buffers, in place, on the stream."""
        nccl, stream = self._nccl, int(self.stream.ptr)
        nccl.groupStart()
        for b in buffers:
            self._ranks.allReduce(
                b.address, b.address, b.count, self._types[b.dtype], nccl.NCCL_SUM, stream
            )
        nccl.groupEnd()


def _connect(nccl: Any, communicator: Communicator, identity: bytes) -> Any:
    try:
        return nccl.NcclCommunicator(communicator.size, identity, communicator.rank)
    except nccl.NcclError as e:
        raise fail(
            f"NCCL cannot connect the ranks: {e}",
            help="`NCCL_DEBUG=INFO` shows why, and NCCL_SOCKET_IFNAME chooses a network",
        ) from None


def _set_nvls(deterministic: bool) -> bool:
    """Returns whether NCCL may use NVLS. Raises NetError if it must not, but has begun otherwise in
    this process."""
    if deterministic:
        if any(_made_with_nvls):
            raise fail(
                "`deterministic = yes` after a run on several GPUs without it: NCCL keeps the "
                "setting of the first run of a process",
                help="start each run in a process of its own",
            )
        os.environ["NCCL_NVLS_ENABLE"] = "0"
    _made_with_nvls.append(os.environ.get("NCCL_NVLS_ENABLE") != "0")
    return _made_with_nvls[-1]

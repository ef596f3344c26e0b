"""The command line on one of several ranks, each with an emulated GPU; NCCL is a fake one over MPI.

mpiexec -n 2 python -m tests.emulated_gpu_rank FOLDER train FILE --device cuda ...

In FOLDER, each rank leaves `rank-N.json` with its calls of NCCL.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest

from netdsl.__main__ import main
from netdsl.backends.cuda import gpu_ranks
from netdsl.ranks.launcher import find_local_rank
from netdsl.ranks.world import current_world
from tests.emulated_gpu import EmulatedGpu, install_emulated_libraries
from tests.fake_nccl import FakeNccl

VISIBLE = 2


def run(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Runs the command of `sys.argv`, and exits with its code."""
    install_emulated_libraries(patch, folder)
    gpu = EmulatedGpu(folder, find_local_rank(), VISIBLE)
    patch.setitem(sys.modules, "cupy", gpu.cupy())
    load = cache(lambda: FakeNccl(current_world().communicator, gpu.streams))
    patch.setattr(gpu_ranks, "load_nccl", load)
    try:
        main()
    finally:
        found = {
            "groups": [[c.count for c in group] for group in load().groups],
            "graphs": sum(any(o.label == "all_reduce" for o in g.operations) for g in gpu.graphs),
        }
        (folder / f"rank-{find_local_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as context:
        run(Path(sys.argv.pop(1)), context)

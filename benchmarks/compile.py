"""Compile times, and the memory traffic of the plans: large nets of models/, five rounds.

    python benchmarks/compile.py [--save]

Prints one table; `--save` writes it to benchmarks/results, with date, versions and machine.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from netdsl import __version__
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import load_program
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.fusion import FULL_FUSION, NO_FUSION
from netdsl.plan.memory_traffic import count_moved_bytes
from netdsl.plan.partition import partition_kernels
from netdsl.plan.plan import make_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.training.recipe.recipe import default_recipe
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph

ROOT = Path(__file__).parent.parent
ROUNDS = 5
BATCH = 256


NETS = (
    *(("resnet", f"resnet{depth}") for depth in (18, 34, 50, 101, 152)),
    *(("alexnet", "alexnet"), ("vgg", "vgg_d"), ("googlenet", "googlenet_bn")),
    *(("bn_inception", "bn_inception"), ("densenet", "densenet121")),
    ("mobilenet", "mobilenet_v2"),
)
"""(file of models/, net) pairs."""


def load_networks() -> Iterator[tuple[str, Network]]:
    for file, name in NETS:
        program = load_program(str(ROOT / "models" / f"{file}.net"))
        yield name, elaborate(program, name, Settings(batch=BATCH, training=True))


def format_row(name: str, network: Network) -> str:
    passes, partitions, plans = [], [], []
    for _ in range(ROUNDS):
        marks = [time.perf_counter()]
        graph = compile_step(network, default_recipe(name))
        marks.append(time.perf_counter())
        partition_kernels(DataflowGraph(graph), FULL_FUSION)
        marks.append(time.perf_counter())
        plan = verify_plan(make_plan(graph, FULL_FUSION))
        marks.append(time.perf_counter())
        for kept, a, b in zip((passes, partitions, plans), marks, marks[1:], strict=False):
            kept.append(b - a)
    fused, alone = plan.kernels, partition_kernels(plan.flow, NO_FUSION)
    unit = count_forward_bytes(network)
    figures = [
        f"{len(graph.nodes):6,}",
        *(f"{statistics.median(t):6.2f}" for t in (passes, partitions, plans)),
        f"{len(fused):5,}",
        f"{len(alone):6,}",
        f"{sum(count_moved_bytes(graph, k) for k in fused) / unit:6.2f}",
        f"{sum(count_moved_bytes(graph, k) for k in alone) / unit:6.2f}",
        f"{plan.arena_bytes / plan.peak_bytes:6.3f}",
        f"{plan.arena_bytes / 2**30:6.2f}",
    ]
    return f"{name:13}" + " ".join(f"{f:>9}" for f in figures)


def count_forward_bytes(network: Network) -> int:
    """The bytes of all convolution outputs: one pass over them."""
    return _total_bytes(network.graph)


def _total_bytes(graph: Graph) -> int:
    return sum(n.type.nbytes for n in graph.find_by_op("conv2d"))


def main() -> None:
    headings = ("nodes", "passes s", "part. s", "plan s", "kernels", "unfused", "moved")
    headings += ("unfused", "arena/pk", "GiB")
    stamp = (
        f"netdsl {__version__}, {datetime.date.today()}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, {platform.machine()}; training step, batch {BATCH}, float32; "
        "`moved` in passes over the convolutions' outputs; `plan` has the partition in it"
    )
    lines = [stamp, "", f"{'':13}" + " ".join(f"{h:>9}" for h in headings)]
    print("\n".join(lines))
    for name, network in load_networks():
        lines.append(format_row(name, network))
        print(lines[-1], flush=True)
    if "--save" in sys.argv:
        (ROOT / "benchmarks" / "results" / "compile.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

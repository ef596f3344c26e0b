"""netdsl on a GPU beside PyTorch: tests, training, inference, accuracy; one table last.

python benchmarks/gpu.py [--parts tests,train,infer,mnist] [--nets resnet50,lenet] [--minutes 8]
                         [--quick] [--low float16] [--no-torch] [--profile]

What the time does not suffice for is left out, and said to be.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

from gpu_rows import (
    NETS,
    Row,
    inference_row,
    mnist_line,
    netdsl_row,
    test_line,
    torch_row,
    warm_row,
)

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.runtime.executor import Executor

PARTS = ("tests", "train", "mnist", "infer")
COMPILED = ("resnet50", "vgg16", "alexnet")
"""Nets for which PyTorch compiles inference; with the others it takes minutes more."""


def jobs(asked: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Row | str]]]:
    """What is to be done, the most important first, each by its name."""
    nets, low, parts = asked.nets.split(","), asked.low, asked.parts.split(",")
    if "tests" in parts:
        yield "tests", test_line
    if "train" in parts:
        for net in nets:
            yield f"train {net}", partial(trained, net, low, asked.profile)
        yield "first step, warm", partial(warm_row, nets[0], low)
    if "mnist" in parts:
        for precision in ("full", "mixed", "mixed(float16)"):
            yield f"mnist {precision}", partial(mnist_line, precision)
    if "infer" in parts:
        for net in nets:
            yield f"infer {net}", partial(inference_row, net, low)
    if asked.no_torch:
        return
    for mode in ("compile", "graph", "eager"):  # the slowest to start is the one to beat
        for net in nets:
            if "train" in parts:
                yield f"PyTorch train {mode} {net}", partial(torch_row, net, "train", mode)
            if "infer" in parts and mode == "compile" and net in COMPILED:
                yield f"PyTorch infer {mode} {net}", partial(torch_row, net, "infer", mode)


def trained(net: str, low: str, profiled: bool) -> Row:
    row, executor = netdsl_row(net, low)
    if profiled:
        profile(executor)
    return row


def profile(executor: Executor, most: int = 20) -> None:
    """The kernels that take longest, each by itself, with the bytes that it moves a second."""
    from netdsl.backends.cuda.backend import Captured
    from netdsl.plan.traffic import by_kind, kind_of, moved

    graph, device = executor.plan.graph, executor.backend.device
    rows = []
    for kernel, thunk in zip(executor.plan.kernels, executor.kernels, strict=True):
        if isinstance(thunk, Captured):
            ms = device.milliseconds(thunk)
            rows.append((ms, kind_of(graph, kernel), moved(graph, kernel) / ms / 1e9, kernel.name))
    kinds: dict[str, float] = {}
    for ms, kind, _, _ in rows:
        kinds[kind] = kinds.get(kind, 0) + ms
    table = by_kind(graph, executor.plan.kernels)
    for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]):
        count, size = table[kind]
        print(f"  {kind:16} {count:4} launches {ms:8.3f} ms {size / ms / 1e9:6.2f} TB/s")
    print(f"  sum {sum(kinds.values()):.3f} ms")
    for ms, kind, rate, name in sorted(rows, reverse=True)[:most]:
        print(f"    {ms:7.3f} ms {rate:6.2f} TB/s  {kind} {name}")


def versions() -> str:
    """Date, device and versions, for the head of the table."""
    import cudnn
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    driver = cupy.cuda.runtime.driverGetVersion()
    return (
        f"{datetime.date.today()}  {device}, CUDA {driver}, CuPy {cupy.__version__}, "
        f"cuDNN {cudnn.backend_version()}, frontend {cudnn.__version__}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--low", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="ResNet-50 and LeNet, 3 minutes")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    if asked.quick:
        asked.nets, asked.minutes = "resnet50,lenet", min(asked.minutes, 3.0)
    try:
        open_backend("cuda")
    except NetError as e:
        print(e.render())
        return 2
    started, lines, failed = time.perf_counter(), list[str](), False
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NETDSL_CACHE"] = cache  # so that first steps are first ones
        for name, job in jobs(asked):
            if time.perf_counter() - started > 60 * asked.minutes:
                lines.append(f"left out for lack of time: {name}")
                continue
            try:
                lines.append(str(job()))
            except Exception as e:  # the others are worth having without it
                failed = True
                lines.append(f"FAILED {name}: {type(e).__name__}: {str(e)[:2000]}")
            print(lines[-1], flush=True)
            gc.collect()
    seconds = time.perf_counter() - started
    print("\n".join(["", versions(), f"{seconds:.0f} s in all", *lines]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""netdsl on a GPU against PyTorch: tests, training, inference, accuracy; one table at the end.

    python benchmarks/gpu.py [--parts tests,train,ranks,infer,mnist] [--nets resnet50,lenet]
                             [--minutes 8] [--quick] [--low float16] [--no-torch] [--profile]
                             [--save]
    python benchmarks/gpu.py --rehearse      the same on the CPU, two images at a time

Both sides use the same weights and images; losses and scores must agree. Jobs that do not fit into
the time limit are left out, with a note. Where there are several GPUs, the first net is trained on
2, 4 and 8 of them as well, by ranks that mpiexec launches. `--save` writes the table to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_ranks import count_ranks, format_efficiency, ranks_row
from benchmarks.gpu_rows import (
    NETS,
    BenchContext,
    GpuRow,
    infer_row,
    mnist_line,
    test_line,
    torch_row,
    train_row,
    use_cache,
    warm_row,
)
from benchmarks.workloads import ROOT
from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.runtime.executor import Executor

PARTS = ("tests", "train", "ranks", "mnist", "infer")
COMPILED = ("resnet50", "vgg16", "alexnet")
"""Nets for which PyTorch compiles inference; the others would take minutes more."""
AUTOTUNED = ("lenet", "resnet50")
"""Nets that PyTorch compiles with max-autotune, which takes minutes each."""
MODES = ("compile", "graph", "eager", "max-autotune")
SECONDS = {"tests": 120, "compile resnet50": 60, "compile googlenet": 120, "max-autotune": 150}
"""Estimated seconds of jobs whose names contain these words; 20 for others."""


@dataclass(frozen=True)
class BenchmarkJob:
    name: str
    run: Callable[[], GpuRow | str]

    @property
    def seconds(self) -> int:
        words = (n for key, n in SECONDS.items() if all(w in self.name for w in key.split()))
        return max(words, default=20)


def list_jobs(asked: argparse.Namespace, bench: BenchContext) -> Iterator[BenchmarkJob]:
    """The jobs to run, most important first."""
    nets, parts = asked.nets.split(","), asked.parts.split(",")
    if "tests" in parts:
        yield BenchmarkJob("tests", test_line)
    if "train" in parts:
        for net in nets:
            yield BenchmarkJob(f"train {net}", partial(run_training, bench, net, asked.profile))
        yield BenchmarkJob("first step, warm", partial(warm_row, bench, nets[0]))
    if "ranks" in parts and len(counts := count_ranks(bench.device)) > 1:
        for n in counts:
            yield BenchmarkJob(f"train {nets[0]} on {n}", partial(ranks_row, bench, nets[0], n))
    if "mnist" in parts:
        for precision in ("full", "mixed", "mixed(float16)"):
            yield BenchmarkJob(f"mnist {precision}", partial(mnist_line, precision, bench.device))
    if "infer" in parts:
        for net in nets:
            yield BenchmarkJob(f"infer {net}", partial(infer_row, bench, net))
    if not asked.no_torch:
        yield from list_torch_jobs(nets, parts, bench)


def list_torch_jobs(
    nets: list[str], parts: list[str], bench: BenchContext
) -> Iterator[BenchmarkJob]:
    """The PyTorch jobs, strongest mode first."""
    for mode in MODES if not bench.rehearsed else ("eager",):
        for net in nets:
            if "train" in parts and (mode != "max-autotune" or net in AUTOTUNED):
                yield BenchmarkJob(
                    f"PyTorch train {mode} {net}", partial(torch_row, bench, net, "train", mode)
                )
            compiled = mode == "compile" and net in COMPILED
            # scores of all nets are compared in eager mode, which starts at once
            if "infer" in parts and (compiled or mode == "eager"):
                yield BenchmarkJob(
                    f"PyTorch infer {mode} {net}", partial(torch_row, bench, net, "infer", mode)
                )


def run_training(bench: BenchContext, net: str, profiled: bool) -> GpuRow:
    row, executor = train_row(bench, net)
    if profiled:
        print_profile(executor)
    return row


def print_profile(executor: Executor, most: int = 20) -> None:
    """Prints the slowest kernels, each timed alone, with its memory throughput."""
    from netdsl.backends.cuda.captured_step import CapturableThunk
    from netdsl.plan.memory_traffic import count_moved_bytes, find_kernel_label, sum_by_kernel_label

    graph, device = executor.plan.graph, executor.backend.device
    rows = []
    for kernel, thunk in zip(executor.plan.kernels, executor.kernels, strict=True):
        if isinstance(thunk, CapturableThunk):
            ms = device.measure_milliseconds(thunk)
            rows.append(
                (
                    ms,
                    find_kernel_label(graph, kernel),
                    count_moved_bytes(graph, kernel) / ms / 1e9,
                    kernel.name,
                )
            )
    kinds: dict[str, float] = {}
    for ms, kind, _, _ in rows:
        kinds[kind] = kinds.get(kind, 0) + ms
    table = sum_by_kernel_label(graph, executor.plan.kernels)
    for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]):
        count, size = table[kind]
        print(f"  {kind:16} {count:4} launches {ms:8.3f} ms {size / ms / 1e9:6.2f} TB/s")
    print(f"  sum {sum(kinds.values()):.3f} ms")
    for ms, kind, rate, name in sorted(rows, reverse=True)[:most]:
        print(f"    {ms:7.3f} ms {rate:6.2f} TB/s  {kind} {name}")


def describe_versions() -> str:
    """Device and versions, for the heading of the table."""
    import cudnn
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    driver = cupy.cuda.runtime.driverGetVersion()
    return (
        f"{device}, CUDA {driver}, CuPy {cupy.__version__}, "
        f"cuDNN {cudnn.backend_version()}, frontend {cudnn.__version__}"
    )


def format_ratios(rows: list[GpuRow]) -> Iterator[str]:
    """netdsl compared with its fastest rival, by net."""
    for what in ("train", "infer"):
        for net in NETS:
            own = [r for r in rows if r.net == net and r.side.startswith(f"{what} netdsl")]
            others = [r for r in rows if r.net == net and r.side.startswith(f"{what} PyTorch")]
            if own and others:
                best = min(others, key=lambda r: r.milliseconds)
                ratio = best.milliseconds / own[0].milliseconds
                yield f"{what} {net:10} {ratio:5.2f} times as fast as {best.side}"


def parse_arguments() -> argparse.Namespace:
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
    parser.add_argument("--rehearse", action="store_true", help="on the processor, in 32 bits")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    if asked.quick:
        asked.nets, asked.minutes = "resnet50,lenet", min(asked.minutes, 3.0)
    return asked


def main() -> int:
    asked = parse_arguments()
    device = "cpu" if asked.rehearse else "cuda"
    try:
        open_backend(device)
    except NetError as e:
        print(e.render())
        return 2
    started, lines, rows, failed = time.perf_counter(), list[str](), list[GpuRow](), False
    with tempfile.TemporaryDirectory() as folder, use_cache(Path(folder)):
        bench = BenchContext(device, None if asked.rehearse else asked.low, Path(folder))
        for work in list_jobs(asked, bench):
            if time.perf_counter() - started + work.seconds > 60 * asked.minutes:
                lines.append(f"left out for lack of time: {work.name}")
                continue
            try:
                found = work.run()
                rows += [found] if isinstance(found, GpuRow) else []
                lines.append(str(found))
            except Exception as e:  # the other jobs are still worth running
                failed = True
                lines.append(f"FAILED {work.name}: {type(e).__name__}: {str(e)[:2000]}")
            print(lines[-1], flush=True)
            free_memory(device)
    head = "rehearsed without a GPU" if asked.rehearse else describe_versions()
    seconds = f"{time.perf_counter() - started:.0f} s in all"
    told = [f"{datetime.date.today()}  {head}", seconds, *lines, "", *format_ratios(rows)]
    told += format_efficiency(rows)
    print("\n".join(["", *told]))
    if asked.save and not asked.rehearse:
        kept = ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-gpu.txt"
        kept.write_text("\n".join([*told, ""]))
    return 1 if failed else 0


def free_memory(device: str) -> None:
    """Frees the memory of the last job."""
    gc.collect()
    if device == "cuda":
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()


if __name__ == "__main__":
    sys.exit(main())

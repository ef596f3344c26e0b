"""Generated CUDA source on the CPU: compiled as C++, its threads as fibers, on NumPy arrays."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from netdsl.backends.arrays import ArrayBackend
from netdsl.backends.cuda.generate import generated
from netdsl.backends.cuda.launch import SCRATCH, SCRATCH_BYTES, WORKSPACE, Address, Launch, Word
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.plan.fusion import FUSED, Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.plan import Plan

GPP = shutil.which("g++")
MULTIPROCESSORS = 2
"""Few, so that small tensors have several blocks and a block several rows."""

_RUNTIME = r"""
#include <algorithm>
#include <cmath>
#include <cstring>
#include <ucontext.h>
#define HOST
#define __device__ static
#define __forceinline__ inline
#define __global__ static
#define __shared__ static
struct Index { int x, y; };
static Index threadIdx, blockIdx, gridDim, blockDim;
using std::max; using std::min; using std::exp; using std::log; using std::sqrt; using std::tanh;
using std::pow; using std::expm1; using std::log2; using std::exp2;
static ucontext_t host_, fibers_[1024];
static char stacks_[1024][1 << 16];
static bool done_[1024];
static void (*body_)(const long long*);
static const long long* words_;
static int now_;
static void __syncthreads() { const int me = now_; swapcontext(&fibers_[me], &host_); threadIdx.x = me; }
static void start_() { body_(words_); done_[now_] = true; }
static void run_(void (*body)(const long long*), const long long* words, int gx, int gy, int threads) {
  body_ = body; words_ = words; gridDim = {gx, gy}; blockDim = {threads, 1};
  for (int by = 0; by < gy; by++) for (int bx = 0; bx < gx; bx++) {
    blockIdx = {bx, by};
    for (int t = 0; t < threads; t++) {
      getcontext(&fibers_[t]); done_[t] = false;
      fibers_[t].uc_stack.ss_sp = stacks_[t]; fibers_[t].uc_stack.ss_size = sizeof stacks_[t];
      fibers_[t].uc_link = &host_; makecontext(&fibers_[t], start_, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (int t = 0; t < threads; t++) if (!done_[t]) {
        now_ = t; threadIdx.x = t; swapcontext(&host_, &fibers_[t]); left |= !done_[t];
      }
    }
  }
}
"""


def library(launches: list[Launch], folder: Path) -> ctypes.CDLL:
    """All sources in one library, `call_I` for the kernel of launch I."""
    known: dict[str, int] = {}
    text = [_RUNTIME, PRELUDE]
    for i, launch in enumerate(launches):
        rest = launch.source.removeprefix(PRELUDE)
        if rest not in known:
            known[rest] = i
            plain = rest.replace('extern "C" ', "")
            text.append(f"namespace n{i} {{\n{plain}\n}}")
            text += [f"#undef {name}" for name in re.findall(r"#define (\w+)", rest)]
        count = len(launch.tables) + len(launch.words)
        given = ", ".join(_argument(launch, k) for k in range(count))
        text.append(
            f"static void body_{i}(const long long* w) {{ n{known[rest]}::{launch.name}({given}); }}\n"
            f'extern "C" void call_{i}(const long long* w) '
            f"{{ run_(body_{i}, w, {launch.grid[0]}, {launch.grid[1]}, {launch.threads}); }}"
        )
    inside = Path(mkdtemp(dir=folder))  # a library that is loaded must not be written over
    source, target = inside / "kernels.cpp", inside / "kernels.so"
    source.write_text("\n".join(text))
    command = [str(GPP), "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fno-exceptions"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True, timeout=280)
    return ctypes.CDLL(str(target))


def _argument(launch: Launch, k: int) -> str:
    return f"(const i64*)w[{k}]" if k < len(launch.tables) else f"w[{k}]"


@dataclass(frozen=True)
class HostBackend(ArrayBackend):
    """Plans like the CUDA engine, and runs the source that it generates; products by reference.

    `bound` holds every launch; `build` must be called before the first one runs.
    """

    bound: list[tuple[Launch, Any]] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    calls: list[Callable[..., None]] = field(default_factory=list)

    def bind(self, plan: Plan, kernel: Kernel, memory: Mapping[str, Any]) -> Callable[[], None]:
        found = None if kernel.kind == "anchor" else generated(plan, kernel, MULTIPROCESSORS)
        if found is None:
            if kernel.kind != "anchor":
                self.unmapped.append(f"{kernel.name} ({plan.graph[kernel.nodes[-1]].op})")
            return super().bind(plan, kernel, memory)
        memory = {**memory, SCRATCH: _SCRATCH, WORKSPACE: _WORKSPACE}
        self.kept.append(memory)  # addresses alone keep nothing alive
        first = len(self.bound)
        for launch in found:
            self.bound.append((launch, words_of(launch, memory)))
        last = len(self.bound)

        def run() -> None:
            for i in range(first, last):
                self.calls[i](self.bound[i][1].ctypes.data_as(ctypes.c_void_p))

        return run

    def build(self, folder: Path) -> None:
        loaded = library([launch for launch, _ in self.bound], folder)
        self.calls.extend(getattr(loaded, f"call_{i}") for i in range(len(self.bound)))


_SCRATCH = np.zeros(SCRATCH_BYTES, dtype=np.uint8)
_WORKSPACE = np.zeros(1 << 20, dtype=np.uint8)


def host(fusion: Fusion = FUSED) -> HostBackend:
    return HostBackend("host", np, fusion)


def words_of(launch: Launch, memory: Mapping[str, Any]) -> Any:
    tables = [np.array([_resolved(w, memory) for w in t], dtype=np.int64) for t in launch.tables]
    _KEPT.extend(tables)
    given = [t.ctypes.data for t in tables] + [_resolved(w, memory) for w in launch.words]
    return np.array(given, dtype=np.int64)


_KEPT: list[Any] = []


def _resolved(word: Word, memory: Mapping[str, Any]) -> int:
    if isinstance(word, Address):
        return int(memory[word.buffer].__array_interface__["data"][0]) + word.start
    return word

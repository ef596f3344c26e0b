"""The CUDA backend on the CPU: generated source compiled as C++, library calls run by NumPy.

Fibers serve as threads; NumPy executes library calls according to their descriptors. Blocks run in
random order, and so do the threads of a block between two barriers: a race produces other numbers
than the interpreter.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pytest

from netdsl.backends.cuda import cublaslt_gemm, cudnn_convolution
from netdsl.backends.cuda.backend import CUDA_FUSION, CudaBackend
from netdsl.backends.cuda.cuda_launch import SCRATCH_BYTES, Address, CudaLaunch, KernelArgument
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.cuda.tuning import Tuner
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.ops import OPS
from netdsl.ops.dtypes import dtype_of
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.layout import IntTuple


def _cpu_flags() -> set[str]:
    """The CPU's features as Linux reports them; empty elsewhere."""
    told = Path("/proc/cpuinfo")
    return set(told.read_text().split()) if told.exists() else set()


GPP = shutil.which("g++")
CONTRACTION_FLAGS = (
    ("-ffp-contract=fast", "-mfma", "-fexpensive-optimizations") if "fma" in _cpu_flags() else ()
)
"""Flags that contract a product and a sum into one operation with one rounding, as CUDA's compiler
may."""
NO_CONTRACTION_TEMPLATE = """#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
{}
#pragma GCC pop_options"""
"""Turns contraction off, for every other kernel: CUDA's compiler decides in each kernel where to
contract, so a value that two of them compute need not have the same bits."""
MULTIPROCESSORS = 2
"""Few, so that small tensors take several blocks and a block takes several rows."""

_RUNTIME = r"""
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdlib>
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
using std::pow; using std::expm1; using std::log1p; using std::erf; using std::log2; using std::exp2;
// a fiber runs one block's thread after the other; jumps cost no call of the system, as switches do
static ucontext_t host_, fibers_[1024];
static jmp_buf back_, places_[1024];
static char stacks_[1024][1 << 16];
static bool born_[1024], done_[1024];
static void (*body_)(const long long*);
static const long long* words_;
static int now_, order_[1024], blocks_[1 << 20];
static unsigned random_ = 1;
static void shuffled_(int* order, int n) {
  for (int i = 0; i < n; i++) order[i] = i;
  for (int i = n - 1; i > 0; i--) {
    random_ = random_ * 1664525u + 1013904223u;
    std::swap(order[i], order[(random_ >> 8) % (i + 1)]);
  }
}
static void __syncthreads() {
  const int me = now_;
  if (!_setjmp(places_[me])) _longjmp(back_, 1);
  threadIdx.x = me;
}
static void start_() { for (;;) { body_(words_); done_[now_] = true; __syncthreads(); } }
static void enter_(int t) {
  now_ = t; threadIdx.x = t;
  if (_setjmp(back_)) return;
  if (born_[t]) _longjmp(places_[t], 1);
  born_[t] = true;
  getcontext(&fibers_[t]);
  fibers_[t].uc_stack.ss_sp = stacks_[t]; fibers_[t].uc_stack.ss_size = sizeof stacks_[t];
  makecontext(&fibers_[t], start_, 0);
  swapcontext(&host_, &fibers_[t]);
}
static void run_(void (*body)(const long long*), const long long* words, int gx, int gy, int threads, bool waits) {
  body_ = body; words_ = words; gridDim = {gx, gy}; blockDim = {threads, 1};
  shuffled_(blocks_, gx * gy);
  for (int b = 0; b < gx * gy; b++) {
    blockIdx = {blocks_[b] % gx, blocks_[b] / gx};
    for (int t = 0; t < threads; t++) done_[t] = false;
    for (bool left = true; left;) {
      left = false;
      shuffled_(order_, threads);
      for (int i = 0; i < threads; i++) if (const int t = order_[i]; !done_[t]) {
        if (waits) { enter_(t); left |= !done_[t]; }
        else { threadIdx.x = t; body(words); }
      }
    }
  }
}
"""


def compile_library(launches: Sequence[CudaLaunch], folder: Path) -> ctypes.CDLL:
    """Compiles all sources into one library, with `call_I(words, grid x, grid y, threads)` for
    launch I."""
    text = [_RUNTIME, PRELUDE]
    for i, launch in enumerate(launches):
        rest = launch.source.removeprefix(PRELUDE)
        plain = rest.replace('extern "C" ', "")
        body = f"namespace n{i} {{\n{plain}\n}}"
        text.append(body if i % 2 else NO_CONTRACTION_TEMPLATE.format(body))
        text += [f"#undef {name}" for name in re.findall(r"#define (\w+)", rest)]
        count = len(launch.tables) + len(launch.arguments)
        given = ", ".join(_argument(launch, k) for k in range(count))
        text.append(
            f"static void body_{i}(const long long* w) {{ n{i}::{launch.name}({given}); }}\n"
            f'extern "C" void call_{i}(const long long* w, int x, int y, int threads) '
            f"{{ run_(body_{i}, w, x, y, threads, {int('__syncthreads' in rest)}); }}"
        )
    target = Path(mkdtemp(dir=folder)) / "kernels.so"  # a loaded one must not be overwritten
    target.write_bytes(_compile("\n".join(text)))  # a copy: its random order begins anew
    return ctypes.CDLL(str(target))


@cache
def _compile(text: str) -> bytes:
    """Compiles a library, once for all tests that ask for the same kernels."""
    # fortified libraries would abort at jumps between stacks
    command = [
        str(GPP),
        "-std=c++17",
        "-O1",
        *CONTRACTION_FLAGS,
        "-U_FORTIFY_SOURCE",
        "-w",
        "-shared",
        "-fPIC",
        "-fno-exceptions",
    ]
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        source.write_text(text)
        subprocess.run([*command, str(source), "-o", str(target)], check=True, timeout=280)
        return target.read_bytes()


def _argument(launch: CudaLaunch, k: int) -> str:
    return f"(const i64*)w[{k}]" if k < len(launch.tables) else f"w[{k}]"


class NumpyAsCupy:
    """NumPy in place of CuPy."""

    asnumpy = staticmethod(np.array)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class SynchronousStream:
    """A stream in which every call has completed on return."""

    def use(self) -> None: ...

    def synchronize(self) -> None: ...


class HostDevice:
    """Replaces `Device`. Compiles all requested sources together when the first of them runs. Among
    the implementations of a product, takes the one with the index or the name `way`."""

    def __init__(self, folder: Path, way: int | str) -> None:
        self.cupy, self.stream = NumpyAsCupy(), SynchronousStream()
        self.multiprocessors = MULTIPROCESSORS
        self.scratch = np.zeros(SCRATCH_BYTES, dtype=np.uint8)
        self.workspace = np.zeros(1 << 20, dtype=np.uint8)
        self.tuner = FixedChoiceTuner(way)
        self.deterministic = False
        self.timing = False
        """Whether all implementations run once when they are bound, on memory that a step will
        read."""
        self.taken: Counter[str] = Counter()
        """How often each library was called, by operation."""
        self._folder = folder
        self.asked: dict[str, CudaLaunch] = {}
        """Every source, by its text."""
        self._made: dict[str, Any] = {}

    def compile_async(self, launch: CudaLaunch) -> Future[Any]:
        self.asked.setdefault(launch.source, launch)
        found: Future[Any] = Future()
        found.set_result(lambda grid, block, words: self._run(launch.source, grid, block, words))
        return found

    def measure_milliseconds(self, run: Callable[[], None]) -> float:
        before = self.taken.copy()
        if self.timing:
            run()
        self.taken = before
        return 1.0

    def _run(self, source: str, grid: Any, block: Any, words: Any) -> None:
        if source not in self._made:
            new = [s for s in self.asked if s not in self._made]
            loaded = compile_library([self.asked[s] for s in new], self._folder)
            self._made |= {s: getattr(loaded, f"call_{i}") for i, s in enumerate(new)}
        given = np.array(words, dtype=np.int64)
        self._made[source](given.ctypes.data_as(ctypes.c_void_p), *grid, *block)


class FixedChoiceTuner(Tuner):
    """Takes the candidate with that index among those that can be made, counted from the end if it
    is negative; or the one with that name, if there is one."""

    def __init__(self, way: int | str) -> None:
        super().__init__(None)
        self.way = way

    def choose_fastest(
        self, task_key: Any, candidates: Any, measure: Any, max_candidates: int
    ) -> Any:
        made, named = [], []
        for candidate in candidates:
            with suppress(RuntimeError, UnsupportedKernelError):
                made.append(candidate.make())
                measure(made[-1])
                if isinstance(self.way, str) and self.way in candidate.name:
                    named.append(made[-1])
        if not made:
            raise RuntimeError("nothing works")
        number = 0 if isinstance(self.way, str) else self.way
        found = named or made
        return found[max(-len(found), min(number, len(found) - 1))]


class HostBackend(CudaBackend):
    """The CUDA backend, writing to arrays on the CPU."""

    def allocate(self, nbytes: int) -> Any:
        """Fills the memory with a non-zero value, so that what is timed before a step computes
        something."""
        buffer = super().allocate(nbytes)
        buffer[...] = 0x3C
        return buffer

    def write(self, target: Any, values: Any) -> None:
        target[...] = values

    def capture(self, thunks: Sequence[Callable[[], None]]) -> Callable[[], None]:
        def run() -> None:
            for thunk in thunks:
                thunk()

        return run


def open_host_backend(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    way: int | str = 0,
    fusion: FusionOptions = CUDA_FUSION,
) -> HostBackend:
    """The CUDA backend without a GPU or its libraries, whose calls NumPy executes. Every
    convolution is worth an epilogue."""
    monkeypatch.setattr(cublaslt_gemm, "bind", bind_product)
    monkeypatch.setattr(cudnn_convolution, "bind", bind_convolution)
    monkeypatch.setattr(cudnn_convolution, "is_supported", lambda places: True)
    device = HostDevice(folder, way)
    fusion = replace(fusion, min_epilogue_bytes={})
    return HostBackend("hosted", device.cupy, fusion, device=device)


def bind_product(
    device: HostDevice, p: cublaslt_gemm.Gemm, at: cublaslt_gemm.GemmPointers
) -> Callable[[], None]:
    """The operation requested of cuBLASLt: op(A) op(B) + C, a bias per row, ReLU; column-major."""
    a, b, d = (
        _view_matrix(m, x) for m, x in ((p.a, at.weight), (p.b, at.inputs), (p.d, at.result))
    )
    c = _view_matrix(p.addend, at.addend) if p.addend else None
    bias = _view_array(at.bias, p.d.dtype, (p.d.rows,), (1,)) if p.bias_alignment else None

    def run() -> None:
        device.taken[f"product {p.epilogue}{' beside' if p.addend else ''}"] += 1
        with np.errstate(all="ignore"):
            compute()

    def compute() -> None:
        sums = _widen(_transpose(a, p.a.is_transposed)) @ _widen(_transpose(b, p.b.is_transposed))
        if c is not None:
            sums = sums + _widen(c)
        if bias is not None:
            sums = sums + _widen(bias)[:, None]
        d[...] = np.maximum(sums, 0) if p.relu else sums

    return run


def bind_convolution(
    device: HostDevice, task: cudnn_convolution.FusedConvolution, pointers: Sequence[int]
) -> Callable[[], None]:
    """The operation requested of cuDNN: a convolution, then its epilogue, in 32 bits."""
    assert not any(pointer % 16 for pointer in pointers)  # the alignment promised to cuDNN
    placed = zip(pointers, task.places, strict=True)
    first, second, *beside, out = (
        _view_array(x, p.dtype, p.layout.shape, p.layout.strides) for x, p in placed
    )
    node, e = task.node, task.epilogue
    attrs = {a.name: node.attrs[a.name] for a in OPS[node.op].attrs}

    def run() -> None:
        device.taken[f"{node.op} {e.kind if e else 'alone'}"] += 1
        with np.errstate(all="ignore"):
            compute()

    def compute() -> None:
        value = OPS[node.op].reference(np, _widen(first), _widen(second), **attrs)
        left = iter(beside)
        if e is not None and e.bias:
            value = value + _widen(next(left)).reshape(-1)
        if e is not None and e.addend:
            value = value + _widen(next(left))
        if e is not None and e.mask:
            value = np.where(_widen(next(left)) > 0, value, 0)
        out[...] = np.maximum(value, 0) if e is not None and e.relu else value

    return run


def _view_matrix(m: cublaslt_gemm.Matrix, pointer: int) -> Any:
    shape, strides = (m.batch_count, m.rows, m.cols), (m.batch_stride, 1, m.leading_dimension)
    return _view_array(pointer, m.dtype, shape, strides)


def _transpose(matrices: Any, turned: bool) -> Any:
    return matrices.swapaxes(1, 2) if turned else matrices


def _widen(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _view_array(pointer: int, dtype: str, shape: IntTuple, strides: IntTuple) -> Any:
    """The elements at an address, as an array."""
    kind = dtype_of(dtype)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_uint8 * ((last + 1) * kind.itemsize)).from_address(pointer)
    flat = np.frombuffer(memory, kind)
    apart = tuple(s * kind.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, apart)


def pack_arguments(launch: CudaLaunch, memory: Mapping[str, Any]) -> Any:
    """The arguments of a launch without tables."""
    return np.array([_resolve_argument(w, memory) for w in launch.arguments], dtype=np.int64)


def _resolve_argument(word: KernelArgument, memory: Mapping[str, Any]) -> int:
    if isinstance(word, Address):
        return int(memory[word.buffer].__array_interface__["data"][0]) + word.start
    return word

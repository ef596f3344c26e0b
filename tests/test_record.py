"""Arguments of compiled code: packed by name, read by name, and never what they cannot hold."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.backends.cpu import llvm_jit
from netdsl.backends.cpu.intrinsics import store_f32
from netdsl.backends.cpu.llvm_builder import F32, F64, Lanes, LlvmFunction, const_i64
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Float32, Record, pack_records
from netdsl.backends.cpu.task_program import make_program
from tests.conftest import ROOT


class _Mixed(Record):
    count: int
    scale: float
    half: Float32
    shift: Float32
    target: int


@numba_loop
def _read(args, many, _b, _c, _d, _e):  # type: ignore[no-untyped-def]
    for i in range(many):
        r = _Mixed.nth(args, i)
        store_f32(r.target, r.count * r.scale + r.half + r.shift)


def _emitted() -> int:
    f = LlvmFunction("read")
    with f.loop(const_i64(0), f.args[1], const_i64(1)) as i:
        r, v = f.nth(_Mixed, f.args[0], i), Lanes(f, count=1)
        scaled = f.b.fmul(f.b.sitofp(r.count, F64), r.scale)
        total = f.b.fadd(f.b.fptrunc(scaled, F32), f.b.fadd(r.half, r.shift))
        v.store(v.splat(total), r.target)
    return llvm_jit.compile_llvm("read", f.text())


@given(st.lists(st.tuples(st.integers(-9, 9), *[st.integers(-64, 64)] * 3), min_size=1))
def test_records_are_read_as_they_are_packed(rows_of: list[tuple[int, int, int, int]]) -> None:
    """By loops and by functions in LLVM's language; an integer is never made of a fraction."""
    found = np.zeros(len(rows_of), np.float32)
    records = [
        _Mixed(count=n, scale=a / 16, half=b / 16, shift=c / 16, target=found[i:].ctypes.data)
        for i, (n, a, b, c) in enumerate(rows_of)
    ]
    given = pack_records(records)
    for function in (_read.address, _emitted()):
        found[...] = 0
        make_program([[(function, given.ctypes.data, len(records))]], (given, found))()
        assert found.tolist() == [(n * a + b + c) / 16 for n, a, b, c in rows_of]


def test_records_refuse_what_they_cannot_hold() -> None:
    whole = {"count": 1, "scale": 0.5, "half": 0.5, "shift": 0.5, "target": 0}
    for wrong in ({"count": 1.5}, {"target": None}, {"scale": "x"}):
        with pytest.raises((TypeError, ValueError)):
            pack_records([_Mixed(**{**whole, **wrong})])  # type: ignore[arg-type]
    for wrong in ({"other": 1}, {}):
        some = {k: v for k, v in whole.items() if k != "half"}
        with pytest.raises(TypeError):
            _Mixed(**some, **wrong)  # type: ignore[arg-type]


def test_no_kernel_reads_its_arguments_by_a_literal_offset() -> None:
    folder = ROOT / "netdsl" / "backends" / "cpu"
    literal = re.compile(r"load_[fi]\d+\(\s*args\b|\bargs \+ \d")
    for path in folder.glob("*.py"):
        assert not literal.search(path.read_text()), path.name

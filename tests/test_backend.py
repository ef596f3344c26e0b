"""A backend's contract: one class, which every backend derives from and nobody probes."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from netdsl.backends import base, open_backend
from netdsl.backends.array_backend import ArrayBackend
from netdsl.backends.base import Backend
from netdsl.backends.cpu.backend import CpuBackend
from netdsl.backends.cuda.backend import CudaBackend
from netdsl.errors import NetError
from netdsl.insight.compile_target import CompileTarget, prepare_target
from netdsl.insight.profiler import profile_step
from netdsl.ir.builder import Builder
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.plan.plan import make_plan
from netdsl.training.run.trainer import Trainer
from tests.conftest import ROOT
from tests.cuda_on_cpu import HostBackend
from tests.third_party_backend import ThirdParty

DIGITS = """net digits {
  input(8x8x1)
  conv(8, 3x3, pad=same) -> batchnorm -> relu -> maxpool(2x2) -> dropout(0.1)
  concat { conv(8, 3x3, pad=same) | identity } -> relu -> fc(32) -> relu -> fc(10)
}
data { source = digits, batch = 32 }
train { optimizer = adam(lr=0.01), epochs = 4, deterministic = yes }
"""


def test_a_third_party_backend_trains_digits(tmp_path: Path) -> None:
    """To the same losses as the reference, whose operators it computes."""
    found = {}
    for backend in (ThirdParty(), open_backend("reference")):
        trainer = Trainer(build_program(parse(DIGITS)), None, backend)
        metrics: list[dict[str, object]] = []
        trainer.run(tmp_path / backend.name, lambda p: None, metrics.append)
        found[backend.name] = [
            {k: v for k, v in m.items() if "loss" in k or "accuracy" in k} for m in metrics
        ]
    assert found["third party"] == found["reference"]
    assert found["third party"][-1]["val_accuracy"] > 0.9


def test_a_third_party_backend_is_short() -> None:
    lines = inspect.getsource(ThirdParty).splitlines()
    assert len([line for line in lines if line.strip()]) <= 60


def test_a_third_party_backend_is_timed() -> None:
    target = CompileTarget(None, training=True, batch=4)
    found = profile_step(
        prepare_target(build_program(parse(DIGITS)), target), ThirdParty(), rounds=1
    )
    assert found.device == "third party"
    assert found.seconds > 0
    assert not any(k.is_by_reference for k in found.kernels)


def test_defaults_are_those_of_a_machine_that_does_everything_at_once() -> None:
    backend, values = ThirdParty(), np.arange(3.0)
    assert backend.as_deterministic() is backend
    assert backend.start_upload(values) is values
    assert backend.cache_images(values) is None
    assert backend.free_bytes() is None
    assert backend.generate_source(make_plan(Builder().build({}), backend.fusion)) == ""
    ran: list[int] = []
    backend.capture([lambda: ran.append(1), lambda: ran.append(2)])()
    assert ran == [1, 2]
    reading = backend.start_readback({"a": backend.upload(np.float32(2.5))})
    assert reading.is_ready()
    assert reading.result() == {"a": 2.5}
    with pytest.raises(NetError, match="third party"):
        backend.with_tuning(1.0)


@pytest.mark.parametrize("kind", [ArrayBackend, CpuBackend, CudaBackend, HostBackend])
def test_every_backend_derives_from_the_contract(kind: type[Backend]) -> None:
    assert issubclass(kind, Backend)
    for name, method in inspect.getmembers(Backend, inspect.isfunction):
        own = inspect.signature(inspect.getattr_static(kind, name))
        assert list(own.parameters) == list(inspect.signature(method).parameters), name


def test_the_contract_is_one_page() -> None:
    lines = inspect.getsource(Backend).splitlines()
    assert len(lines) < 120
    for name, method in inspect.getmembers(Backend, inspect.isfunction):
        assert method.__doc__, name
    assert base.__doc__


def probes(text: str) -> list[str]:
    """What is asked of a backend by a name in a text, or by an attribute's being there."""
    found = []
    for call in ast.walk(ast.parse(text) if "attr(" in text else ast.Module([], [])):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args:
            of = ast.unparse(call.args[0]).split(".")[-1].strip("_")
            if call.func.id in ("getattr", "hasattr") and of in ("backend", "engine", "thunk"):
                found.append(ast.unparse(call))
    return found


def test_no_backend_is_probed_for_what_it_can_do() -> None:
    folders = ("netdsl", "tests", "benchmarks")
    paths = [p for f in folders for p in (ROOT / f).rglob("*.py")]
    found = {str(p): probes(p.read_text()) for p in paths}
    assert not {path: calls for path, calls in found.items() if calls}
    for floor in ("backends/__init__.py", "backends/base.py", "runtime/executor.py"):
        text = (ROOT / "netdsl" / floor).read_text()
        assert "getattr" not in text
        assert "runtime_checkable" not in text


def test_probes_are_seen() -> None:
    text = 'getattr(self.backend, "hold", None)\nhasattr(backend, "x")\ngetattr(x, "y")'
    assert probes(text) == ["getattr(self.backend, 'hold', None)", "hasattr(backend, 'x')"]

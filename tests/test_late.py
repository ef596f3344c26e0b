"""Losses that come late, as those of a GPU do: a run is the same, and what goes wrong is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends.array_backend import ArrayBackend, reference_backend
from netdsl.backends.base import MAX_STEPS_IN_FLIGHT
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run import stepper
from netdsl.training.run.trainer import Trainer
from netdsl.training.store.resume import load_continuation

NET = "net n { input(8x8x1); fc(10) }\ndata { source = digits, batch = 64 }\n"


@dataclass
class Readback:
    found: Mapping[str, Any]
    asked: list[int]

    def is_ready(self) -> bool:
        return False

    def result(self) -> Mapping[str, Any]:
        self.asked[0] -= 1
        return self.found


@dataclass(frozen=True)
class Late(ArrayBackend):
    """The reference, whose numbers are there only for who waits for them."""

    asked: list[int] = field(default_factory=lambda: [0])
    most: list[int] = field(default_factory=list)

    def start_readback(self, outputs: Mapping[str, Any]) -> Readback:
        self.asked[0] += 1
        self.most.append(self.asked[0])
        return Readback({k: self.download(v) for k, v in outputs.items()}, self.asked)


def trained(text: str, backend: Any, out: Path, stop: int = 10**9) -> bytes:
    """The last checkpoint of a run that is interrupted after some steps and resumed."""
    count = iter(range(10**9))
    trainer = Trainer(build_program(parse(text)), None, backend)
    try:
        trainer.run(out, lambda p: None, lambda m: None, lambda: next(count) >= stop)
    except KeyboardInterrupt:
        found = load_continuation(out)
        trainer = Trainer(found.program, None, backend, saved=found.saved)
        trainer.run(out, lambda p: None, lambda m: None)
    return (out / "last.safetensors").read_bytes()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_is_the_same_to_the_bit(accumulate: int, tmp_path: Path) -> None:
    text = f"{NET}train {{ epochs = 2, accumulate = {accumulate} }}"
    late = Late("reference", np)
    ends = {
        trained(text, backend, tmp_path / f"{i}", stop)
        for i, (backend, stop) in enumerate(
            [(reference_backend(), 10**9), (late, 10**9), (late, 6)]
        )
    }
    assert len(ends) == 1
    assert max(late.most) > MAX_STEPS_IN_FLIGHT


@pytest.mark.parametrize("rate", ["1e18", "3e19", "1e25"])
def test_a_fault_is_the_same(rate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies between two places that are held to find it from."""
    text = (
        NET.replace("; fc", "; fc(32) -> relu -> fc")
        + f"train {{ optimizer = sgd(lr={rate}), epochs = 2 }}"
    )
    monkeypatch.setattr(stepper, "SNAPSHOT_EVERY", 2)
    told = []
    for i, backend in enumerate((reference_backend(), Late("reference", np))):
        with pytest.raises(NetError) as e:
            trained(text, backend, tmp_path / f"{i}")
        told.append(e.value.render())
    assert "first in" in told[0]
    assert told[0] == told[1]
